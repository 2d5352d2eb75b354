"""Losses between student and teacher: hidden states (hr), attention maps (at) and, beyond the paper, logits (kd).

Each is a scalar in fp32, 0 for a student equal to its teacher, and a mean over the batch of all processes. Source:
Kuang et al., DLIP (arXiv 2308.12956), section 3.3: L = L_VLP + L_HR + L_AT.
"""

from collections.abc import Collection
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlip.common import distributed
from dlip.common.errors import MissingAbility, UserError
from dlip.data.batch import Batch
from dlip.models.config import ModelConfig
from dlip.models.features import Features, Want
from dlip.models.grid_resize import map_to_grid, to_grid
from dlip.models.protocol import Model
from dlip.training.caches.features import FeatureCache
from dlip.training.config import TrainConfig
from dlip.training.terms import BY_TOKEN, distills, terms_text
from dlip.vlm import VLM

MAPS = {
    "at.self": ("fusion", "self"),
    "at.cross": ("fusion", "cross"),
    "at.decoder_self": ("decoder", "self"),
    "at.decoder_cross": ("decoder", "cross"),
}
"""Attention term -> (source, kind) of its map."""
LAST_LAYERS = ((-1, -1),)
"""Pairs (teacher layer, student layer) that the paper compares."""


class Teacher(nn.Module):
    """A frozen model: always in eval mode, without gradients."""

    def __init__(self, med: Model):
        super().__init__()
        self.med = med.requires_grad_(False).eval()
        self.feature_cache: FeatureCache | None = None

    def train(self, mode: bool = True) -> "Teacher":
        """Do nothing: the teacher stays in eval mode."""
        return self

    @torch.no_grad()
    def forward(self, batch: Batch, want: Want, pairs=None, image: Tensor | None = None) -> Features:
        """Features as `Med.forward` computes them. pairs: those of the student, so that both match the same ones."""
        if self.feature_cache:
            batch = replace(batch, features=self.feature_cache(batch))
        return self.med(batch, want, pairs, image)


# --- losses -----------------------------------------------------------------------------------------------------------


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of values [N, T] where mask, bool [N, T], is true, over the batch of all processes; 0 if it never is.

    Without a mask, the mean of all values of this process (each process has as many).
    """
    if mask is None:
        return values.sum() / max(1, values.numel())
    return distributed.global_mean((values * mask).sum(), mask.sum())


def cosine_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Hidden-state loss of one source: 1 - cos(H_s W_s, H_t W_t), mean over tokens.

    H: hidden states of a layer, W: learned projections into one space. student, teacher: projected states [N, T, D];
    mask: bool [N, T], false at padding. The paper's L_HR is the mean over the four sources, here it is their weighted
    sum. Source: DLIP, eq. 5.
    """
    return masked_mean(1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1), mask)


def map_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention loss of one map: KL(A_t || A_s) = sum_k A_t log(A_t / A_s), mean over query positions.

    A: attention probabilities over keys k, averaged over heads, without a second softmax. student, teacher: maps
    [N, H, Q, K], whose numbers of heads may differ; mask: bool [N, Q], false at padding. Source: DLIP, eq. 6.
    """
    a_t, a_s = teacher.float().mean(1), student.float().mean(1)  # [N, Q, K]
    return masked_mean(F.kl_div(a_s.clamp(min=1e-9).log(), a_t, reduction="none").sum(-1), mask)


def logit_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logit loss: KL(P_t || P_s) with P = softmax(logits), at temperature 1, mean over positions.

    student, teacher: logits [..., K]; mask: bool [...]. Beyond the paper. Source: Hinton et al. (arXiv 1503.02531).
    """
    log_p_t, log_p_s = teacher.float().log_softmax(-1), student.float().log_softmax(-1)
    return masked_mean(F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(-1), mask)


def centered(states: Tensor, mask: Tensor | None = None) -> Tensor:
    """Hidden states [N, T, D] minus their mean over the tokens of the batch, where mask [N, T] is true.

    Beyond the paper: most of a state is this mean, so that a cosine of uncentered states is near 1 before training.
    """
    mask = states.new_ones(states.shape[:2]) if mask is None else mask
    total = distributed.all_sum((states * mask[..., None]).sum((0, 1)))
    return states - total / distributed.all_sum(mask.sum()).clamp(min=1)


# --- all terms of a batch ---------------------------------------------------------------------------------------------


def projection(inputs: int, outputs: int) -> nn.Linear:
    """A linear map without bias, the identity at first if the widths are equal."""
    linear = nn.Linear(inputs, outputs, bias=False)
    if inputs == outputs:
        nn.init.eye_(linear.weight)
    return linear


def _owner(teacher: Model, term: str) -> Model | None:
    """The model of a teacher that a term compares with; None if no model was trained for it."""
    kind, name = term.split(".")
    try:
        return teacher.model_for(name) if kind == "kd" else teacher.model_for_states(MAPS.get(term, (name,))[0])
    except MissingAbility:
        return None


class Distiller(nn.Module):
    """The hr.*, at.* and kd.* terms between a student and its teacher, with the projections that hr.* needs.

    weights: term -> weight; terms of weight 0 are not computed. layers: source -> pairs (teacher layer, student layer)
    to compare, by default the last ones. learn_teacher_projection: project both sides, as in the paper, into a space as
    wide as the teacher; False compares with the teacher's own states, a target that cannot collapse. center_states:
    hr.* compares `centered` states. vocabulary: of the student's tokenizer.

    Raises UserError where `layers` names a layer that a model does not have, and MissingAbility where a teacher has no
    weights for a source.
    """

    def __init__(
        self,
        student: ModelConfig,
        teacher: Model,
        weights: dict[str, float],
        layers: dict | None = None,
        learn_teacher_projection: bool = True,
        center_states: bool = False,
        vocabulary: str | None = None,
    ):
        super().__init__()
        self.terms = distills(weights)
        self.layers, self.grid, self.center_states = layers or {}, student.grid, center_states
        self.student_projections, self.teacher_projections = nn.ModuleDict(), nn.ModuleDict()
        teachers = {source: teacher.model_for_states(source) for source, _ in self.want("teacher").layers}
        self.pooled_text = "text" in teachers and not teachers["text"].reads(vocabulary)
        for source in (term.removeprefix("hr.") for term in self.terms if term.startswith("hr.")):
            width = "image_width" if source == "image" else "text_width"
            student_width, teacher_width = getattr(student, width), getattr(teachers[source].config, width)
            for i, _ in enumerate(self.layer_pairs(source)):
                self.student_projections[f"{source}_{i}"] = projection(student_width, teacher_width)
                self.teacher_projections[f"{source}_{i}"] = (
                    projection(teacher_width, teacher_width) if learn_teacher_projection else nn.Identity()
                )
        for source, model in teachers.items():  # raises for a missing layer
            self.want("student").layers_of(source, student)
            self.want("teacher").layers_of(source, model.config)

    @classmethod
    def between(cls, student: VLM, teacher: VLM, config: TrainConfig) -> "Distiller":
        """The terms of a configuration, with a teacher that tokenizes for itself where vocabularies differ.

        Raises UserError where the teacher was not trained for a term, or a term compares tokens of different
        vocabularies, or captions after different prompts.
        """
        vocabulary, terms = student.tokenizer and student.tokenizer.vocabulary, distills(config.weights)
        owners = {term: _owner(teacher.med, term) for term in terms}
        missing = [term for term, owner in owners.items() if owner is None]
        foreign = [term for term, owner in owners.items() if owner and not owner.reads(vocabulary)]
        by_token = [term for term in foreign if term in BY_TOKEN]
        refused = []
        if missing:
            refused.append(f"the teacher was not trained for {', '.join(missing)}")
        if by_token:
            refused.append(f"{', '.join(by_token)} compare token by token, but its vocabulary is not the student's")
        if refused:
            others = {term: w for term, w in config.weights.items() if w and term not in (*missing, *by_token)}
            instead = f": {terms_text(others)}" if distills(others) else ""
            raise UserError(f"{', and '.join(refused)}; leave these terms out{instead}")
        distiller = cls(
            student.med.config, teacher.med, config.weights, config.layers, config.learn_teacher_projection,
            config.center_states, vocabulary,
        )  # fmt: skip
        if any("decoder" in term or term == "kd.lm" for term in terms):
            if teacher.med.model_for("lm").config.prompt_ids != student.med.config.prompt_ids:
                raise UserError("teacher and student have different prompts; give the student the teacher's prompt_ids")
        return distiller

    def layer_pairs(self, source: str) -> tuple[tuple[int, int], ...]:
        return self.layers.get(source, LAST_LAYERS)

    def active(self, terms: Collection[str] | None) -> list[str]:
        """The distillation terms among `terms`; all for None."""
        return [term for term in self.terms if terms is None or term in terms]

    def want(self, side: str, terms: Collection[str] | None = None) -> Want:
        """What "teacher" or "student" has to compute for the terms among `terms`."""
        layers, active = {}, self.active(terms)
        for term in active:
            key = (term.removeprefix("hr."), "states") if term.startswith("hr.") else MAPS.get(term)
            if key:
                layers[key] = tuple(pair[side == "student"] for pair in self.layer_pairs(key[0]))
        return Want(frozenset(term.removeprefix("kd.") for term in active if term.startswith("kd.")), layers)

    def forward(self, student: Features, teacher: Features, terms: Collection[str] | None = None) -> dict[str, Tensor]:
        """Unweighted loss by term, of those among `terms`, for features computed with `want`."""
        losses = {}
        for term in self.active(terms):
            kind, name = term.split(".")
            if kind == "hr":
                losses[term] = self.state_loss(name, student, teacher)
            elif kind == "at":
                losses[term] = self.attention_loss(*MAPS[term], student, teacher)
            else:
                losses[term] = self.kd_loss(name, student, teacher)
        return losses

    def state_loss(self, source: str, student: Features, teacher: Features) -> Tensor:
        """`cosine_loss` of a source's states [B, T, D], mean over its layer pairs.

        The teacher's patch tokens are resized to the student's grid. Of texts in another vocabulary the first states
        are compared, [B, 1, D]: [CLS], or the pooled token of a dual encoder.
        """
        mask, losses = None if source == "image" else student.text_mask(source), []
        for i, (teacher_layer, student_layer) in enumerate(self.layer_pairs(source)):
            h_s, h_t = student.states(source, student_layer), teacher.states(source, teacher_layer)
            if source == "image":
                h_t = to_grid(h_t, self.grid)
            if source == "text" and self.pooled_text:
                h_s, h_t, mask = h_s[:, :1], h_t[:, :1], mask[:, :1]
            if self.center_states:
                h_s, h_t = centered(h_s, mask), centered(h_t, mask)
            w_s, w_t = self.student_projections[f"{source}_{i}"], self.teacher_projections[f"{source}_{i}"]
            h_t = w_t(h_t.to(w_s.weight.dtype))  # a teacher may be in bf16
            losses.append(cosine_loss(w_s(h_s), h_t, mask))
        return torch.stack(losses).mean()

    def attention_loss(self, source: str, kind: str, student: Features, teacher: Features) -> Tensor:
        """`map_loss` of a source's maps [B, H, Q, K], mean over its layer pairs.

        The teacher's cross-attention is resized to the student's patch grid.
        """
        mask, losses = student.text_mask(source), []
        for teacher_layer, student_layer in self.layer_pairs(source):
            a_s, a_t = student.maps(source, kind, student_layer), teacher.maps(source, kind, teacher_layer)
            if kind == "cross":
                a_t = map_to_grid(a_t, self.grid)
            losses.append(map_loss(a_s, a_t, mask))
        return torch.stack(losses).mean()

    def kd_loss(self, ability: str, student: Features, teacher: Features) -> Tensor:
        """`logit_loss` of "itm", "lm" or "vqa", or of "itc" the mean of both directions."""
        z_s, z_t = student.logits[ability], teacher.logits[ability]
        if ability == "itc":
            return (logit_loss(z_s, z_t) + logit_loss(z_s.T, z_t.T)) / 2
        labels = student.labels.get(ability)
        return logit_loss(z_s, z_t, None if labels is None else labels >= 0)
