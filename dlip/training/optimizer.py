"""A step of the optimiser: losses in, changed weights out, and what is no finite number left out or told."""

import math
import warnings

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dlip.common.errors import UserError
from dlip.data.batch import Batch
from dlip.training.config import TrainConfig
from dlip.training.distillation import Teacher
from dlip.training.learner import Learner
from dlip.training.terms import NEEDS

MOST_LEFT_OUT = 100
"""Steps in a row that may be left out before a run stops: it would not come back by itself."""


def learning_rate(step: int, config: TrainConfig, per_epoch: int) -> float:
    """The rate of a step counted from 0: a linear rise over the warm-up, then the schedule.

    Epochs that end during the warm-up do not count, so that it is left at the full rate.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "cosine":
        done = (step - config.warmup) / max(1, config.steps - config.warmup)
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * config.decay ** (step // per_epoch - config.warmup // per_epoch)


def optimiser(learner: Learner, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over every trained parameter; biases, norms and single vectors do not decay."""
    trained = [p for p in learner.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.squeeze().ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.squeeze().ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), fused=True)


def unsound(losses: dict[str, Tensor], parameters: list[nn.Parameter]) -> list[str]:
    """The terms whose own gradient holds what is no finite number."""
    found = []
    for term, loss in losses.items():
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        if not all(gradient is None or gradient.isfinite().all() for gradient in gradients):
            found.append(term)
    return found


def told(wrong: list[str]) -> str:
    """What is no finite number, in words."""
    return f"{', '.join(wrong)} {'is no finite number' if len(wrong) == 1 else 'are no finite numbers'}"


class Descent:
    """The steps of a run, micro-batch by micro-batch.

    per_epoch: steps an epoch. A step is complete where `complete` says so; `norm` is then its gradient's, not finite
    where fp16's scaler left it out, and `left_out` names the terms for which the step was left out.
    """

    def __init__(self, learner: Learner, config: TrainConfig, per_epoch: int, accelerator: Accelerator):
        self.config, self.per_epoch, self.accelerator, self.learner = config, per_epoch, accelerator, learner
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # what accelerate still calls it
            self.model, self.adamw = accelerator.prepare(learner, optimiser(learner, config))
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.clipped = [p for p in trained if p.ndim]  # the temperature's gradient would drown the others
        self.scalars = [p for p in trained if not p.ndim]
        self.group: list[Batch] = []
        self.losses: dict[str, float] = {}
        self.wrong: list[str] = []
        self.left_out: list[str] = []
        self.in_a_row = 0

    @property
    def complete(self) -> bool:
        return self.accelerator.sync_gradients

    def rate(self, step: int) -> float:
        return learning_rate(step, self.config, self.per_epoch)

    def shares(self, group: list[Batch]) -> list[dict[str, float]]:
        """Of each micro-batch of a step how many times the mean one's "captions" and "questions" it has, in all
        processes; the mean of a term over the step's is that of micro-batches, so weighed."""
        self.group = group
        if len(group) == 1:
            return [{}]
        counts = torch.tensor([[batch.captioned.sum(), batch.answered.sum()] for batch in group], dtype=torch.float)
        counts = self.accelerator.reduce(counts.to(self.accelerator.device), "sum")  # [accumulate, 2]
        times = counts / counts.mean(0).clamp(min=1 / len(group))
        return [dict(zip(("captions", "questions"), row, strict=True)) for row in times.tolist()]

    def micro_batch(
        self, batch: Batch, teacher: Teacher | None, step: int, share: dict[str, float]
    ) -> dict[str, float]:
        """Mean loss by term and in "total" of the micro-batches so far of `step`, from 0 on; {} if it is left out.

        share: of `shares`. The step's last micro-batch changes the weights. Raises UserError where a loss or a gradient
        is no finite number and the run is to stop there; else a warning says that the step is left out, and UserError
        that `MOST_LEFT_OUT` in a row were.
        """
        config, accelerator = self.config, self.accelerator
        for group in self.adamw.param_groups:
            group["lr"] = self.rate(step)
        with accelerator.accumulate(self.model), accelerator.autocast():
            losses = self.model(batch, teacher, step, step / self.per_epoch)
            losses = {term: loss * share.get(NEEDS.get(term, "captions"), 1.0) for term, loss in losses.items()}
            total = sum(config.weights[term] * loss for term, loss in losses.items())
            means = accelerator.reduce(torch.stack([*losses.values(), total]).detach().float(), "mean").tolist()
            for term, mean in zip([*losses, "total"], means, strict=True):
                self.losses[term] = self.losses.get(term, 0.0) + mean / config.accumulate
            if not self.wrong and not all(map(math.isfinite, means)):
                named = zip(losses, means, strict=False)
                self.wrong = [term for term, mean in named if not math.isfinite(mean)] or ["the total"]
            if not self.wrong:
                accelerator.backward(total)
            if self.complete:
                self.norm = math.nan if self.wrong else self._clip(teacher, step)
            if self.wrong and config.nonfinite == "stop":
                raise UserError(
                    f"{told(self.wrong)} in step {step}; lower the learning rate in a new folder, or leave such steps "
                    f"out with --nonfinite skip"
                )
            if not self.wrong:
                self.adamw.step()
            if not self.wrong or self.complete:
                self.adamw.zero_grad()
        return self._completed(step) if self.complete else self.losses

    def _clip(self, teacher: Teacher | None, step: int) -> float:
        """The gradient's norm before it is clipped; `wrong` says whose gradient holds what is no finite number."""
        norm, scaler = self.accelerator.clip_grad_norm_(self.clipped, self.config.clip).item(), self.accelerator.scaler
        sound = math.isfinite(norm) and all(p.grad is None or p.grad.isfinite() for p in self.scalars)
        if not sound and not (scaler and scaler.get_scale() >= 1):  # else fp16 may have overflowed: its scale shrinks
            batches = (batch.to(self.accelerator.device) for batch in self.group)
            losses = (self.learner(batch, teacher, step, step / self.per_epoch) for batch in batches)
            found = dict.fromkeys(term for some in losses for term in unsound(some, [*self.clipped, *self.scalars]))
            self.wrong = [f"the gradient of {term}" for term in found or ["the total"]]  # their sum's alone
            if scaler:
                scaler.update()  # or the next step could not be unscaled
        return norm

    def _completed(self, step: int) -> dict[str, float]:
        losses, wrong, self.losses, self.wrong = self.losses, self.wrong, {}, []
        self.left_out, self.in_a_row = wrong, self.in_a_row + 1 if wrong else 0
        if self.in_a_row == MOST_LEFT_OUT:
            raise UserError(
                f"{told(wrong)} in step {step}, the last of {MOST_LEFT_OUT} in a row that were left out; lower the "
                f"learning rate in a new folder"
            )
        if wrong:
            warnings.warn(f"{told(wrong)} in step {step}; the step is left out", stacklevel=4)
            self.learner.left_out()
            return {}
        self.learner.moved()
        return losses
