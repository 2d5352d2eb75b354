"""Backends in torch: stock `transformers`, this package, and torch.compile."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dlip.common.errors import UserError
from dlip.export.backends.base import BEAMS, Backend, GraphBackend
from dlip.export.onnx_export import GRAPHS
from dlip.export.onnx_runner import Part
from dlip.export.transformers import CLASSES, to_stock
from dlip.models.fast.precision import convert_precision, pack
from dlip.models.generate import Decoder, generate
from dlip.models.grid_resize import normalized
from dlip.models.med import Med
from dlip.training.layer_modes import can_compile
from dlip.vlm import VLM

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TorchBackend(Backend):
    def __init__(self, precision: str, threads: int = 0):
        super().__init__(precision, threads)
        if threads:
            torch.set_num_threads(threads)

    def caption(self, images, beams=BEAMS, tokens=20):
        rows = self.continuations(images, torch.tensor([self.prompt] * len(images)), beams, tokens)
        return [row[len(self.prompt) :] for row in rows]


class Stock(TorchBackend):
    """The stock classes of transformers with their own `generate`."""

    lacks = {"int8": "its int8 is for GPUs or comes with another package"}

    def convert(self, vlm, folder, images):
        for task in ("captioning", "retrieval"):
            to_stock(vlm.med, task).to(DTYPES[self.precision]).save_pretrained(folder / task)

    def load(self, folder):
        self.captioner, self.matcher = (
            CLASSES[task].from_pretrained(folder / task, dtype=DTYPES[self.precision]).eval()
            for task in ("captioning", "retrieval")
        )

    def pixels(self, images: np.ndarray) -> Tensor:
        mean, std = (torch.tensor(self.config[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
        squares = torch.from_numpy(images).permute(0, 3, 1, 2)
        return normalized(squares, self.config["image_size"], mean, std).to(DTYPES[self.precision])

    @torch.inference_mode()
    def image_states(self, images):
        return self.matcher.vision_model(self.pixels(images)).last_hidden_state.float().numpy()

    @torch.inference_mode()
    def pair_score(self, images, ids):
        return self.matcher(torch.from_numpy(ids), self.pixels(images)).itm_score.float().numpy()

    def continuations(self, images, prompt, beams, tokens):
        sep = self.config["sep_id"]
        prompt = torch.cat([prompt, torch.full_like(prompt[:, :1], sep)], 1)  # `generate` drops it
        rows = self.captioner.generate(
            self.pixels(images), prompt, num_beams=beams, max_new_tokens=tokens, do_sample=False
        ).tolist()
        return [row[: row.index(sep)] if sep in row else row for row in rows]

    @torch.inference_mode()
    def next_scores(self, images, ids):
        context = self.captioner.vision_model(self.pixels(images)).last_hidden_state
        logits = self.captioner.text_decoder(torch.from_numpy(ids), encoder_hidden_states=context).logits
        return logits.float().log_softmax(-1).amax(-1).numpy()


class Dlip(TorchBackend):
    """This package."""

    lacks = dict.fromkeys(("bf16", "int8"), "it is for serving, so packed as well")
    packed = False

    def convert(self, vlm, folder, images):
        convert_precision(vlm.med, self.precision)
        vlm.save(folder / "model")

    def load(self, folder):
        self.model = VLM.load(folder / "model")
        self.med = pack(self.model.med) if self.packed else self.model.med

    def states(self, images: np.ndarray) -> Tensor:
        return self.med.encode_image(self.med.normalize(torch.from_numpy(images).permute(0, 3, 1, 2)))

    @torch.inference_mode()
    def image_states(self, images):
        return self.states(images).float().numpy()

    @torch.inference_mode()
    def pair_score(self, images, ids):
        ids = torch.from_numpy(ids)
        fused = self.med.fuse_with(
            self.med.text_encoder.cross(self.states(images)), ids, torch.ones_like(ids, dtype=torch.bool),
            first_only=True,
        )  # fmt: skip
        return self.med.match_logits(fused).float().numpy()

    @torch.inference_mode()
    def continuations(self, images, prompt, beams, tokens):
        return generate(self.med, self.states(images), None, prompt, beams, tokens)

    @torch.inference_mode()
    def next_scores(self, images, ids):
        decoder = Decoder(self.med, self.states(images), None, *ids.shape)
        return torch.stack([decoder(token).amax(-1) for token in torch.from_numpy(ids).split(1, 1)], 1).numpy()


class Packed(Dlip):
    """This package with its weights laid out for inference."""

    lacks, packed = {}, True


class Compiled(GraphBackend, TorchBackend):
    """The modules of `dlip.export.onnx_export` by torch.compile with frozen weights; needs a C++ compiler."""

    lacks = {"int8": "its int8 needs a quantized graph from another package"}

    def convert(self, vlm, folder, images):
        convert_precision(vlm.med, self.precision)
        vlm.save(folder / "model")

    def load(self, folder):
        if not can_compile():
            raise UserError("torch.compile needs a C++ compiler on a CPU; install g++, or name one in CXX")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "cache")
        self.part = CompiledPart(VLM.load(folder / "model").med.eval(), folder, self.config, self.threads)


class CompiledPart(Part):
    """The compiled modules of one model; they are compiled when they first see a batch size."""

    def __init__(self, med: Med, folder: Path, config: dict, threads: int):
        super().__init__(folder, config, threads)
        self.modules = {name: of(med, med.abilities).eval() for name, of in GRAPHS.items()}
        self.sessions = {
            name: torch.compile(module, dynamic=False, options={"freezing": True})
            for name, module in self.modules.items()
        }

    @torch.no_grad()
    def __call__(self, graph: str, **inputs):
        past = inputs.get("past")
        if past is not None and past.shape[5] < 2:  # torch.compile would make code for 0 and for 1 alone
            return self.modules[graph](**inputs)
        if past is not None:
            torch._dynamo.mark_dynamic(past, 5)
        return self.sessions[graph](**inputs)

    def run(self, graph, outputs, **inputs):
        dtype = self.modules[graph].med.temp.dtype
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        tensors = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
        results = dict(zip(self.modules[graph].outputs, self(graph, **tensors), strict=True))
        return [results[name].float().numpy() for name in outputs]

    def decoder(self, context, mask, beams):
        return CompiledDecoder(self, context, beams)


class CompiledDecoder:
    """Like `dlip.export.onnx_runner.Decoder`, for contexts without padding.

    The batch keeps its size when texts end, as every size is compiled anew: its last rows are computed for nothing.
    """

    def __init__(self, part: CompiledPart, context: np.ndarray, beams: int):
        c, self.part, n = part.config, part, len(context)
        context = torch.from_numpy(context).to(part.modules["context"].med.temp.dtype)
        self.cross, self.mask = list(part("context", context=context)), torch.ones(context.shape[:2], dtype=torch.bool)
        self.past = context.new_zeros(c["layers"], 2, n, beams, c["heads"], 0, c["head_width"])

    def __call__(self, token: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        padded = np.pad(token, ((0, len(self.mask) - len(token)), (0, 0)), "edge")
        scores, tokens, self.past = self.part(
            "decoder", token=torch.from_numpy(padded), past=self.past, mask=self.mask, cross=self.cross
        )
        return scores[: len(token)].numpy(), tokens[: len(token)].numpy()

    def keep(self, rows: np.ndarray, beams: np.ndarray) -> None:
        missing = len(self.mask) - len(rows)
        if rows.tolist() != list(range(len(self.mask))):
            rows, beams = np.pad(rows, (0, missing), "edge"), np.pad(beams, ((0, missing), (0, 0)), "edge")
            self.cross = [values[torch.from_numpy(rows)] for values in self.cross]
        self.past = self.past[:, :, torch.from_numpy(rows)[:, None], torch.from_numpy(beams)]
