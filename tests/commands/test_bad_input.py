"""A user's mistake: one line with the key, the value and the remedy, exit code 1, no traceback."""

import pytest
from conftest import SHORT, assert_one_line, run_process

SETTINGS = [  # command line, what the line must say
    ("resume_training=true", ["resume_training=true", "ckpt_path="]),
    ("lambda_l0=-1", ["lambda_l0=-1", "at least 0"]),
    ("lambda_l0=nan", ["lambda_l0=nan"]),
    ("lambda_l0=inf", ["lambda_l0=inf"]),
    ("lambda_l0=much", ["lambda_l0=much"]),
    ("resume_training=maybe", ["resume_training=maybe", "true or false"]),
    ("without_using_gate=yes", ["without_using_gate=yes", "true or false"]),
    ("droprate_init=0", ["droprate_init=0", "above 0 and below 1"]),
    ("droprate_init=1", ["droprate_init=1"]),
    ("droprate_init=1.5", ["droprate_init=1.5"]),
    ("gate_lr=0", ["gate_lr=0", "positive"]),
    ("target_sparsity=0", ["target_sparsity=0", "above 0 and below 1"]),
    ("target_sparsity=1", ["target_sparsity=1"]),
    ("target_sparsity=60", ["target_sparsity=60", "0.6"]),
    ("target_sparsity=half", ["target_sparsity=half"]),
    ("cost=seconds", ["cost=seconds", "channels, params, macs"]),
    ("lambda_warmup=-1", ["lambda_warmup=-1", "at least 0"]),
    ("min_open_channels=-1", ["min_open_channels=-1"]),
    ("gate_reductions=maybe", ["gate_reductions=maybe", "true or false"]),
    ("keep_gates=true", ["keep_gates=true", "ckpt_path="]),
    ("dual_lr=0.1", ["dual_lr=0.1", "target_sparsity="]),
    ("target_warmup=3", ["target_warmup=3", "target_sparsity="]),
    ("settle_epochs=3", ["settle_epochs=3", "target_sparsity="]),
    ("normalise=inside", ["normalise=inside", "compact.py takes it"]),
    ("data.batch_size=0", ["data.batch_size=0", "at least 1"]),
    ("data.batch_size=1.5", ["data.batch_size=1.5"]),
    ("seed=-1", ["seed=-1", "0 to 4294967295"]),
    ("seed=4294967296", ["seed=4294967296"]),
    ("seed=lucky", ["seed=lucky"]),
    ("model.act_fn_name=swish", ["model.act_fn_name=swish", "relu, leakyrelu, gelu, tanh"]),
    ("model.temperature=0", ["model.temperature=0"]),
    ("model.sampling=sometimes", ["model.sampling=sometimes", "per_sample, per_batch"]),
    ("optimizer.lr=-1", ["optimizer.lr=-1"]),
    ("model.without_using_gate=maybe", ["model.without_using_gate=maybe", "true or false"]),
    ("optimizer.betas=[2,2]", ["optimizer.betas=[2, 2]"]),
    ("scheduler.milestones=abc", ["scheduler.milestones=abc", "[100,150]"]),
    ("scheduler.gamma=-1", ["scheduler.gamma=-1"]),
    ("gate_lr=nan", ["gate_lr=nan"]),
    ("output_dir=null", ["output_dir=null"]),
    ("skip_finished=perhaps", ["skip_finished=perhaps", "true or false"]),
    ("hydra/launcher=jobib", ["hydra/launcher=jobib", "did you mean 'joblib'?"]),
    ("ckpt_path=123", ["ckpt_path=123"]),
    ("ckpt_path=", ["ckpt_path="]),
    ("matmul_precision=low", ["matmul_precision=low", "highest"]),
    ("data.flip=maybe", ["data.flip=maybe"]),
    ("data.eval_batch_size=0", ["data.eval_batch_size=0"]),
    ("data=image_folder", ["data.root=null", "a path"]),
    ("callbacks.checkpoints=null", ["callbacks.checkpoints=null"]),
    ("trainer.precision=64-true", ["trainer.precision=64-true", "bf16-mixed"]),
    ("trainer.strategy=nonsense", ["trainer.strategy=nonsense", "ddp"]),
    ("trainer.limit_val_batches=0", ["trainer.limit_val_batches=0"]),
    ("trainer.limit_train_batches=-1", ["trainer.limit_train_batches=-1"]),
    ("trainer.log_every_n_steps=0", ["trainer.log_every_n_steps=0"]),
    ("trainer.check_val_every_n_epoch=200", ["trainer.max_epochs=180"]),
    ("lambda_l0", ["'lambda_l0'", "KEY=VALUE"]),
    ("--foo", ["--foo", "KEY=VALUE"]),
    ("optimizer=null", ["optimizer=null", "adam, adamw, sgd"]),
    ("trainer.max_epochs=0", ["trainer.max_epochs=0", "at least 1"]),
    ("trainer.max_epochs=-1", ["trainer.max_epochs=-1"]),
    ("trainer.accelerator=abacus", ["trainer.accelerator=abacus"]),
    ("lamda_l0=1", ["lamda_l0", "did you mean 'lambda_l0'?"]),
    ("optimizer.lrr=1", ["optimizer.lrr", "did you mean 'optimizer.lr'?"]),
    ("+lamda_l0=1", ["+lamda_l0=1", "did you mean 'lambda_l0'?"]),
    ("+lambda_l0=1", ["+lambda_l0=1", "write 'lambda_l0=…'"]),
    ("++trainer.max_epoch=1", ["++trainer.max_epoch=1", "did you mean 'trainer.max_epochs'?"]),
    ("~optimizer", ["~optimizer"]),
    ("data=cifar", ["data=cifar", "did you mean 'cifar10'?", "image_folder"]),
    ("experiment=nothing", ["experiment=nothing", "scratch_l0"]),
    ("dta=digits", ["dta", "did you mean 'data'?"]),
    ("ckpt_path=epoch=3.ckpt", ["ckpt_path=epoch=3.ckpt"]),
    ("hydra.sweeper.n_trials=-1", ["hydra.sweeper.n_trials=-1", "at least 1"]),
    ("callbacks.checkpoints=false", ["callbacks.checkpoints=False", "left as it is"]),
    ("callbacks.gate_monitor=false", ["callbacks.gate_monitor=False", "or null"]),
    ("callbacks.epoch_seed.seed=-1", ["callbacks.epoch_seed.seed=-1"]),
    ("logger.csv.flush_logs_every_n_steps=0", ["logger.csv.flush_logs_every_n_steps=0"]),
    ("data.cutout=99999999999999999999999", ["data.cutout=", "whole number"]),
    ("droprate_init=1e-320", ["droprate_init=1e-320"]),
    ("optimizer.lr=1e39", ["optimizer.lr=1e+39"]),
    ("wait_for_processes=0", ["wait_for_processes=0"]),
    ("loss.teacher_weight=0.5", ["loss.teacher_weight=0.5 needs loss.teacher="]),
    ("round_to=8", ["round_to=8 needs finetune_epochs="]),
    ("model.without_using_gate=true", ["contradicts without_using_gate=false"]),
    ("trainer.devices=[]", ["trainer.devices=[]"]),
    ("ckpt_path=nowhere/last.ckpt", ["ckpt_path=nowhere/last.ckpt", "does not exist"]),
]


@pytest.mark.parametrize("argument, words", SETTINGS, ids=[argument for argument, _ in SETTINGS])
def test_settings(command, argument, words, tmp_path):
    result = command("train.py", f"output_dir={tmp_path}", argument)
    assert_one_line(result, *words)
    assert not list(tmp_path.iterdir())


WITHOUT_GATES = (
    *("lambda_l0=3", "droprate_init=0.3", "gate_lr=0.1", "min_open_channels=3", "cost=params"),
    *("model.exclude=[a]", "model.sampling=per_batch"),
)


@pytest.mark.parametrize("argument", WITHOUT_GATES)
def test_settings_of_gates_without_gates(argument, command):
    more = ("without_using_gate=true", "model=resnet18")
    assert_one_line(command("train.py", *more, argument), argument, "needs gates")


def test_what_asks_for_nothing_needs_nothing(command, tmp_path):
    off = ("gate_lr=null", "lambda_l0=0", "gate_reductions=false", "target_sparsity=null")
    settings = (*off, "without_using_gate=true", "model=lenet5", "trainer.limit_train_batches=1")
    result = command("train.py", *SHORT[:4], *settings, f"output_dir={tmp_path}")
    assert result.code == 0, result.err


def test_clipping_scaled_gradients(command):
    result = command("train.py", "trainer.precision=16-mixed", "trainer.gradient_clip_val=1")
    assert_one_line(result, "trainer.gradient_clip_val=1", "16-mixed", "optimizer.fused=false")


def test_flags_may_follow_settings(command):
    result = command("train.py", "seed=1,2", "-m", "lambda_l0=-1")
    assert result.code == 1 and result.err.count("error: lambda_l0=-1") == 1, result.err
    assert result.err.count("failed: ") == 2


@pytest.mark.parametrize("sweep", ["seed=range(1,3,0)", "seed=interval(0,1)"])
def test_a_sweep_that_cannot_start(sweep, command):
    assert_one_line(command("train.py", "-m", sweep), "the sweep cannot start")


@pytest.mark.slow
@pytest.mark.parametrize("argument, words", SETTINGS[::30])
def test_mistakes_are_said_before_anything_slow_is_imported(argument, words, tmp_path):
    result = run_process("train.py", f"output_dir={tmp_path}", argument)
    assert_one_line(result, *words)
    assert result.seconds < 3


def test_test_needs_a_checkpoint(tmp_path):
    result = run_process("test.py")
    assert_one_line(result, "ckpt_path=…", "is needed")
    assert result.seconds < 3


def test_settings_that_test_py_would_ignore(command, lenet5):
    result = command("test.py", f"ckpt_path={lenet5}", "lambda_l0=3")
    assert_one_line(result, "lambda_l0=3", "the checkpoint knows it")


def test_a_bug_keeps_its_traceback(command, monkeypatch):
    def bug(*arguments):
        raise RuntimeError("this is a bug")

    monkeypatch.setattr("sparsereg.commands.checks.check_checkpoint_file", bug)
    with pytest.raises(RuntimeError, match="this is a bug"):
        command("train.py", "ckpt_path=last.ckpt")
