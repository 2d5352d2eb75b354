"""A runner of exported graphs as `dlip.evaluate` measures it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from dlip.common.errors import UserError
from dlip.data.transforms import ImageInput
from dlip.export.onnx_export import to_onnx
from dlip.export.onnx_runner import PAIR_BATCH, Runner
from dlip.models.tasks import Reranker


class MeasuredRunner:
    """What `dlip.models.protocol.Measured` names, by a `Runner`. Raises UserError for re-ranking by the decoder."""

    def __init__(self, runner: Runner, name: str):
        self.runner, self.name, self.abilities = runner, name, runner.abilities

    @property
    def temperature(self) -> float:
        return self.runner.temperature

    def evaluating(self):
        return nullcontext()

    def caption(
        self, images: list[ImageInput], num_beams: int = 3, max_new_tokens: int | None = None, batch_size: int = 8
    ) -> list[str]:
        parts = (images[first : first + batch_size] for first in range(0, len(images), batch_size))
        return [text for part in parts for text in self.runner.caption(part, num_beams, max_new_tokens)]

    def answer(
        self, images: list[ImageInput], questions: list[str], num_beams: int = 3, batch_size: int = 8
    ) -> list[str]:
        parts = (slice(first, first + batch_size) for first in range(0, len(images), batch_size))
        return [text for part in parts for text in self.runner.answer(images[part], questions[part], num_beams)]

    def encode(self, images: list[ImageInput], reranker: Reranker | None) -> tuple[Tensor, Tensor]:
        if reranker == "decoder":
            raise UserError("a model by its runner cannot rank by its decoder; leave rerank out")
        vectors = torch.from_numpy(self.runner.embed_images(images))
        if reranker is None:
            return vectors, vectors
        return vectors, torch.from_numpy(self.runner.encode(self.runner.part("itm"), images, "states"))

    def text_ids(self, texts: list[str], reranker: Reranker | None = None) -> tuple[Tensor, Tensor]:
        ids, mask = self.runner.tokenize(self.runner.part(reranker or "itc"), texts)
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def embed_ids(self, ids: Tensor, mask: Tensor) -> Tensor:
        (vectors,) = self.runner.part("itc").run("text", ["vector"], ids=ids.numpy(), mask=mask.numpy())
        return torch.from_numpy(vectors)

    def pair_logits(self, states: Tensor, ids: Tensor, mask: Tensor, reranker: Reranker) -> Tensor:
        part, logits = self.runner.part("itm"), []
        for some_ids, some_mask in zip(ids.split(PAIR_BATCH), mask.split(PAIR_BATCH), strict=True):
            image = np.repeat(states.numpy(), len(some_ids), 0)
            logits += part.run("fusion", ["match"], ids=some_ids.numpy(), mask=some_mask.numpy(), states=image)
        return torch.from_numpy(np.concatenate(logits))


@contextmanager
def int8_runner(model: str) -> Iterator[tuple[MeasuredRunner, float]]:
    """A model by its name as int8 graphs for `dlip.evaluate`, which last as long as the context, and the MB of its
    weights.

    Raises UserError as `to_onnx` does.
    """
    with TemporaryDirectory() as folder:
        runner = Runner(to_onnx(model, folder, int8=True)[0]["onnx-int8"], torch.get_num_threads())
        mb = sum((part.folder / "weights.bin").stat().st_size for part in runner.parts) / 1e6
        yield MeasuredRunner(runner, model), mb
