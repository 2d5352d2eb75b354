"""A vision-language model as its users see it: images and texts in, captions, answers and scores out."""

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dlip.checkpoints.load import load_model, save_model
from dlip.common.errors import UserError, check_at_least, first_line
from dlip.common.text import plural
from dlip.data.stock_tokenizer import StockTokenizer
from dlip.data.tokenizer import Tokenizer
from dlip.data.transforms import ImageInput, as_list, load_image
from dlip.models.fast.linear import refuse_packed
from dlip.models.fast.precision import cast, pack
from dlip.models.generate import beam_search, generate
from dlip.models.med import Med
from dlip.models.protocol import Model
from dlip.models.tasks import Reranker
from dlip.models.token_ids import trim

if TYPE_CHECKING:
    from dlip.export.optimize import Optimized

Images = ImageInput | Iterable[ImageInput]
Texts = str | Iterable[str]
MAX_ANSWER_TOKENS = 10
TEXT_BATCH, QUESTION_BATCH = 64, 128
RERANKS_BY = {"itm": "itm", "decoder": "lm", None: "itc"}
"""Reranker -> the ability that it needs."""


class VLM:
    """A model with its tokenizer. Methods run in eval mode, without gradients.

    images: one or many, each a PIL image, a path, or pixels uint8 [H, W, 3]. One image gives one text where a method
    returns texts. Raises MissingAbility, a UserError, if the checkpoint has no weights for what a method computes.
    """

    def __init__(self, med: Model, tokenizer: Tokenizer | StockTokenizer, name: str = "model"):
        self.med, self.tokenizer, self.name = med, tokenizer, name
        med.tokenizer = tokenizer
        for member in med.members:
            member.tokenizer = member.tokenizer or tokenizer

    # --- the model itself ---------------------------------------------------------------------------------------------

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
        """Return this model with each method run by the backend that is the fastest at it on this machine's CPU; see
        `dlip.export.optimize.Optimized`."""
        from dlip.export.optimize import optimize  # nothing else here imports what lies above

        return optimize(self, tolerance)[0]

    def to(self, device: str | torch.device | torch.dtype | None = None, dtype: torch.dtype | None = None) -> "VLM":
        """Move or convert the weights in place, as torch does: `model.to("cuda")`, `model.to(torch.bfloat16)`.

        Raises UserError for a packed model, and for a device that torch does not find.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        refuse_packed(self.med)
        try:
            if device is not None:
                self.med.to(device)
        except (AssertionError, RuntimeError) as error:
            raise UserError(
                f"the model cannot be moved to {device} ({first_line(error)}); name a device that torch finds here"
            ) from error
        if dtype is not None:
            cast(self.med, dtype)
        return self

    @property
    def device(self) -> torch.device:
        return self.med.temp.device

    @property
    def abilities(self) -> frozenset[str]:
        """What it was trained for, of `ABILITIES`."""
        return self.med.abilities

    @property
    def temperature(self) -> float:
        """Of ITC, whose logits are the cosines divided by it."""
        return self.med.model_for("itc").temp.item()

    @property
    def steps(self) -> int:
        """Decoder steps that it has computed."""
        return sum(med.steps for med in self.med.members)

    @property
    def image_size(self) -> int:
        """Side of the largest square that one of its models reads, in px."""
        return max(med.config.image_size for med in self.med.members)

    # --- texts and images ---------------------------------------------------------------------------------------------

    def tokenize(self, texts: Iterable[str], med: Model | None = None) -> tuple[Tensor, Tensor]:
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
        words, med = text.split(), med or self.med
        ids, _ = self.tokenize(words, med)
        return [word for word, tokens in zip(words, ids, strict=True) if med.tokenizer.unknown_id in tokens.tolist()]

    def pixels(self, images: Iterable[ImageInput], med: Model):
        """Images as `med.encode_image` reads them. Raises UserError if an image cannot be read."""
        return med.preprocess([load_image(image) for image in images])

    @torch.no_grad()
    def image_states(self, images: Iterable[ImageInput], med: Model | None = None) -> Tensor:
        """States [B, P+1, Di] of the image encoder of `med` (of a composite the first model)."""
        med = (med or self.med.model_for_states("image")).eval()
        return med.encode_image(self.pixels(images, med))

    # --- captions and answers -----------------------------------------------------------------------------------------

    def caption(
        self,
        images: Images,
        num_beams: int = 3,
        max_new_tokens: int | None = None,
        top_p: float | None = None,
        batch_size: int = 8,
    ) -> str | list[str]:
        """A caption of each image, without the prompt: by beam search, greedily (one beam), or sampled (`top_p`).

        max_new_tokens: by default the model's `max_text`, as in `dlip.evaluate`. batch_size: images at a time.
        """
        check_at_least(1, batch_size=batch_size)
        some = [images] if is_single(images) else as_list(images, "image")
        parts = (self.captions(part, 1, num_beams, max_new_tokens, top_p) for part in _parts(some, batch_size))
        texts = [captions[0] for part in parts for captions in part]
        return texts[0] if is_single(images) else texts

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
        """`n` captions for each image of a batch, without the prompt: the best of a beam search, or sampled (`top_p`).

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
        c, tokenizer = med.config, med.tokenizer
        words = c.prompt_ids if prompt is None else tokenizer.encode([prompt])[0][0, 1:-1].tolist()
        if len(words) + 1 >= c.max_positions:
            raise UserError(f"the prompt has {len(words)} tokens; give at most {c.max_positions - 2}")
        start = torch.tensor([[c.dec_id, *words]], device=self.device).expand(len(images), -1)
        states, longest = self.image_states(images, med), max_new_tokens or c.max_text
        repeats = c.no_repeat_ngram_size
        rows = generate(med, states, None, start, num_beams, longest, top_p, n=n, no_repeat_ngram_size=repeats)
        texts = tokenizer.decode([row[start.shape[1] :] for row in rows])
        return _parts(texts, n)

    @torch.inference_mode()
    def answer(self, images: Images, questions: Texts, num_beams: int = 3, batch_size: int = 8) -> str | list[str]:
        """The answer to each image's question; one image may come with many questions.

        Raises UserError if the numbers of several images and questions differ.
        """
        check_at_least(1, num_beams=num_beams, batch_size=batch_size)
        answers = []
        for med, states, mask, first in self._asked(images, questions, batch_size):
            answers += med.tokenizer.decode(generate(med, states, mask, first, num_beams, MAX_ANSWER_TOKENS))
        return answers[0] if is_single(images) and isinstance(questions, str) else answers

    @torch.inference_mode()
    def top_answers(
        self, images: Images, questions: Texts, k: int = 5, batch_size: int = 8
    ) -> list[list[tuple[str, float]]]:
        """The `k` (2 or more) best answers of a beam search to each image's question, the most probable first, each
        with its probability, 0 to 1. Raises UserError as `answer`, and if k is below 2."""
        check_at_least(2, k=k)
        ranked = []
        for med, *inputs in self._asked(images, questions, batch_size):
            for finished in beam_search(med, *inputs, k, MAX_ANSWER_TOKENS):
                answers = med.tokenizer.decode([row for _, row in finished])
                probabilities = [math.exp(mean * (len(row) - 1)) for mean, row in finished]  # the first token is [DEC]
                ranked.append(sorted(zip(answers, probabilities, strict=True), key=lambda answer: -answer[1]))
        return ranked

    def _asked(self, images: Images, questions: Texts, batch_size: int) -> Iterator[tuple[Med, Tensor, Tensor, Tensor]]:
        """Batches of the model, the questions' states [N, Q, Di], their mask, and the first token of answers [N, 1]."""
        images, questions = pairs(images, questions, "question")
        if images:
            med = self.med.model_for("vqa").eval()
            for fused, mask in self._fused(images, questions, med, batch_size):
                first = torch.full((len(mask), 1), med.config.dec_id, device=self.device)
                yield med, med.question_states(fused), mask, first

    def _fused(self, images: list, texts: list[str], med: Med, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Texts read together with their images, batch by batch: states [N, T, Dt] and mask [N, T].

        A batch has the texts of at most `batch_size` images, of which the same object is encoded once.
        """
        for some_images, some_texts in _by_image(images, texts, batch_size):
            distinct = {id(image): image for image in some_images}
            index = {key: row for row, key in enumerate(distinct)}
            rows = torch.tensor([index[id(image)] for image in some_images], device=self.device)
            states = self.image_states(distinct.values(), med)
            for part in torch.arange(len(some_texts)).split(QUESTION_BATCH):
                ids, mask = self.tokenize(some_texts[part[0] : part[-1] + 1], med)
                # the texts of a single image share its keys and values
                yield med.fuse(ids, mask, states, rows[part] if len(distinct) > 1 else None), mask

    # --- scores -------------------------------------------------------------------------------------------------------

    def similarity(self, images: Images, texts: Texts, batch_size: int = 8) -> Tensor:
        """ITC cosine of each image with each text [I, T]; divided by `temperature`, the logits of ITC."""
        return self.embed_images(images, batch_size) @ self.embed_texts(texts).T

    @torch.inference_mode()
    def embed_images(self, images: Images, batch_size: int = 8) -> Tensor:
        """Unit vectors [I, E] that ITC compares, for galleries that are searched more than once."""
        images = [images] if is_single(images) else as_list(images, "image")
        med = self.med.model_for("itc").eval()
        vectors = [med.project_image(self.image_states(part, med)) for part in _parts(images, batch_size)]
        return torch.cat(vectors) if vectors else torch.zeros(0, med.config.embed_dim, device=self.device)

    @torch.inference_mode()
    def embed_texts(self, texts: Texts) -> Tensor:
        """Unit vectors [T, E] that ITC compares."""
        texts = as_list([texts] if isinstance(texts, str) else texts, "text")
        med = self.med.model_for("itc").eval()
        parts = [self.tokenize(part, med) for part in _parts(texts, QUESTION_BATCH)]
        vectors = [med.project_text(med.encode_text(ids, mask)) for ids, mask in parts]
        return torch.cat(vectors) if vectors else torch.zeros(0, med.config.embed_dim, device=self.device)

    @torch.inference_mode()
    def match(self, images: Images, texts: Texts, batch_size: int = 8) -> Tensor:
        """ITM probability that each text describes its image [N]; one image may come with many texts.

        Raises UserError if the numbers of several images and texts differ.
        """
        images, texts = pairs(images, texts, "text")
        if not images:
            return torch.zeros(0)
        med = self.med.model_for("itm").eval()
        logits = [med.match_logits(fused) for fused, _ in self._fused(images, texts, med, batch_size)]
        return torch.cat(logits).float().softmax(-1)[:, 1]

    # --- for `dlip.evaluate`, as in `dlip.models.protocol.Measured` ---------------------------------------------------

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode and inference mode; restores the model's own mode."""
        training = self.med.training
        self.med.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.med.train(training)

    def encode(self, images: list[ImageInput], reranker: Reranker | None) -> tuple[Tensor, Tensor]:
        """ITC's unit vectors [B, E] and the image states [B, P+1, Di] that the reranker reads."""
        itc, matcher = self.med.model_for("itc"), self.med.model_for(RERANKS_BY[reranker])
        states = self.image_states(images, matcher)
        own_states = states if matcher is itc else self.image_states(images, itc)
        return itc.project_image(own_states), states

    def text_ids(self, texts: list[str], reranker: Reranker | None = None) -> tuple[Tensor, Tensor]:
        """Ids and mask [N, T] of texts as ITC reads them, or as the reranker does."""
        return self.tokenize(texts, self.med.model_for(RERANKS_BY[reranker]))

    def embed_ids(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ITC's unit vectors [N, E] of tokenized texts."""
        med = self.med.model_for("itc")
        return med.project_text(med.encode_text(ids, mask, first_only=True))

    def pair_logits(self, states: Tensor, ids: Tensor, mask: Tensor, reranker: Reranker) -> Tensor:
        """Logits fp32 [N, 2] on the CPU of one image's states [1, P+1, Di] with N tokenized texts, index 1 is a match.

        By the decoder, [:, 1] is log p(text | image) and [:, 0] is 0. The image's cross-attention keys and values are
        computed once, and the texts are sorted by length.
        """
        med, logits = self.med.model_for(RERANKS_BY[reranker]), torch.zeros(len(ids), 2)
        cross = (med.text_encoder if reranker == "itm" else med.text_decoder.bert).cross(states)
        for rows in mask.sum(1).cpu().argsort().split(TEXT_BATCH):
            part_ids, part_mask = trim(ids[rows], mask[rows])
            if reranker == "decoder":
                logits[rows, 1] = med.caption_log_likelihood(part_ids, part_mask, cross).cpu()
            else:
                part_mask = None if part_mask.all() else part_mask  # without padding
                fused = med.fuse_with(cross, part_ids, part_mask, first_only=True)
                logits[rows] = med.match_logits(fused).float().cpu()
        return logits


def is_single(images: Images) -> bool:
    """Whether it is one image rather than many."""
    return isinstance(images, str | Path | Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4)


def pairs(images: Images, texts: Texts, noun: str) -> tuple[list, list]:
    """Both as lists of one length; a single image comes with each of the texts.

    Raises UserError if the numbers of several images and texts differ.
    """
    texts = as_list([texts] if isinstance(texts, str) else texts, noun)
    images = [images] * len(texts) if is_single(images) else as_list(images, "image")
    if len(images) != len(texts):
        raise UserError(f"{plural(len(images), 'image')} and {plural(len(texts), noun)}; give one {noun} per image")
    return images, texts


def _parts(values: list, size: int) -> list[list]:
    return [values[first : first + size] for first in range(0, len(values), size)]


def _by_image(images: list, texts: list[str], size: int) -> Iterator[tuple[list, list[str]]]:
    """Consecutive pairs with at most `size` different images at a time."""
    start, seen = 0, set()
    for end, image in enumerate(images):
        if len(seen) == size and id(image) not in seen:
            yield images[start:end], texts[start:end]
            start, seen = end, set()
        seen.add(id(image))
    yield images[start:], texts[start:]
