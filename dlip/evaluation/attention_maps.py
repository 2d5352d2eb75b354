"""Attention maps of an image and a text, their scores against objects' masks, and the divergence of two models.

A map is a query's attention to [CLS] and to every patch; it sums to 1. A word (between spaces) has the mean map of its
tokens. In "fusion" the encoder reads a text with its image; in "decoder" the text is generated, and a word's map is
that of the step that predicts it.
"""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dlip.common.errors import UserError
from dlip.common.text import replace_surrogates
from dlip.data.answers import ARTICLES
from dlip.data.scenes.render import masks
from dlip.data.scenes.truth import parse_caption, referents
from dlip.data.scenes.world import Scene
from dlip.data.transforms import ImageInput
from dlip.evaluation.tasks.base import percent
from dlip.models.features import Trace
from dlip.models.grid_resize import map_to_grid
from dlip.models.med import Med
from dlip.models.protocol import TRAINED_BY, Model
from dlip.models.token_ids import first_token, with_prompt
from dlip.vlm import VLM

MAP_SOURCES = ("fusion", "decoder")
BATCH_IMAGES = 32
"""Images per batch, with all their captions."""


# --- maps of one image ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WordMaps:
    """Cross-attention of each word of a text to one image."""

    words: list[str]
    """The words that the model read."""
    layers: tuple[int, ...]
    """Text layers with cross-attention, counted from 0."""
    maps: Tensor
    """[L, H, W, 1+P]: layer, head, word; [CLS] and patches."""

    def map(self, word: int, layer: int | None = -1, head: int | None = None) -> Tensor:
        """A word's map [1+P] in one head, or (None) the mean over heads.

        layer: a text layer, counted from 0 or from the last one with cross-attention (-1); None for the mean over
        layers. Raises UserError where there is no such word, layer or head.
        """
        _check("word", word, range(len(self.words)))
        return _select(self.maps, self.layers, layer, head)[word]

    def patches(self, word: int, layer: int | None = -1, head: int | None = None) -> Tensor:
        """`map` over the patches only, [g, g]."""
        return patches(self.map(word, layer, head))


@dataclass(frozen=True)
class ImageMaps:
    """Self-attention of the image encoder on one image."""

    maps: Tensor
    """[L, H, 1+P, 1+P]: layer, head, query, key; [CLS] and patches."""

    def cls(self, layer: int | None = -1, head: int | None = None) -> Tensor:
        """Attention of [CLS] to the patches, [g, g]; `layer` of the image encoder and `head` as in `WordMaps.map`."""
        return patches(_select(self.maps, range(len(self.maps)), layer, head)[0])

    def rollout(self) -> Tensor:
        """Attention rollout from the patches to [CLS] through all layers, [g, g]."""
        return patches(rollout(self.maps)[0])


@torch.inference_mode()
def word_maps(vlm: VLM, image: ImageInput, text: str, source: str = "fusion") -> WordMaps:
    """Maps of a text that is read with its image ("fusion"), or of a caption that is generated ("decoder").

    Raises UserError for an unreadable image or a text without words, and MissingAbility, a UserError, for a model that
    lacks the decoder or cross-attention.
    """
    med = vlm.med.model_for_states(source).eval()
    words, pool = _read_words(vlm, text, med, "the text has no word; type one")
    layers = med.config.fusion_layers
    states, (ids, mask) = vlm.image_states([image], med), vlm.tokenize([text], med)
    maps = cross_attention_maps(med, states, ids, mask, source, layers)  # each [1, H, T, 1+P]
    return WordMaps(words, layers, pool @ torch.cat(maps).float().cpu())


@torch.inference_mode()
def answer_maps(vlm: VLM, image: ImageInput, question: str, answer: str) -> WordMaps:
    """Maps of an answer's words. The decoder attends to the question's tokens, and these to the image.

    A word's map is the mean of the question tokens' maps in "fusion", weighted by the word's attention to them in the
    decoder's last layer, averaged over heads. Raises UserError as `word_maps`.
    """
    med = vlm.med.model_for("vqa").eval()
    words, pool = _read_words(vlm, answer, med, "the answer has no word; ask another question")
    c, (question_ids, mask) = med.config, vlm.tokenize([question], med)  # [1, T]
    trace = Trace.of(c, "fusion", "cross", c.fusion_layers)
    states = med.question_states(med.fuse(question_ids, mask, vlm.image_states([image], med), trace=trace))
    question_maps = torch.cat([trace.get("cross", i) for i in c.fusion_layers])  # [L, H, T, 1+P]
    ids, _ = vlm.tokenize([answer], med)
    trace = Trace.of(c, "decoder", "cross")
    med.decode(first_token(ids, c.dec_id), states, mask, trace=trace)
    answer_weights = trace.get("cross", -1).mean(1)[0].roll(1, 0)  # [A, T]
    return WordMaps(words, c.fusion_layers, pool @ (answer_weights @ question_maps).float().cpu())


@torch.inference_mode()
def image_maps(vlm: VLM, image: ImageInput) -> ImageMaps:
    """The image encoder's maps. Raises UserError for an unreadable image, and MissingAbility for a CLIP or SigLIP."""
    med = vlm.med.model_for_states("image").eval()
    layers = range(med.config.image_layers)
    trace = Trace.of(med.config, "image", "self", layers)
    med.encode_image(vlm.pixels([image], med), trace)
    return ImageMaps(torch.cat([trace.get("self", i) for i in layers]).float().cpu())


def rollout(maps: Tensor) -> Tensor:
    """Attention rollout [T, T] of self-attention maps [L, H, T, T], heads averaged, half of each layer its residual.

    Source: Abnar and Zuidema (arXiv 2005.00928): R_l = (A_l + I) / 2 · R_(l-1).
    """
    eye = torch.eye(maps.shape[-1])
    rolled = eye
    for layer in maps.mean(1):
        rolled = (layer + eye) / 2 @ rolled
    return rolled


def patches(probs: Tensor) -> Tensor:
    """Maps [..., 1+P] without [CLS] as [..., g, g], normalized to sum to 1."""
    side = round((probs.shape[-1] - 1) ** 0.5)
    probs = probs[..., 1:]
    return (probs / probs.sum(-1, keepdim=True).clamp(min=1e-9)).unflatten(-1, (side, side))


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of distributions [..., K] in bits: 0 where they are equal, 1 where they share nothing.

    Source: Lin (1991), Divergence measures based on the Shannon entropy.
    """
    mean = (p + q) / 2
    entropy = torch.special.entr(mean) - (torch.special.entr(p) + torch.special.entr(q)) / 2
    return (entropy.sum(-1) / torch.log(torch.tensor(2.0))).clamp(0, 1)


def map_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence [...] of two models' maps [..., 1+P] and [..., 1+Q], on the coarser of their grids."""
    side = round((min(p.shape[-1], q.shape[-1]) - 1) ** 0.5)
    return jensen_shannon(
        *(map_to_grid(x.reshape(1, 1, -1, x.shape[-1]), side).view(*x.shape[:-1], 1 + side**2) for x in (p, q))
    )


# --- against the masks of scenes --------------------------------------------------------------------------------------


def word_objects(caption: str, scene: Scene, find: Callable = referents) -> dict[int, int]:
    """Index of a word in `caption.split()` -> index in `scene.objects` of the object it names; articles excluded.

    find: `referents`, or a function of dlip.data.scenes.truth with the same arguments.
    """
    reading, words = parse_caption(caption), caption.lower().split()
    meant = zip(reading.mentions, find(reading, scene), strict=True)
    places = {i: o for mention, o in meant if o is not None for i in range(mention.start, mention.end)}
    return {i: o for i, o in places.items() if words[i] not in ARTICLES}


def mask_coverage(mask: Tensor, grid: int) -> Tensor:
    """Fraction of each patch that masks, bool [..., S, S], cover: [..., grid, grid], 0 to 1."""
    side = mask.shape[-1]
    pixels = F.pad(mask.reshape(1, 1, -1, side * side).float(), (1, 0))  # pixels are a grid with [CLS] before it
    return map_to_grid(pixels, grid)[..., 1:].view(*mask.shape[:-2], grid, grid) * (grid / side) ** 2


def pointing(over: Tensor, covered: Tensor) -> Tensor:
    """Pointing game, bool [...]: whether the maximum patch of maps [..., g, g] contains a pixel of the object.

    covered: `mask_coverage` of its mask, [..., g, g]. The tolerance is one patch; chance is the share of patches with
    a pixel of the object. Of several maxima, half must contain one. Source: Zhang et al. (arXiv 1608.00507), 4.1.
    """
    greatest = (over == over.amax((-2, -1), keepdim=True)).float()
    maxima = greatest.sum((-2, -1))  # 0 for NaN
    return (maxima > 0) & ((greatest * (covered > 0)).sum((-2, -1)) >= maxima / 2)


def mass(over: Tensor, covered: Tensor) -> Tensor:
    """Fraction [...] of maps [..., g, g] inside the mask, patches spread evenly; chance is the mask's area."""
    return (over * covered).sum((-2, -1))


def measurable(vlm: VLM) -> bool:
    """Whether a model has trained weights for both attentions that `measure` scores, the fusion's and the decoder's."""
    trained = all(vlm.med.abilities & set(TRAINED_BY[source]) for source in MAP_SOURCES)
    return trained and all(vlm.med.model_for_states(source).config.fusion_layers for source in MAP_SOURCES)


def measure(vlm: VLM, dataset, limit: int = 200, teacher: VLM | None = None) -> dict:
    """Score the attention of words to the objects that they name, on the first `limit` images of scenes.

    For "fusion" and "decoder", in percent over all words that name an object: "pointing", "mass", and the same against
    the scene's other objects ("pointing_other", "mass_other"), which a model reaches that attends to objects regardless
    of the word. Maps are over patches only. With a teacher also "divergence" (see `divergence`). Besides "chance",
    {"pointing", "mass"} of an uninformed map of the fusion's grid, and the numbers of "images" and "words". Raises
    UserError where no caption names an object.
    """
    values: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    images = min(limit, len(dataset))
    for first, captions, rows, maps in _batches((vlm,), dataset, limit):
        scenes = [dataset.scene(first + i) for i in range(max(rows) + 1)]
        known = maps["fusion"][0].sum(-1) > 0  # [N, W]: a long caption's last words may be cut off
        names = [word_objects(text, scenes[row]).items() for text, row in zip(captions, rows, strict=True)]
        words = [(i, word, rows[i], o) for i, pairs in enumerate(names) for word, o in pairs if known[i, word]]
        if not words:
            continue
        text, word, image, own = torch.tensor(words).T  # [K] words
        objects = pad_sequence([torch.from_numpy(masks(scene)) for scene in scenes], batch_first=True)  # [B, O, S, S]
        others = torch.tensor([len(scene.objects) - 1 for scene in scenes])[image]

        scores = {}
        for source in MAP_SOURCES:
            over = patches(maps[source][0][text, word])[:, None]  # [K, 1, g, g], of the source's own grid
            covered = mask_coverage(objects, over.shape[-1])[image]  # [K, O, g, g], zeros where there is no object
            scores[source, "pointing"] = pointing(over, covered).float()
            scores[source, "mass"] = mass(over, covered)
            if source == "fusion":
                scores["chance", "pointing"] = (covered > 0).float().mean((2, 3))
                scores["chance", "mass"] = covered.mean((2, 3))
        for (source, name), of_each in scores.items():  # [K, O]
            hit = of_each.gather(1, own[:, None]).squeeze(1)
            values[source, name].append(hit)
            if source != "chance":
                values[source, f"{name}_other"].append((of_each.sum(1) - hit) / others)
    if not values:
        raise UserError(f"no caption of {dataset.name} {dataset.split} names an object; attention cannot be scored")
    out: dict = {source: {} for source in (*MAP_SOURCES, "chance")}
    for (source, name), parts in values.items():
        out[source][name] = percent(torch.cat(parts))
    if teacher is not None:
        for source, bits in divergence(teacher, vlm, dataset, limit).items():
            out[source]["divergence"] = bits
    return {**out, "images": images, "words": sum(map(len, values["chance", "mass"]))}


def divergence(teacher: VLM, student: VLM, dataset, limit: int = 200) -> dict[str, float]:
    """Jensen-Shannon divergence in bits between two models' maps of the same words, by source, mean over words.

    On the first `limit` images of any data with captions; heads averaged, on the coarser grid, [CLS] included. Words
    are compared even where the models split them into different tokens. Raises UserError where there is no caption.
    """
    bits: dict[str, list[Tensor]] = {source: [] for source in MAP_SOURCES}
    for _, _, _, maps in _batches((teacher, student), dataset, limit):
        for source, (teacher_maps, student_maps) in maps.items():
            both = (teacher_maps.sum(-1) > 0) & (student_maps.sum(-1) > 0)
            bits[source].append(map_divergence(teacher_maps[both], student_maps[both]))
    if not bits["fusion"]:
        raise UserError(f"{dataset.name} {dataset.split} has no captions; maps of words cannot be compared")
    return {source: torch.cat(parts).mean().item() for source, parts in bits.items()}


# --- many texts at once -----------------------------------------------------------------------------------------------


def cross_attention_maps(
    med: Med, states: Tensor, ids: Tensor, mask: Tensor, source: str, layers: Sequence[int]
) -> list[Tensor]:
    """Cross-attention [N, H, T, 1+P] of each layer for texts [N, T] and image states [N or B, 1+P, Di].

    Each of B images has N / B consecutive texts. Position t is token t, or in "decoder" the step that predicts it
    (position 0 has no meaning there).
    """
    trace = Trace.of(med.config, source, "cross", layers)
    if source == "fusion":
        med.fuse(ids, mask, states, trace=trace)
        return [trace.get("cross", i) for i in layers]
    med.decode(with_prompt(ids, mask, med.config.prompt_ids)[0], states, trace=trace)
    before = len(med.config.prompt_ids)
    return [trace.get("cross", i)[:, :, before:].roll(1, 2) for i in layers]


def word_weights(vlm: VLM, texts: Sequence[str], med: Model) -> Tensor:
    """Weights [N, W, T] that average the tokens of `vlm.texts` of these texts and `med` into words; rows sum to 1.

    W: number of words between spaces in the longest text; a row is 0 where a text has no such word, or it was cut off.
    Punctuation counts only in a word that has nothing else.
    """
    fast = med.tokenizer.fast
    fast.enable_truncation(med.config.max_text)
    encodings = fast.encode_batch([*map(replace_surrogates, texts)])
    starts = [[word.start() for word in re.finditer(r"\S+", text)] for text in texts]
    longest = max(len(encoding.ids) for encoding in encodings)
    out = torch.zeros(len(texts), max(map(len, starts)), longest)
    for rows, text, word_starts, encoding in zip(out, texts, starts, encodings, strict=True):
        for token, (start, end) in enumerate(encoding.offsets):
            if end > start:  # [CLS] and [SEP] have no place in the text
                punctuation = not any(letter.isalnum() for letter in text[start:end])
                rows[bisect_right(word_starts, start) - 1, token] = 1e-6 if punctuation else 1.0
    out[(out < 1) & (out.sum(-1, keepdim=True) >= 1)] = 0
    return out / out.sum(-1, keepdim=True).clamp(min=1e-6)


@torch.inference_mode()
def _batches(
    models: tuple[VLM, ...], dataset, limit: int
) -> Iterator[tuple[int, list[str], list[int], dict[str, list[Tensor]]]]:
    """Yield batches: index of the first image, captions, each caption's image counted from the first, and by source
    the models' word maps [N, W, 1+P] of the last layer, averaged over heads."""
    for first in range(0, min(limit, len(dataset)), BATCH_IMAGES):
        items = [dataset[i] for i in range(first, min(first + BATCH_IMAGES, limit, len(dataset)))]
        captions = [text for item in items for text in item.captions]
        rows = [i for i, item in enumerate(items) for _ in item.captions]
        if not captions:
            continue
        maps: dict[str, list[Tensor]] = {source: [] for source in MAP_SOURCES}
        for vlm in models:
            meds = {source: vlm.med.model_for_states(source).eval() for source in MAP_SOURCES}
            states = {med: vlm.image_states([item.image for item in items], med) for med in set(meds.values())}
            if len({len(item.captions) for item in items}) > 1:
                states = {med: some[rows] for med, some in states.items()}
            for source, med in meds.items():
                ids, mask = vlm.tokenize(captions, med)
                pool = word_weights(vlm, captions, med)
                (probs,) = cross_attention_maps(med, states[med], ids, mask, source, (-1,))
                maps[source].append(pool @ probs.float().mean(1).cpu())
        yield first, captions, rows, maps


# --- parts ------------------------------------------------------------------------------------------------------------


def _read_words(vlm: VLM, text: str, med: Model, no_word: str) -> tuple[list[str], Tensor]:
    """The W words of a text that `med` reads, and their weights of its tokens, [W, T]."""
    pool = word_weights(vlm, [text], med)[0]
    known = (pool.sum(1) > 0).nonzero()
    if not len(known):
        raise UserError(no_word)
    end = int(known.max()) + 1  # words before it may have no token, as a zero-width space
    return text.split()[:end], pool[:end]


def _select(maps: Tensor, layers: Sequence[int], layer: int | None, head: int | None) -> Tensor:
    """Maps [L, H, ...] of one layer and one head; the mean over those that are None."""
    if layer is None:
        maps = maps.mean(0)
    else:
        _check("layer", layer, [*layers, *range(-len(layers), 0)])
        maps = maps[layer if layer < 0 else list(layers).index(layer)]
    if head is None:
        return maps.mean(0)
    _check("head", head, range(len(maps)))
    return maps[head]


def _check(noun: str, index: int, existing: Sequence[int]) -> None:
    if index not in existing:
        raise UserError(f"there is no {noun} {index}; choose one of {', '.join(str(i) for i in existing if i >= 0)}")
