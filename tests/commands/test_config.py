"""Every option of every group composes, and the recipes are the published ones."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from sparsereg.commands.checks import check_settings
from sparsereg.commands.overrides import CONFIG

OPTIONS = [f"{path.parent.name}={path.stem}" for path in sorted(CONFIG.glob("*/*.yaml"))]
OTHERS_MODELS = [  # built for model=... as well, which takes seconds
    option for option in OPTIONS if option.startswith(("experiment=resnet", "experiment=wrn"))
]


def composed(*overrides: str):
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        return compose("train", overrides=list(overrides))


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes(option):
    needed = {
        "data=image_folder": ["data.root=somewhere"],
        "model=torchvision": ["model.name=squeezenet1_1"],
        "model=timm": ["model.name=resnet10t"],
    }
    cfg = composed(option, *needed.get(option, []))
    check_settings(cfg, [option])
    assert OmegaConf.to_container(cfg, resolve=True)
    if option not in OTHERS_MODELS:
        is_mnist = cfg.data._target_.endswith("Mnist")
        instantiate(cfg.model, image_shape=[1, 28, 28] if is_mnist else [3, 32, 32])
    for group in ("optimizer", "scheduler", "loss"):
        instantiate(cfg[group])


def test_defaults_of_the_contract():
    cfg = composed()
    flat = {
        "ckpt_path": None,
        "resume_training": False,
        "without_using_gate": False,
        "lambda_l0": 0.5,
        "droprate_init": 0.5,
        "seed": 42,
    }
    assert {key: cfg[key] for key in flat} == flat
    assert cfg.data.name == "cifar10" and cfg.model.sampling == "per_sample"


@pytest.mark.parametrize(
    "experiment, milestones, gamma",
    [
        ("no_l0", [100, 150], 0.1),
        ("scratch_l0", [100, 150], 0.1),
        ("finetune_l0", [10, 60, 100, 130, 160], 0.5),
    ],
)
def test_published_recipes(experiment, milestones, gamma):
    cfg = composed(f"experiment={experiment}", "lambda_l0=10")
    assert cfg.trainer.max_epochs == 180 and cfg.data.batch_size == 128
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (1e-3, 1e-4)
    assert list(cfg.scheduler.milestones) == milestones and cfg.scheduler.gamma == gamma
    assert list(cfg.data.crop_scale) == [0.8, 1.0] and list(cfg.data.crop_ratio) == [0.9, 1.1]
    assert cfg.data.name == "cifar10" and cfg.data.flip is True
    assert cfg.lambda_l0 == 10, "the command line overrides the recipe"
    assert "Digits" in composed(f"experiment={experiment}", "data=digits").data._target_


@pytest.mark.parametrize(
    "experiment, model, cost, target",
    [
        ("resnet18", "resnet18", "channels", None),
        ("resnet18_macs_60", "resnet18", "macs", 0.6),
        ("resnet18_macs_80", "resnet18", "macs", 0.8),
        ("wrn_28_10_half", "wrn_28_10", "params", 0.5),
        ("wrn_28_10_fifth", "wrn_28_10", "params", 0.8),
    ],
)
def test_experiments_with_other_networks(experiment, model, cost, target):
    cfg = composed(f"experiment={experiment}")
    check_settings(cfg, [])
    assert (cfg.model.name, cfg.cost, cfg.target_sparsity) == (model, cost, target)
    assert cfg.without_using_gate is (target is None) and cfg.optimizer.lr == 0.1
    if model == "wrn_28_10":
        assert cfg.trainer.max_epochs == 200 and list(cfg.scheduler.milestones) == [60, 120, 160]


def test_gpu_trainer():
    cfg = composed("trainer=gpu")
    assert cfg.trainer.accelerator == "gpu" and cfg.trainer.precision == "bf16-mixed"
    assert cfg.matmul_precision == "high" and cfg.trainer.max_epochs == 180


@pytest.mark.parametrize("recipe, optimizer", [("modern", "SGD"), ("modern_gates", "AdamW")])
def test_a_recipe_replaces_what_the_experiment_chose(recipe, optimizer):
    cfg = composed("experiment=finetune_l0", f"recipe={recipe}", "optimizer.lr=0.3")
    assert cfg.optimizer._target_.endswith(optimizer) and cfg.optimizer.lr == 0.3
    assert "one_cycle" in cfg.scheduler._target_ and "milestones" not in cfg.scheduler
    assert cfg.data.crop_scale is None and cfg.data.crop_padding == 4
    assert cfg.droprate_init == 0.05, "the experiment's own choices stay"
