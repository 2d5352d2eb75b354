"""The teacher in training: frozen, always in eval mode, without gradients."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from dlip.data.batch import Batch
from dlip.models.features import Features, Want
from dlip.models.protocol import Model
from dlip.training.caches.features import FeatureCache


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
