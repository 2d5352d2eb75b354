"""Attention maps: KL between teacher and student. Source: DLIP (arXiv 2308.12956), section 3.3, L_AT."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dlip.losses.layers import LayerTerm
from dlip.losses.term import At, Setup, masked_mean, register
from dlip.models.grid_resize import map_to_grid


def map_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """KL(A_t || A_s) = sum_k A_t log(A_t / A_s), mean over query positions.

    A: attention probabilities over keys k, averaged over heads, without a second softmax. student, teacher: maps
    [N, H, Q, K], whose numbers of heads may differ; mask: bool [N, Q], false at padding. Source: DLIP, eq. 6.
    """
    a_t, a_s = teacher.float().mean(1), student.float().mean(1)  # [N, Q, K]
    return masked_mean(F.kl_div(a_s.clamp(min=1e-9).log(), a_t, reduction="none").sum(-1), mask)


class AttentionMaps(LayerTerm):
    """`map_loss` of a source's maps [B, H, Q, K], mean over its layer pairs.

    The teacher's cross-attention is resized to the student's patch grid.
    """

    by_token = True

    def __init__(self, setup: Setup):
        super().__init__(setup)
        self.grid = setup.student.config.grid

    def forward(self, at: At) -> Tensor:
        mask, losses = at.student.text_mask(self.source), []
        for teacher_layer, student_layer in self.pairs:
            a_s = at.student.maps(self.source, self.kind, student_layer)
            a_t = at.teacher.maps(self.source, self.kind, teacher_layer)
            if self.kind == "cross":
                a_t = map_to_grid(a_t, self.grid)
            losses.append(map_loss(a_s, a_t, mask))
        return torch.stack(losses).mean()


@register("at.self", group="at")
class SelfMaps(AttentionMaps):
    """Self-attention of the fusion."""

    averages_over = "tokens"
    source, kind = "fusion", "self"


@register("at.cross", group="at")
class CrossMaps(AttentionMaps):
    """Cross-attention of the fusion, from words to patches."""

    averages_over = "tokens"
    source, kind = "fusion", "cross"


@register("at.decoder_self", group="at")
class DecoderSelfMaps(AttentionMaps):
    """Self-attention of the decoder."""

    averages_over = "decoder tokens"
    source, kind = "decoder", "self"


@register("at.decoder_cross", group="at")
class DecoderCrossMaps(AttentionMaps):
    """Cross-attention of the decoder, from words to patches."""

    averages_over = "decoder tokens"
    source, kind = "decoder", "cross"
