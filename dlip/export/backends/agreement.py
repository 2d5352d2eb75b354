"""What backends are compared and timed by: the same images and texts, and how far their numbers are apart."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from dlip.data.scenes.dataset import Scenes
from dlip.data.scenes.world import SIDE
from dlip.export.backends.base import BEAMS, Backend
from dlip.models.config import ModelConfig

if TYPE_CHECKING:
    from dlip.export.backends.worker import Worker
    from dlip.vlm import VLM  # which imports torch

OUTPUTS = {"caption": "caption", "states": "image_states", "pair": "pair_score"}
"""What is compared -> method of `Backend`."""
TOKENS, TEXT = 20, 12
"""Tokens of a caption, and of a text that is matched."""
Outputs = dict[str, np.ndarray | list[list[int]]]


class Inputs:
    """Random images and texts; scenes for a model that was trained on them."""

    def __init__(self, c: ModelConfig, n: int):
        random, side = np.random.default_rng(0), c.image_size
        if side == SIDE:
            self.images = np.stack([item.image for item in Scenes("test", size=n)])  # uint8 [n, S, S, 3]
        else:
            self.images = random.integers(256, size=(n, side, side, 3), dtype=np.uint8)
        self.ids = random.integers(10, c.vocab_size, size=(n, TEXT))
        self.ids[:, 0] = c.enc_id
        self.forced = np.where(np.arange(TEXT) == 0, c.dec_id, self.ids)

    def of(self, output: str, batch: int) -> tuple:
        """Arguments of an output's method."""
        images = self.images[:batch]
        return {"caption": (images, BEAMS, TOKENS), "states": (images,), "pair": (images, self.ids[:batch])}[output]

    def outputs(self, backend: "Backend | Worker", names: Iterable[str]) -> Outputs:
        """What a backend gives for one image. names: of `OUTPUTS`."""
        scores = backend.result("next_scores", self.images[:1], self.forced[:1])
        return {name: backend.result(OUTPUTS[name], *self.of(name, 1)) for name in names} | {"scores": scores}


def outputs_of(vlm: "VLM") -> list[str]:
    """Those of `OUTPUTS` that a model was trained for."""
    return [name for name in OUTPUTS if name != "pair" or "itm" in vlm.med.abilities]


def relative_errors(expected: Outputs, actual: Outputs) -> dict[str, float]:
    """Norm of the differences of image states, ITM logits and forced tokens' log-probabilities over that of the
    expected."""
    return {
        key: float(np.linalg.norm(actual[key] - expected[key]) / np.linalg.norm(expected[key]))
        for key in ("states", "pair", "scores")
        if key in expected
    }
