"""torch.compile with frozen weights. As `transformers` compiles its own decoders, keys and values have the size of the
whole text from the start, so that one graph serves every step."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dlip.common.errors import UserError
from dlip.export.backends.base import GraphBackend
from dlip.export.backends.torch_backends import TorchBackend
from dlip.export.onnx_export import GRAPHS, DecoderGraph
from dlip.export.onnx_runner import Part
from dlip.models.med import KeysValues, Med, TextEmbeddings
from dlip.training.layer_modes import can_compile
from dlip.vlm import VLM


class Compiled(GraphBackend, TorchBackend):
    """The modules of `dlip.export.onnx_export`, compiled; needs a C++ compiler."""

    lacks = {"int8": "its int8 needs a quantized graph from another package"}

    def load(self, folder):
        if not can_compile():
            raise UserError("torch.compile needs a C++ compiler on a CPU; install g++, or name one in CXX")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "cache")
        self.part = CompiledPart(VLM.load(folder / "model").med.eval(), folder, self.config, self.threads)


class StaticStep(DecoderGraph):
    """`DecoderGraph` for a buffer: `past` [L, 2, N, H, T, d], of which `length` tokens are there, `sources` int64 [N]:
    the row that holds each beam's past -> the same with another token in place of `present`"""

    def __init__(self, med: Med, abilities: frozenset[str]):
        super().__init__(med, abilities)
        self.med.text_decoder.bert.embeddings = EmbeddingsAt(med.text_decoder.bert.embeddings)

    def forward(self, token: Tensor, past: Tensor, length: Tensor, sources: Tensor, cross: list[Tensor]):
        cache = StaticPast(past.index_select(2, sources), length)
        return *self.step(token, None, cross, cache), torch.stack(cache.present)


class StaticPast:
    """The decoder's cache in a buffer [L, 2, N, H, T, d]; `length`: int64, tokens before."""

    def __init__(self, past: Tensor, length: Tensor):
        self.past, self.length, self.present = past, length.clone(), []
        self.mask = torch.arange(past.shape[4])[None] <= length

    def extend(self, layer: int, kv: KeysValues) -> KeysValues:
        here = (torch.arange(self.past.shape[4]) == self.length)[:, None]
        self.present.append(torch.where(here, torch.stack(kv), self.past[layer]))
        return self.present[-1].unbind()


class EmbeddingsAt(nn.Module):
    """`TextEmbeddings` of one token whose position is a tensor."""

    def __init__(self, embeddings: TextEmbeddings):
        super().__init__()
        self.embeddings = embeddings

    def forward(self, ids: Tensor, start: Tensor) -> Tensor:
        own = self.embeddings
        return own.LayerNorm(own.word_embeddings(ids) + own.position_embeddings(start))


class CompiledPart(Part):
    """The compiled modules of one model; they are compiled when they first see a batch size."""

    length = 24
    """Tokens of a decoder's buffer, at least."""

    def __init__(self, med: Med, folder: Path, config: dict, threads: int):
        super().__init__(folder, config, threads)
        graphs = GRAPHS | {"decoder": StaticStep}
        self.modules = {name: graph_class(med, med.abilities).eval() for name, graph_class in graphs.items()}
        self.sessions = {
            name: torch.compile(module, dynamic=False, options={"freezing": True})
            for name, module in self.modules.items()
        }

    def run(self, graph, outputs, **inputs):
        dtype = self.modules[graph].med.temp.dtype
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        tensors = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
        with torch.no_grad():
            results = dict(zip(self.modules[graph].outputs, self.sessions[graph](**tensors), strict=True))
        return [results[name].float().numpy() for name in outputs]

    def search(self, context, mask, prompt, num_beams, max_new_tokens, *options):
        self.length = max(self.length, min(len(prompt) + max_new_tokens, self.config["max_positions"]))
        return super().search(context, mask, prompt, num_beams, max_new_tokens, *options)

    def decoder(self, context, mask, beams):
        return CompiledDecoder(self, context, beams)


class CompiledDecoder:
    """Like `dlip.export.onnx_runner.Decoder`, for contexts without padding.

    The batch keeps its size when texts end, as every size is compiled anew: its last rows are computed for nothing.
    """

    @torch.no_grad()
    def __init__(self, part: CompiledPart, context: np.ndarray, beams: int):
        c, self.part, self.beams = part.config, part, beams
        context = torch.from_numpy(context).to(part.modules["context"].med.temp.dtype)
        self.cross = list(part.sessions["context"](context=context))
        self.past = context.new_zeros(c["layers"], 2, len(context) * beams, c["heads"], part.length, c["head_width"])
        self.sources, self.read = torch.arange(len(context) * beams), 0

    @torch.no_grad()
    def __call__(self, token: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        padded = np.pad(token, ((0, len(self.cross[0]) - len(token)), (0, 0)), "edge")
        scores, tokens, self.past = self.part.sessions["decoder"](
            token=torch.from_numpy(padded), past=self.past, length=torch.tensor(self.read), sources=self.sources,
            cross=self.cross,
        )  # fmt: skip
        self.sources, self.read = torch.arange(len(self.sources)), self.read + 1
        return scores[: len(token)].numpy(), tokens[: len(token)].numpy()

    def keep(self, rows: np.ndarray, beams: np.ndarray) -> None:
        contexts, moved = len(self.cross[0]), rows.tolist() != list(range(len(rows)))
        rows, beams = (np.pad(x, [(0, contexts - len(rows))] + [(0, 0)] * (x.ndim - 1), "edge") for x in (rows, beams))
        if moved:
            self.cross = [values[torch.from_numpy(rows)] for values in self.cross]
        self.sources = torch.from_numpy((rows[:, None] * self.beams + beams).ravel())
