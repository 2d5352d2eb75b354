"""Logits: KL between teacher and student. Beyond DLIP; source: Hinton et al. (arXiv 1503.02531), at temperature 1."""

import torch.nn.functional as F
from torch import Tensor

from dlip.losses.term import At, Term, masked_mean, register


def logit_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """KL(P_t || P_s) with P = softmax(logits), mean over positions.

    student, teacher: logits [..., K]; mask: bool [...].
    """
    log_p_t, log_p_s = teacher.float().log_softmax(-1), student.float().log_softmax(-1)
    return masked_mean(F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(-1), mask)


class Logits(Term):
    """`logit_loss` of an ability, where the student's label is one."""

    distills = True

    def forward(self, at: At) -> Tensor:
        labels = at.student.labels.get(self.ability)
        mask = None if labels is None else labels >= 0
        return logit_loss(at.student.logits[self.ability], at.teacher.logits[self.ability], mask)


@register("kd.itc", group="kd")
class ContrastiveLogits(Logits):
    """Similarities of images and texts in the batch, mean of both directions."""

    trains = frozenset({"image", "text"})
    ability = "itc"

    def forward(self, at: At) -> Tensor:
        z_s, z_t = at.student.logits["itc"], at.teacher.logits["itc"]
        return (logit_loss(z_s, z_t) + logit_loss(z_s.T, z_t.T)) / 2


@register("kd.itm", group="kd")
class MatchingLogits(Logits):
    """Whether image and text match, of the student's pairs."""

    ability = "itm"


@register("kd.lm", group="kd")
class CaptionLogits(Logits):
    """The next token of a caption."""

    by_token = True
    averages_over = "next tokens"
    ability = "lm"


@register("kd.vqa", group="kd")
class AnswerLogits(Logits):
    """The next token of an answer."""

    needs = "questions"
    by_token = True
    averages_over = "answer tokens"
    ability = "vqa"
