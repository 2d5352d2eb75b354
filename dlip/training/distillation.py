"""What the teacher hands over: representations (hr), attention maps (at) and, beyond the paper, logits (kd).

Each term is a scalar in fp32, 0 for a student equal to its teacher. Source: Kuang et al., DLIP (arXiv 2308.12956),
section 3.3.
"""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlip.common import distributed
from dlip.data.batch import Batch
from dlip.models.config import ModelConfig
from dlip.models.features import SOURCES, Features, Want
from dlip.models.grid_resize import map_to_grid, to_grid
from dlip.models.med import Med

MAPS = {  # term -> (source, kind) of the map
    "at.self": ("fusion", "self"),
    "at.cross": ("fusion", "cross"),
    "at.decoder_self": ("decoder", "self"),
    "at.decoder_cross": ("decoder", "cross"),
}
LAST = ((-1, -1),)


class Teacher(nn.Module):
    """A model that cannot be changed: frozen, always in eval mode, without gradients."""

    def __init__(self, med: Med):
        super().__init__()
        self.med = med.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in eval mode whatever is asked."""
        return self

    @torch.no_grad()
    def forward(self, batch: Batch, want: Want, pairs=None, image: Tensor | None = None) -> Features:
        return self.med(batch, want, pairs, image)


# --- the terms --------------------------------------------------------------------------------------------------------


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of values [N, T] over the positions that mask, bool [N, T], counts, in the batch of all processes; 0 where
    there is none. Without a mask all count."""
    if mask is None:  # of as many values in every process
        return values.sum() / max(1, values.numel())
    return distributed.global_mean((values * mask).sum(), mask.sum())


def cosine_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """L_HR of one source (eq. 5): 1 - cos(H_t W_t, H_s W_s), mean over tokens. The paper's is the mean of four sources.

    Both [N, T, D], projected already; mask bool [N, T] counts the tokens that are no pads.
    """
    return masked_mean(1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1), mask)


def centered(states: Tensor, mask: Tensor | None = None) -> Tensor:
    """Hidden states [N, T, D] less their mean over the batch's tokens, which mask [N, T] counts.

    Beyond the paper: the mean is most of a state, so that a cosine with it left in is small before anything is learnt.
    """
    mask = states.new_ones(states.shape[:2]) if mask is None else mask
    return states - distributed.all_sum((states * mask[..., None]).sum((0, 1))) / distributed.all_sum(mask.sum()).clamp(
        min=1
    )


def map_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """L_AT of one map (eq. 6): KL(A_t || A_s), mean over query positions, of maps [N, H, Q, K] averaged over heads.

    The maps are probabilities already and are compared as they are. mask bool [N, Q] leaves out the pads' queries.
    """
    p, q = teacher.float().mean(1), student.float().mean(1)  # [N, Q, K]
    kl = (torch.xlogy(p, p) - torch.xlogy(p, q.clamp(min=1e-9))).sum(-1)
    return masked_mean(kl, mask)


def logit_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """KL(P_t || P_s) of the softmax over the last dimension of logits [..., K], mean over the rest, mask bool [...].

    Beyond the paper. Source: Hinton et al. (arXiv 1503.02531) at temperature 1.
    """
    log_p, log_q = teacher.float().log_softmax(-1), student.float().log_softmax(-1)
    return masked_mean((log_p.exp() * (log_p - log_q)).sum(-1), mask)


# --- all of them over a batch -----------------------------------------------------------------------------------------


def identity_(linear: nn.Linear) -> nn.Linear:
    """Where widths agree, the projection begins as the identity."""
    if linear.in_features == linear.out_features:
        nn.init.eye_(linear.weight)
    return linear


class Distiller(nn.Module):
    """The weighted terms between a student and its teacher, with the projections that widths need.

    weights: term -> weight, of hr.*, at.* and kd.*; terms without weight are not computed.
    layers: source -> pairs (teacher layer, student layer); the last layers where a source is not named.
    learn_teacher_projection: as the paper has it, both sides are projected into one space, here of the teacher's width;
    False leaves the teacher's space as it is, which cannot collapse.
    center_states: hr.* compares how states differ from their mean over the batch.

    Raises UserError where `layers` names one that a model does not have.
    """

    def __init__(
        self,
        student: ModelConfig,
        teacher: ModelConfig,
        weights: dict[str, float],
        layers: dict | None = None,
        learn_teacher_projection: bool = True,
        center_states: bool = False,
    ):
        super().__init__()
        self.center_states = center_states
        self.terms = [term for term, weight in weights.items() if weight and "." in term]
        self.layers = layers or {}
        self.grid = student.grid
        self.ours, self.theirs = nn.ModuleDict(), nn.ModuleDict()
        for source in (term[3:] for term in self.terms if term.startswith("hr.")):
            kind = "image_width" if source == "image" else "text_width"
            mine, other = getattr(student, kind), getattr(teacher, kind)
            for i, _ in enumerate(self.pairs(source)):
                self.ours[f"{source}_{i}"] = identity_(nn.Linear(mine, other, bias=False))
                if learn_teacher_projection:
                    self.theirs[f"{source}_{i}"] = identity_(nn.Linear(other, other, bias=False))
                else:
                    self.theirs[f"{source}_{i}"] = nn.Identity()
        for side, config in (("student", student), ("teacher", teacher)):
            for source in SOURCES:
                self.want(side).layers_of(source, config)

    def pairs(self, source: str) -> tuple[tuple[int, int], ...]:
        return self.layers.get(source, LAST)

    def active(self, terms: Collection[str] | None) -> list[str]:
        """Those of our terms that are among `terms`; all if it is None."""
        return [term for term in self.terms if terms is None or term in terms]

    def want(self, side: str, terms: Collection[str] | None = None) -> Want:
        """What the terms that are among `terms` read of the "teacher" or of the "student"."""
        layers, active = {}, self.active(terms)
        for term in active:
            key = (term[3:], "states") if term.startswith("hr.") else MAPS.get(term)
            if key:
                layers[key] = tuple(pair[side == "student"] for pair in self.pairs(key[0]))
        return Want(frozenset(term[3:] for term in active if term.startswith("kd.")), layers)

    def forward(self, student: Features, teacher: Features, terms: Collection[str] | None = None) -> dict[str, Tensor]:
        """Term -> loss, unweighted, of those among `terms`. Raises KeyError where `want` was not asked for."""
        return {term: self.term(term, student, teacher) for term in self.active(terms)}

    def term(self, term: str, student: Features, teacher: Features) -> Tensor:
        """The loss of one term; of `kd.itc` the mean of both directions."""
        kind, name = term.split(".")
        if kind == "hr":
            return self.representation(name, student, teacher)
        if kind == "at":
            return self.attention(*MAPS[term], student, teacher)
        mine, other = student.logits[name], teacher.logits[name]
        if name == "itc":
            return (logit_loss(mine, other) + logit_loss(mine.T, other.T)) / 2
        labels = student.labels.get(name)
        return logit_loss(mine, other, None if labels is None else labels >= 0)

    def representation(self, source: str, student: Features, teacher: Features) -> Tensor:
        """`cosine_loss` of a source's states [B, T, D], the mean over its pairs of layers."""
        mask, losses = None if source == "image" else student.text_mask(source), []
        for i, (other, mine) in enumerate(self.pairs(source)):
            h_s, h_t = student.states(source, mine), teacher.states(source, other)
            if source == "image":
                h_t = to_grid(h_t, self.grid)
            if self.center_states:
                h_s, h_t = centered(h_s, mask), centered(h_t, mask)
            key = f"{source}_{i}"
            h_t = self.theirs[key](h_t.to(self.ours[key].weight.dtype))  # a teacher may be in bf16
            losses.append(cosine_loss(self.ours[key](h_s), h_t, mask))
        return torch.stack(losses).mean()

    def attention(self, source: str, kind: str, student: Features, teacher: Features) -> Tensor:
        """`map_loss` of a source's maps [B, H, Q, K], the mean over its pairs of layers."""
        mask, losses = student.text_mask(source), []
        for other, mine in self.pairs(source):
            a_s, a_t = student.maps(source, kind, mine), teacher.maps(source, kind, other)
            if kind == "cross":
                a_t = map_to_grid(a_t, self.grid)
            losses.append(map_loss(a_s, a_t, mask))
        return torch.stack(losses).mean()
