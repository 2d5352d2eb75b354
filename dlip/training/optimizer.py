"""One optimizer step: losses in, updated weights out; steps with non-finite losses or gradients stop the run."""

import math
import warnings

import torch
from accelerate import Accelerator
from torch import nn

from dlip.common import distributed
from dlip.common.errors import UserError
from dlip.data.batch import Batch
from dlip.models.med import ImageLayer, Med, TextLayer
from dlip.training.config import TrainConfig
from dlip.training.learner import Learner
from dlip.training.muon import Muon
from dlip.training.teacher import Teacher

BETAS = (0.9, 0.98)
"""Decays of AdamW's moments."""
MAX_SKIPPED_IN_A_ROW = 100
"""Skipped steps after which a run stops: it would not recover by itself."""


def learning_rate(step: int, config: TrainConfig, steps_per_epoch: int) -> float:
    """Learning rate of a step counted from 0: a linear warm-up, then the schedule.

    Epochs that end during the warm-up do not decay it, so that the warm-up ends at the full learning rate.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "cosine":
        progress = (step - config.warmup) / max(1, config.steps - config.warmup)
        return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * config.decay ** (step // steps_per_epoch - config.warmup // steps_per_epoch)


def make_optimizer(learner: Learner, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over every trained parameter; biases, norms and other vectors have no weight decay.

    With `config.optimizer` "muon", Muon steps the matrices inside the transformer layers. Embeddings, the heads, the
    projections of ITC and of hr.*, vectors and the temperature stay with AdamW, as does a backbone, whose learning rate
    is `config.backbone_lr`.
    """
    matrices = layer_matrices(learner.med) if config.optimizer == "muon" else []
    backbone = learner.med.vision_model.embeddings.backbone
    of_backbone = [p for p in backbone.parameters() if p.requires_grad] if backbone else []
    others = {*matrices, *of_backbone}
    rest = [p for p in learner.parameters() if p.requires_grad and p not in others]
    groups = _decay_groups(rest, config.weight_decay)
    if of_backbone:
        scale = config.backbone_lr / config.lr
        groups += [group | {"lr_scale": scale} for group in _decay_groups(of_backbone, config.weight_decay)]
    if not matrices:
        return torch.optim.AdamW(groups, lr=config.lr, betas=BETAS, fused=True)
    return Muon([{"params": matrices, "weight_decay": config.weight_decay}], groups, config.lr, BETAS)


def _decay_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict]:
    return [
        {"params": [p for p in parameters if p.squeeze().ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.squeeze().ndim <= 1], "weight_decay": 0.0},
    ]


def layer_matrices(med: Med) -> list[nn.Parameter]:
    """Trained matrices of the transformer layers, each once though encoder and decoder may share it."""
    layers = [m for m in med.modules() if isinstance(m, ImageLayer | TextLayer)]
    parameters = (p for layer in layers for p in layer.parameters() if p.requires_grad and p.ndim == 2)
    return list(dict.fromkeys(parameters))


def counts(batch: Batch, prompt: int) -> dict[str, int]:
    """Counts of images, captions and tokens in a batch, by the names of `Term.averages_over`. prompt: its tokens."""
    captions, tokens = batch.captioned.sum().item(), batch.caption_mask.sum().item()
    return {
        "images": len(batch), "captions": captions, "tokens": tokens, "decoder tokens": tokens + prompt * captions,
        "next tokens": batch.mask[:, 1:].sum().item(), "answer tokens": batch.answer_mask[:, 1:].sum().item(),
    }  # fmt: skip


class OptimizerStep:
    """Forward and backward over a step's micro-batches, gradient clipping, update.

    After a call, `norm` is the gradient's norm before clipping (non-finite where fp16's scaler skipped the update), and
    `nonfinite` names the losses and gradients for which the step was skipped.
    """

    def __init__(self, learner: Learner, config: TrainConfig, steps_per_epoch: int, accelerator: Accelerator):
        self.learner, self.config, self.accelerator = learner, config, accelerator
        self.steps_per_epoch = steps_per_epoch
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # accelerate still passes it
            self.model, self.optimizer = accelerator.prepare(learner, make_optimizer(learner, config))
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.clipped = [p for p in trained if p.ndim]
        self.scalars = [p for p in trained if not p.ndim]  # the temperature, whose gradient would drown the others
        self.norm, self.skipped_in_a_row = math.nan, 0

    def __call__(self, micro_batches: list[Batch], teacher: Teacher | None, step: int) -> dict[str, float]:
        """Do the step counted from 0. Returns the mean loss by term and their weighted sum "total"; {} if skipped.

        Raises UserError where a loss or gradient is non-finite and `config.nonfinite` is "stop", or where
        `MAX_SKIPPED_IN_A_ROW` steps were skipped.
        """
        self.losses: dict[str, float] = {}
        self.nonfinite: list[str] = []
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.config, self.steps_per_epoch) * group.get("lr_scale", 1.0)
        for batch, weights in zip(micro_batches, self._micro_batch_weights(micro_batches), strict=True):
            with self.accelerator.accumulate(self.model):
                self._backward(batch, weights, teacher, step)
                if self.accelerator.sync_gradients:  # the last micro-batch
                    self._update(micro_batches, teacher, step)
        if self.nonfinite:
            self._skip(step)
            return {}
        self.skipped_in_a_row = 0
        self.learner.after_step()
        return self.losses

    def _micro_batch_weights(self, micro_batches: list[Batch]) -> list[dict[str, float]]:
        """Per-micro-batch loss weights, so that accumulated gradients equal those of one large batch.

        A term is a mean (`Term.averages_over`), so its weight is a micro-batch's count of what it is over, divided by
        the mean count of the step's micro-batches, over all processes.
        """
        if len(micro_batches) == 1:
            return [{}]
        by_name = [counts(batch, len(self.learner.med.config.prompt_ids)) for batch in micro_batches]
        values = torch.tensor([[*one.values()] for one in by_name], dtype=torch.float).to(self.accelerator.device)
        values = self.accelerator.reduce(values, "sum")  # [micro-batches, names]
        weights = values / values.mean(0).clamp(min=1 / len(micro_batches))
        return [dict(zip(by_name[0], row, strict=True)) for row in weights.tolist()]

    def _backward(self, batch: Batch, weights: dict[str, float], teacher: Teacher | None, step: int) -> None:
        """Add a micro-batch's losses to `losses` and its gradients to the parameters'."""
        batch = batch.to(self.accelerator.device)
        losses = self.model(batch, teacher, step, step / self.steps_per_epoch)
        over = {term.name: term.averages_over for term in self.learner.terms.values()}
        losses = {term: loss * weights.get(over[term], 1.0) for term, loss in losses.items()}
        total = sum(self.config.weights[term] * loss for term, loss in losses.items())
        means = self.accelerator.reduce(torch.stack([*losses.values(), total]).detach().float(), "mean").tolist()
        for term, mean in zip([*losses, "total"], means, strict=True):
            self.losses[term] = self.losses.get(term, 0.0) + mean / self.config.accumulate
        if not self.nonfinite and not all(map(math.isfinite, means)):
            bad = [term for term, mean in zip(losses, means, strict=False) if not math.isfinite(mean)]
            self._mark_nonfinite(bad or ["the total"], step)
        if not self.nonfinite:
            self.accelerator.backward(total)

    def _update(self, micro_batches: list[Batch], teacher: Teacher | None, step: int) -> None:
        """Clip the accumulated gradients and change the weights, unless something is non-finite."""
        self.norm = math.nan
        if not self.nonfinite:
            self.norm = self.accelerator.clip_grad_norm_(self.clipped, self.config.clip).item()
            finite = math.isfinite(self.norm) and all(p.grad is None or p.grad.isfinite() for p in self.scalars)
            scaler = self.accelerator.scaler
            if not finite and not (scaler and scaler.get_scale() >= 1):  # else fp16 overflowed: the scaler adapts
                self._mark_nonfinite(self._blame(micro_batches, teacher, step), step)
                if scaler:
                    scaler.update()  # or the next step could not be unscaled
        if not self.nonfinite:
            self.optimizer.step()
        self.optimizer.zero_grad()

    def _blame(self, micro_batches: list[Batch], teacher: Teacher | None, step: int) -> list[str]:
        """Name the terms whose gradient is non-finite, by computing each term's gradient alone."""
        parameters, terms = [*self.clipped, *self.scalars], {}
        for batch in micro_batches:
            losses = self.learner(batch.to(self.accelerator.device), teacher, step, step / self.steps_per_epoch)
            for term, loss in losses.items():
                gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
                if not all(gradient is None or gradient.isfinite().all() for gradient in gradients):
                    terms[term] = None
        return [f"the gradient of {term}" for term in terms or ["the total"]]

    @distributed.raised_by_all()
    def _mark_nonfinite(self, names: list[str], step: int) -> None:
        self.nonfinite = names
        if self.config.nonfinite == "stop":
            raise UserError(
                f"non-finite in step {step + 1}: {', '.join(names)}; lower the learning rate in a new folder, or skip "
                f"such steps with --nonfinite skip"
            )

    @distributed.raised_by_all()
    def _skip(self, step: int) -> None:
        self.skipped_in_a_row += 1
        names = ", ".join(self.nonfinite)
        if self.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            raise UserError(
                f"non-finite in step {step + 1}: {names}; {MAX_SKIPPED_IN_A_ROW} steps in a row were skipped, so lower "
                f"the learning rate in a new folder"
            )
        warnings.warn(f"non-finite in step {step + 1}: {names}; the step is skipped", stacklevel=4)
        self.learner.after_skipped_step()
