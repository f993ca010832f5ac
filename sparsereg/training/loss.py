"""What training minimises beside the cost of the gates: cross-entropy, perhaps with a teacher."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsereg.checkpoint import check_classes, load, read_checkpoint
from sparsereg.compact import compact, fold

KEY = "loss.teacher"


class ClassificationLoss:
    """(1 - w) · cross-entropy(logits, labels) + w · T² · KL(teacher ‖ network), both softened by T.

    The second term is the distillation of Hinton, Vinyals and Dean 2015 (arXiv 1503.02531), their
    factor T² included, which keeps the gradient's size when T changes. Without a teacher w is 0.

    Args:
        label_smoothing: share of the target that is spread over all classes (Szegedy et al. 2016,
            arXiv 1512.00567).
        teacher: checkpoint or compact file of a trained network; it sees the same augmented images.
        teacher_weight: w in (0, 1].
        teacher_temperature: T.

    Raises:
        UserError: the teacher cannot be read, see `sparsereg.load`.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        teacher: str | None = None,
        teacher_weight: float = 0.9,
        teacher_temperature: float = 4.0,
    ):
        self.label_smoothing = label_smoothing
        self.teacher_file = teacher
        self.teacher = (
            None if teacher is None else fold(compact(load(teacher, "loss.teacher")))
        )  # fast
        self.teacher_weight = teacher_weight
        self.teacher_temperature = teacher_temperature

    def check_classes(self, classes: list[str]) -> None:
        """Raise UserError unless the teacher was trained on these classes."""
        if self.teacher is not None:
            check_classes(
                read_checkpoint(self.teacher_file, "loss.teacher"), classes, key="loss.teacher"
            )

    def __call__(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over a batch of (N, C, H, W) images, their (N, classes) logits, (N,) labels."""
        ce = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if self.teacher is None:
            return ce
        weight, temperature = self.teacher_weight, self.teacher_temperature
        soft = F.log_softmax(logits / temperature, dim=1)
        soft_teacher = F.log_softmax(self.teacher_logits(images) / temperature, dim=1)
        kl = F.kl_div(soft, soft_teacher, reduction="batchmean", log_target=True)
        return (1 - weight) * ce + weight * temperature**2 * kl

    @torch.no_grad()
    def teacher_logits(self, images: Tensor) -> Tensor:
        if next(self.teacher.parameters()).device != images.device:
            self.teacher.to(images.device)
        return self.teacher(images)
