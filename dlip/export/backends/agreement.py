"""How backends are compared: the images and texts that all of them read, and how far apart their outputs are."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dlip.data.scenes.dataset import Scenes
from dlip.data.transforms import resize_square
from dlip.export.backends.base import BEAMS, Backend
from dlip.models.config import ModelConfig

if TYPE_CHECKING:
    from dlip.export.backends.torch_backends import Dlip  # which imports torch, as VLM does
    from dlip.export.backends.worker import Worker
    from dlip.vlm import VLM

OUTPUTS = {"caption": "caption", "states": "image_states", "pair": "pair_score", "scores": "next_scores"}
"""What is compared -> method of `Backend`."""
BATCHES = (1, 8)
TOKENS, TEXT = 20, 12
"""Tokens of a caption, and of a text that is matched or continued."""
Outputs = dict[tuple[str, int], object]
"""(output, batch) -> its value."""


class Inputs:
    """Scenes at the model's size, and random texts."""

    def __init__(self, c: ModelConfig, n: int):
        random = np.random.default_rng(0)
        self.pil = [Image.fromarray(item.image) for item in Scenes("val", size=n)]
        self.images = np.stack([resize_square(image, c.image_size) for image in self.pil])  # uint8 [n, S, S, 3]
        self.ids = random.integers(10, c.vocab_size, size=(n, TEXT))
        self.ids[:, 0] = c.enc_id
        self.forced = np.where(np.arange(TEXT) == 0, c.dec_id, self.ids)

    def of(self, output: str, batch: int) -> tuple:
        """Arguments of an output's method."""
        more = {"caption": (BEAMS, TOKENS), "states": (), "pair": (self.ids[:batch],), "scores": (self.forced[:batch],)}
        return self.images[:batch], *more[output]

    def outputs(self, backend: "Backend | Worker", names: Iterable[str], batches: Iterable[int] = BATCHES) -> Outputs:
        """What a backend gives. names: of `OUTPUTS`."""
        return {(name, n): backend.result(OUTPUTS[name], *self.of(name, n)) for n in batches for name in names}


def outputs_of(vlm: "VLM") -> list[str]:
    """Those of `OUTPUTS` that a model was trained for."""
    return [name for name in OUTPUTS if name != "pair" or "itm" in vlm.med.abilities]


def reference(backend: "Dlip", inputs: Inputs, names: Iterable[str], batches: Iterable[int] = BATCHES) -> Outputs:
    """What others are compared with: this package's outputs in fp32, and all tokens' log-probabilities."""
    every = {("log_probs", n): backend.log_probs(*inputs.of("scores", n)) for n in batches}
    return inputs.outputs(backend, names, batches) | every


def relative_errors(expected: Outputs, actual: Outputs) -> dict[tuple[str, int], float]:
    """(output, batch) -> norm of the differences of image states and ITM logits over the norm of the expected; of
    log-probabilities as in `score_error`.

    expected: as `reference` gives it.
    """
    errors = {}
    for (name, n), values in actual.items():
        if name == "scores":
            errors[name, n] = score_error(expected["log_probs", n], *values)
        elif name != "caption":
            errors[name, n] = _norm(values - expected[name, n]) / _norm(expected[name, n])
    return errors


def score_error(log_probs: np.ndarray, scores: np.ndarray, tokens: np.ndarray) -> float:
    """Norm of the difference of scores [B, T, K] from the log-probabilities [B, T, V] of their tokens, over the norm of
    what these are above the mean of all tokens, which says nothing of the text."""
    expected = np.take_along_axis(log_probs, tokens, -1)
    return _norm(scores - expected) / _norm(expected - log_probs.mean(-1, keepdims=True))


def _norm(values: np.ndarray) -> float:
    return float(np.linalg.norm(values))
