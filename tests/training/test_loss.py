"""Label smoothing and distillation against the formulas of their papers, in numpy."""

import numpy as np
import pytest
import torch
from conftest import SMALL, assert_one_line, checkpoint_path
from torch import nn

import sparsereg
from sparsereg.checkpoint import read_checkpoint
from sparsereg.training.loss import ClassificationLoss
from sparsereg.training.module import L0Module


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def random_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 16, 16, generator=generator)
    logits = 3 * torch.randn(8, 10, generator=generator)
    return images, logits, torch.randint(10, (8,), generator=generator)


def test_label_smoothing():
    images, logits, labels = random_batch()
    wanted = np.full((8, 10), 0.2 / 10)
    wanted[range(8), labels] += 0.8
    expected = -(wanted * log_softmax(logits.double().numpy())).sum(1).mean()
    loss = ClassificationLoss(label_smoothing=0.2)(images, logits, labels)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("weight, temperature", [(0.3, 4.0), (1.0, 1.0)])
def test_distillation(dense, weight, temperature):
    images, logits, labels = random_batch()
    with torch.no_grad():
        teacher = sparsereg.load(dense)(images).double().numpy()
    student = logits.double().numpy()
    p = log_softmax(teacher / temperature)
    kl = (np.exp(p) * (p - log_softmax(student / temperature))).sum(1).mean()
    ce = -log_softmax(student)[range(8), labels].mean()
    expected = (1 - weight) * ce + weight * temperature**2 * kl
    loss = ClassificationLoss(
        teacher=str(dense), teacher_weight=weight, teacher_temperature=temperature
    )
    assert loss(images, logits, labels).item() == pytest.approx(expected, rel=1e-4)


def test_a_gated_teacher_answers_as_it_does_in_eval_mode(pruned):
    images, *_ = random_batch()
    teacher = ClassificationLoss(teacher=str(pruned))
    with torch.no_grad():
        expected = sparsereg.load(pruned)(images)
    torch.testing.assert_close(teacher.teacher_logits(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_run_with_a_teacher(command, dense, lenet5, tmp_path):
    """It learns from the teacher, whose weights do not change and are not saved."""
    teacher = f"loss.teacher={dense}"
    result = command("train.py", *SMALL, teacher, "lambda_l0=0", f"output_dir={tmp_path}")
    assert result.code == 0, result.err
    keys = read_checkpoint(checkpoint_path(tmp_path))["state_dict"].keys()
    assert keys == read_checkpoint(lenet5)["state_dict"].keys()


@pytest.mark.slow
def test_what_a_teacher_must_be(command, dense, tmp_path):
    missing = command("train.py", *SMALL, f"loss.teacher={tmp_path / 'none.ckpt'}")
    assert_one_line(missing, "loss.teacher=", "does not exist")
    checkpoint = torch.load(dense, weights_only=True)
    checkpoint["sparsereg"]["data"]["classes"] = ["cat"] * 10
    torch.save(checkpoint, tmp_path / "cats.ckpt")
    other = command(
        "train.py", *SMALL, f"loss.teacher={tmp_path / 'cats.ckpt'}", f"output_dir={tmp_path}"
    )
    assert_one_line(other, "loss.teacher was trained on", "cat")


class LeftPixel(nn.Module):
    """Its logits are the brightness of the first pixel and 1 minus that."""

    def forward(self, images):
        return torch.stack([images[:, 0, 0, 0], 1 - images[:, 0, 0, 0]], dim=1)


def test_flip_tta():
    images = torch.tensor([[[[1.0, 0.2]]], [[[0.6, 0.1]]]])  # means of both pixels: 0.6, 0.35
    for flip_tta, expected in ((False, [0, 0]), (True, [0, 1])):
        module = L0Module(LeftPixel(), 2, None, None, flip_tta=flip_tta)
        module.log = lambda *args, **kwargs: None
        module.validation_step((images, torch.tensor(expected)), 0)
        assert module.val_acc.compute() == 1


@pytest.mark.slow
def test_test_py_takes_flip_tta(command, dense, monkeypatch):
    used = []
    monkeypatch.setattr(L0Module, "on_test_start", lambda self: used.append(self.flip_tta))
    for extra in ((), ("flip_tta=true",)):
        assert command("test.py", f"ckpt_path={dense}", *extra).code == 0
    assert used == [False, True]
