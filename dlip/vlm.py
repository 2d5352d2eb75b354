"""A vision-language model as its users see it: images and texts in, captions, answers and scores out."""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dlip.checkpoints.load import load_model, save_model
from dlip.common.errors import UserError, check_at_least, first_line
from dlip.common.text import plural
from dlip.data.stock_tokenizer import StockTokenizer
from dlip.data.tokenizer import Tokenizer
from dlip.data.transforms import ImageInput, as_list, load_image
from dlip.models.composite import Composite
from dlip.models.dual_encoder import DualEncoder
from dlip.models.fast.linear import refuse_packed
from dlip.models.fast.precision import pack
from dlip.models.generate import beam_search, generate
from dlip.models.med import Med
from dlip.models.protocol import Model

if TYPE_CHECKING:
    from dlip.export.optimize import Optimized

MAX_ANSWER_TOKENS = 10


class VLM:
    """A model with its tokenizer. Images are PIL images, paths, or pixels; methods run in eval mode without gradients.

    Raises MissingAbility, a UserError, if the checkpoint has no weights for what a method computes.
    """

    def __init__(self, med: Med | DualEncoder | Composite, tokenizer: Tokenizer | StockTokenizer, name: str = "model"):
        self.med, self.tokenizer, self.name = med, tokenizer, name
        med.tokenizer = tokenizer
        for member in med.members:
            member.tokenizer = member.tokenizer or tokenizer

    @classmethod
    def load(cls, name: str | Path) -> "VLM":
        """Load a model by name: a built-in (`scenes/teacher`), a run folder, a folder or hub id in Hugging Face BLIP
        layout, an original BLIP `.pth`, or a folder or hub id of a CLIP or SigLIP; several joined by "+" become one
        teacher.

        Raises UserError if there is no such model (see `dlip.checkpoints.load.load_model`).
        """
        return cls(*load_model(name), name=str(name))

    def save(self, folder: str | Path) -> None:
        """Write a folder that `load` reads. Raises UserError for a packed model, and for a folder with the record of
        another one."""
        if (record := Path(folder) / "record.json").exists():
            raise UserError(f"{record} describes the model that is there; save into another folder")
        save_model(self.med, self.tokenizer, folder)

    def pack(self) -> "VLM":
        """Make inference on a CPU faster, in place and for good; see `dlip.models.fast.precision.pack`."""
        pack(self.med)
        return self

    def optimize(self, tolerance: float = 0.05) -> "Optimized":
        """Return this model with `caption` (not sampled), `answer`, `match`, `similarity` and embeddings, each run by
        the backend that is the fastest at it on this machine's CPU; `name` says which. See
        `dlip.export.optimize.Optimized`."""
        from dlip.export.optimize import optimize  # nothing else here imports what lies above

        return optimize(self, tolerance)[0]

    @property
    def device(self) -> torch.device:
        return self.med.temp.device

    def to(self, device: str | torch.device) -> "VLM":
        """Move the weights to a device, as in `model.to("cuda")`, and return this model.

        Raises UserError for a packed model, and for a device that torch does not find.
        """
        refuse_packed(self.med)
        try:
            self.med.to(device)
        except (AssertionError, RuntimeError) as error:
            raise UserError(
                f"the model cannot be moved to {device} ({first_line(error)}); name a device that torch finds here"
            ) from error
        return self

    @property
    def image_size(self) -> int:
        """Side of the largest square that one of its models reads, in px."""
        return max(med.config.image_size for med in self.med.members)

    def tokenize(self, texts: Iterable[str], med: Model | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids int64 [N, T] and mask bool [N, T] as `med` reads them, truncated to its longest text."""
        med = med or self.med
        ids, mask = med.tokenizer.encode(list(texts), max_length=med.config.max_text)
        return ids.to(self.device), mask.to(self.device)

    def words_read(self, text: str, med: Model | None = None) -> int:
        """Number of words, separated by spaces, that `med` reads of a text before it is truncated."""
        med = med or self.med
        longest = med.config.max_text
        ends = [0, *(word.end() for word in re.finditer(r"\S+", text))]
        beginnings = [text[:end] for end in ends[: longest + 1]]
        ids, _ = med.tokenizer.encode([*beginnings, text, f"{text} a"], max_length=longest)
        if not ids[-1].equal(ids[-2]):  # there is room for more
            return len(ends) - 1
        return next((words for words in range(len(beginnings)) if ids[words].equal(ids[-2])), longest)

    def unknown_words(self, text: str, med: Model | None = None) -> list[str]:
        """Words, separated by spaces, in which the vocabulary of `med` lacks a character."""
        words, unknown = text.split(), (med or self.med).tokenizer.unknown_id
        ids, _ = self.tokenize(words, med)
        return [word for word, tokens in zip(words, ids, strict=True) if unknown in tokens.tolist()]

    @torch.no_grad()
    def image_states(self, images: Iterable[ImageInput], med: Model | None = None) -> torch.Tensor:
        """States [B, P+1, Di] of the image encoder of `med` (of a composite the first model)."""
        med = (med or self.med.model_for_states("image")).eval()
        return med.encode_image(self.pixels(images, med))

    def pixels(self, images: Iterable[ImageInput], med: Model):
        """Images as `med.encode_image` reads them. Raises UserError if an image cannot be read."""
        return med.preprocess([load_image(image) for image in images])

    def caption(
        self, images: Iterable[ImageInput], num_beams: int = 3, max_new_tokens: int | None = None,
        top_p: float | None = None,
    ) -> list[str]:  # fmt: skip
        """A caption for each image, without the prompt: by beam search, greedily (one beam), or sampled (`top_p`).

        max_new_tokens: by default the model's `max_text`, as in `dlip.evaluate`.
        """
        return [texts[0] for texts in self.captions(images, 1, num_beams, max_new_tokens, top_p)]

    @torch.inference_mode()
    def captions(
        self,
        images: Iterable[ImageInput],
        n: int,
        num_beams: int = 3,
        max_new_tokens: int | None = None,
        top_p: float | None = None,
        prompt: str | None = None,
    ) -> list[list[str]]:
        """`n` captions for each image, without the prompt: the best of a beam search, or sampled (`top_p`).

        prompt: text that captions continue, in place of the model's own. Raises UserError if it leaves no room for a
        caption, if a number is out of range, or if there are fewer beams than captions.
        """
        images = as_list(images, "image")
        check_at_least(1, n=n, num_beams=num_beams, max_new_tokens=max_new_tokens)
        if top_p is not None and not 0 < top_p <= 1:
            raise UserError(f"top_p is {top_p}; give a number above 0 and at most 1")
        if not images:
            return []
        if top_p is None and n > num_beams:
            raise UserError(f"{plural(num_beams, 'beam')} cannot give {n} captions of an image; use {n} or more")
        med = self.med.model_for("lm").eval()
        tokenizer = med.tokenizer
        words = med.config.prompt_ids if prompt is None else tokenizer.encode([prompt])[0][0, 1:-1].tolist()
        if len(words) + 1 >= med.config.max_positions:
            raise UserError(f"the prompt has {len(words)} tokens; give at most {med.config.max_positions - 2}")
        start = torch.tensor([[med.config.dec_id, *words]], device=self.device).expand(len(images), -1)
        states = self.image_states(images, med)
        rows = generate(
            med, states, None, start, num_beams, max_new_tokens or med.config.max_text, top_p, n=n,
            no_repeat_ngram_size=med.config.no_repeat_ngram_size,
        )  # fmt: skip
        texts = tokenizer.decode([row[start.shape[1] :] for row in rows])
        return [texts[first : first + n] for first in range(0, len(texts), n)]

    @torch.inference_mode()
    def answer(self, images: Iterable[ImageInput], questions: Iterable[str], num_beams: int = 3) -> list[str]:
        """The answer to each image's question. Raises UserError if their numbers differ or there is no beam."""
        images, questions = pairs(images, questions, "question")
        check_at_least(1, num_beams=num_beams)
        if not images:
            return []
        med, *inputs = self._answer_inputs(images, questions)
        return med.tokenizer.decode(generate(med, *inputs, num_beams, MAX_ANSWER_TOKENS))

    @torch.inference_mode()
    def top_answers(
        self, images: Iterable[ImageInput], questions: Iterable[str], k: int = 5
    ) -> list[list[tuple[str, float]]]:
        """The `k` (2 or more) best answers of a beam search to each image's question, the most probable first, each
        with its probability, 0 to 1. Raises UserError if the numbers of images and questions differ, or k is below
        2."""
        images, questions = pairs(images, questions, "question")
        check_at_least(2, k=k)
        if not images:
            return []
        ranked, (med, *inputs) = [], self._answer_inputs(images, questions)
        for finished in beam_search(med, *inputs, k, MAX_ANSWER_TOKENS):
            answers = med.tokenizer.decode([row for _, row in finished])
            probabilities = [math.exp(mean * (len(row) - 1)) for mean, row in finished]  # the first token is [DEC]
            ranked.append(sorted(zip(answers, probabilities, strict=True), key=lambda answer: -answer[1]))
        return ranked

    def _answer_inputs(
        self, images: list, questions: list[str]
    ) -> tuple[Med, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The model, the questions' states [N, Q, Di], their mask, and the first token of answers [N, 1]."""
        med = self.med.model_for("vqa").eval()
        fused, mask = self._fuse(images, questions, med)
        first = torch.full((len(images), 1), med.config.dec_id, device=self.device)
        return med, med.question_states(fused), mask, first

    def _fuse(self, images: list, texts: list[str], med: Med) -> tuple[torch.Tensor, torch.Tensor]:
        """Texts read together with their images [N, T, Dt], and their mask; the same object is encoded once."""
        ids, mask = self.tokenize(texts, med)
        distinct = {id(image): image for image in images}
        index = {key: row for row, key in enumerate(distinct)}
        rows = None  # the texts of a single image share its keys and values
        if len(distinct) > 1:
            rows = torch.tensor([index[id(image)] for image in images], device=self.device)
        return med.fuse(ids, mask, self.image_states(distinct.values(), med), rows), mask

    def similarity(self, images: Iterable[ImageInput], texts: Iterable[str]) -> torch.Tensor:
        """ITC cosine of each image with each text [I, T]; divided by `med.temp`, the logits of ITC."""
        return self.embed_images(images) @ self.embed_texts(texts).T

    @torch.inference_mode()
    def embed_images(self, images: Iterable[ImageInput]) -> torch.Tensor:
        """Unit vectors [I, E] that ITC compares, for galleries that are searched more than once."""
        images, med = as_list(images, "image"), self.med.model_for("itc").eval()
        if not images:
            return torch.zeros(0, med.config.embed_dim, device=self.device)
        return med.project_image(self.image_states(images, med))

    @torch.inference_mode()
    def embed_texts(self, texts: Iterable[str]) -> torch.Tensor:
        """Unit vectors [T, E] that ITC compares."""
        texts, med = as_list(texts, "text"), self.med.model_for("itc").eval()
        if not texts:
            return torch.zeros(0, med.config.embed_dim, device=self.device)
        return med.project_text(med.encode_text(*self.tokenize(texts, med)))

    @torch.inference_mode()
    def match(self, images: Iterable[ImageInput], texts: Iterable[str]) -> torch.Tensor:
        """ITM probability that each text describes its image [N]. Raises UserError if their numbers differ."""
        images, texts = pairs(images, texts, "text")
        if not images:
            return torch.zeros(0)
        med = self.med.model_for("itm").eval()
        return med.match_logits(self._fuse(images, texts, med)[0]).float().softmax(-1)[:, 1]


def pairs(images: Iterable[ImageInput], texts: Iterable[str], noun: str) -> tuple[list, list]:
    """Both as lists. Raises UserError if their numbers differ."""
    images, texts = as_list(images, "image"), as_list(texts, noun)
    if len(images) != len(texts):
        raise UserError(f"{plural(len(images), 'image')} and {plural(len(texts), noun)}; give one {noun} per image")
    return images, texts
