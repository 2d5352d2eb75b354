"""The interface of backends, and what those that run the graphs of `dlip.export.onnx_export` share."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from dlip.common.files import read_json, write_json
from dlip.export.onnx_runner import Part

if TYPE_CHECKING:
    from dlip.export.onnx_runner import Runner
    from dlip.vlm import VLM

CONFIG, BEAMS = "backend.json", 3
PRECISIONS = ("fp32", "bf16", "int8")


class Backend(ABC):
    """A model as one library runs it. Images are uint8 [B, S, S, 3]; results are fp32 arrays."""

    model: "VLM | Runner"
    """What `load` made, for use outside of benchmarks."""

    packages: ClassVar[tuple[str, ...]] = ()
    """Optional packages that it needs."""
    lacks: ClassVar[dict[str, str]] = {}
    """Precision that it does not support -> the reason."""

    def __init__(self, precision: str, threads: int = 0):
        """precision: one of `PRECISIONS`. threads: 0 leaves their number to the library."""
        self.precision, self.threads = precision, threads

    def prepare(self, model: str | Path, folder: Path, images: np.ndarray) -> Self:
        """Load a model from `folder`, into which it is converted first unless it is there.

        images: examples by which the ranges of 8-bit activations are chosen. Raises UserError if the model cannot be
        converted.
        """
        if not (folder / CONFIG).is_file():
            from dlip.export.onnx_export import sizes
            from dlip.vlm import VLM

            folder.mkdir(parents=True, exist_ok=True)
            vlm = VLM.load(model)
            self.convert(vlm, folder, images)
            c = vlm.med.config
            write_json(folder / CONFIG, {**sizes(vlm.med), "mean": c.image_mean, "std": c.image_std})
        self.config = read_json(folder / CONFIG)
        self.prompt = [self.config["dec_id"], *self.config["prompt_ids"]]
        self.load(folder)
        return self

    @abstractmethod
    def convert(self, vlm: "VLM", folder: Path, images: np.ndarray) -> None:
        """Write what `load` reads."""

    @abstractmethod
    def load(self, folder: Path) -> None: ...

    def result(self, method: str, *arguments):
        """The result of a method by its name, as `Worker.result` gives it."""
        return getattr(self, method)(*arguments)

    @abstractmethod
    def image_states(self, images: np.ndarray) -> np.ndarray:
        """States of the image encoder [B, P+1, Di]."""

    @abstractmethod
    def pair_score(self, images: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """ITM logits [B, 2] of each image with its text; ids int64 [B, T], from [ENC] or [CLS] on, without padding."""

    @abstractmethod
    def caption(self, images: np.ndarray, beams: int = BEAMS, tokens: int = 20) -> list[list[int]]:
        """Tokens of each image's caption, without prompt and [SEP]; at most `tokens`."""

    @abstractmethod
    def next_scores(self, images: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities of the best next tokens after each of given tokens, and those tokens [B, T, 2 * BEAMS].

        ids: int64 [B, T], from [DEC] on.
        """


class GraphBackend(Backend):
    """A backend that runs graphs; `load` sets `part`."""

    part: Part

    def image_states(self, images):
        return self.part.run("image", ["states"], pixels=images)[0]

    def pair_score(self, images, ids):
        mask = np.ones(ids.shape, bool)
        return self.part.run("fusion", ["match"], ids=ids, mask=mask, states=self.image_states(images))[0]

    def caption(self, images, beams=BEAMS, tokens=20):
        context = self.image_states(images)
        mask, size = np.ones(context.shape[:2], bool), self.config["no_repeat_ngram_size"]
        return self.part.search(context, mask, self.prompt, beams, tokens, size)

    def next_scores(self, images, ids):
        context = self.image_states(images)
        decoder = self.part.decoder(context, np.ones(context.shape[:2], bool), BEAMS)
        steps = [decoder(token.repeat(BEAMS, 1)) for token in np.split(ids, ids.shape[1], 1)]
        best = slice(2 * BEAMS)
        scores, tokens = (np.stack([values[:, 0, best] for values in output], 1) for output in zip(*steps, strict=True))
        return scores, tokens
