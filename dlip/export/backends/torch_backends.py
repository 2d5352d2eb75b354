"""Backends in torch: stock `transformers` and this package."""

import numpy as np
import torch
from torch import Tensor

from dlip.export.backends.base import BEAMS, Backend
from dlip.export.transformers import CLASSES, to_stock
from dlip.models.fast.precision import convert_precision, pack
from dlip.models.generate import Decoder, generate
from dlip.models.grid_resize import normalized
from dlip.vlm import VLM

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NO_INT8 = "other backends were faster at it"


class TorchBackend(Backend):
    def __init__(self, precision: str, threads: int = 0):
        super().__init__(precision, threads)
        if threads:
            torch.set_num_threads(threads)

    def convert(self, vlm, folder, images):
        convert_precision(vlm.med, self.precision)
        vlm.save(folder / "model")

    def caption(self, images, beams=BEAMS, tokens=20):
        rows = self.continuations(images, torch.tensor([self.prompt] * len(images)), beams, tokens)
        return [row[len(self.prompt) :] for row in rows]


def best(log_probs: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Those of the best 2 * BEAMS tokens, and the tokens."""
    scores, tokens = log_probs.topk(2 * BEAMS)
    return scores.numpy(), tokens.numpy()


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
            self.pixels(images), prompt, num_beams=beams, max_new_tokens=tokens, do_sample=False,
            no_repeat_ngram_size=self.config["no_repeat_ngram_size"],
        ).tolist()  # fmt: skip
        return [row[: row.index(sep)] if sep in row else row for row in rows]

    @torch.inference_mode()
    def next_scores(self, images, ids):
        context = self.captioner.vision_model(self.pixels(images)).last_hidden_state
        logits = self.captioner.text_decoder(torch.from_numpy(ids), encoder_hidden_states=context).logits
        return best(logits.float().log_softmax(-1))


class Dlip(TorchBackend):
    """This package."""

    lacks = {"bf16": "it is for serving, so packed as well", "int8": NO_INT8}
    packed = False

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
        size = self.med.config.no_repeat_ngram_size
        return generate(self.med, self.states(images), None, prompt, beams, tokens, no_repeat_ngram_size=size)

    @torch.inference_mode()
    def log_probs(self, images: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Log-probabilities of all next tokens after each of given ones [B, T, V]."""
        decoder = Decoder(self.med, self.states(images), None, *ids.shape)
        return torch.stack([decoder(token) for token in torch.from_numpy(ids).split(1, 1)], 1).float().numpy()

    def next_scores(self, images, ids):
        return best(torch.from_numpy(self.log_probs(images, ids)))


class Packed(Dlip):
    """This package with its weights laid out for inference."""

    lacks, packed = {"int8": NO_INT8}, True
