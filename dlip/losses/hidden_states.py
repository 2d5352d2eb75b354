"""Hidden states: cosines of projected states. Source: DLIP (arXiv 2308.12956), section 3.3, L_HR.

The paper's L_HR is the mean over its four sources, which is `hr=0.25`; here it is their weighted sum.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlip.common import distributed
from dlip.losses.layers import LayerTerm
from dlip.losses.term import At, Setup, masked_mean, register
from dlip.models.grid_resize import to_grid


def cosine_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """1 - cos(H_s W_s, H_t W_t), mean over tokens.

    H: hidden states of a layer, W: learned projections into one space. student, teacher: projected states [N, T, D];
    mask: bool [N, T], false at padding. Source: DLIP, eq. 5.
    """
    return masked_mean(1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1), mask)


def centered(states: Tensor, mask: Tensor | None = None) -> Tensor:
    """Hidden states [N, T, D] minus their mean over the tokens of the batch, where mask [N, T] is true.

    Beyond the paper: most of a state is this mean, so that a cosine of uncentered states is near 1 before training.
    """
    mask = states.new_ones(states.shape[:2]) if mask is None else mask
    total = distributed.all_sum((states * mask[..., None]).sum((0, 1)))
    return states - total / distributed.all_sum(mask.sum()).clamp(min=1)


def projection(inputs: int, outputs: int) -> nn.Linear:
    """A linear map without bias, the identity at first if the widths are equal."""
    linear = nn.Linear(inputs, outputs, bias=False)
    if inputs == outputs:
        nn.init.eye_(linear.weight)
    return linear


class HiddenStates(LayerTerm):
    """`cosine_loss` of a source's states [B, T, D], mean over its layer pairs.

    Both sides are projected, as in the paper, into a space as wide as the teacher; with `learn_teacher_projection`
    false the target are the teacher's own states, which cannot collapse.
    """

    kind = "states"

    def __init__(self, setup: Setup):
        super().__init__(setup)
        teacher, config = self.owner(setup.teacher).config, setup.config
        width = "image_width" if self.source == "image" else "text_width"
        student_width, teacher_width = getattr(setup.student.config, width), getattr(teacher, width)
        self.center, self.grid = config.center_states, setup.student.config.grid
        self.student, self.teacher = nn.ModuleList(), nn.ModuleList()
        for _ in self.pairs:
            self.student.append(projection(student_width, teacher_width))
            learned = config.learn_teacher_projection
            self.teacher.append(projection(teacher_width, teacher_width) if learned else nn.Identity())

    def compared(self, student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """States and mask of the tokens that are compared."""
        return student, teacher, mask

    def forward(self, at: At) -> Tensor:
        losses = []
        for i, (teacher_layer, student_layer) in enumerate(self.pairs):
            h_s, h_t, mask = self.compared(
                at.student.states(self.source, student_layer),
                at.teacher.states(self.source, teacher_layer),
                at.student.text_mask(self.source),
            )
            if self.center:
                h_s, h_t = centered(h_s, mask), centered(h_t, mask)
            h_t = self.teacher[i](h_t.to(self.student[i].weight.dtype))  # a teacher may be in bf16
            losses.append(cosine_loss(self.student[i](h_s), h_t, mask))
        return torch.stack(losses).mean()


@register("hr.image", group="hr")
class ImageStates(HiddenStates):
    """States of the image encoder; the teacher's patches are resized to the student's grid."""

    needs = "images"
    trains = frozenset({"image"})
    averages_over = "images"
    source = "image"

    def compared(self, student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, None]:
        return student, to_grid(teacher, self.grid), None


@register("hr.text", group="hr")
class TextStates(HiddenStates):
    """States of the text encoder; with another vocabulary those of [CLS], or a dual encoder's pooled token."""

    trains = frozenset({"text"})
    source = "text"

    def __init__(self, setup: Setup):
        super().__init__(setup)
        self.pooled = not self.owner(setup.teacher).reads(setup.vocabulary)
        self.averages_over = "captions" if self.pooled else "tokens"

    def compared(self, student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.pooled:
            return student[:, :1], teacher[:, :1], mask[:, :1]
        return student, teacher, mask


@register("hr.fusion", group="hr")
class FusionStates(HiddenStates):
    """States of the fusion of caption and image, of the true pairs."""

    by_token = True
    averages_over = "tokens"
    source = "fusion"


@register("hr.decoder", group="hr")
class DecoderStates(HiddenStates):
    """States of the decoder as it reads the caption."""

    by_token = True
    averages_over = "decoder tokens"
    source = "decoder"
