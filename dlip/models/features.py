"""What a model computes of a batch: the names that losses read, the same for teacher and student."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dlip.common import distributed
from dlip.common.errors import MissingAbility, UserError

ABILITIES = ("itc", "itm", "lm", "vqa")
SOURCES_OF = {"itc": {"text"}, "itm": {"fusion"}, "lm": {"decoder"}, "vqa": set()}
"""Ability -> sources that its logits need, apart from the image; ITM needs the text too to mine hard negatives."""


@dataclass(frozen=True)
class Want:
    """What to compute of a batch. Sources that are not needed are not computed."""

    abilities: frozenset[str] = frozenset()
    """Whose logits to compute, of `ABILITIES`."""
    layers: dict[tuple[str, str], tuple[int, ...]] = field(default_factory=dict)
    """(source, kind) -> layers to keep, -1 for the last. Kind is "states", or "self" or "cross" for attention maps."""

    def includes(self, source: str) -> bool:
        """Whether a source has to be computed."""
        by_abilities = set().union(*(SOURCES_OF[ability] for ability in self.abilities))
        return source in by_abilities | {name for name, _ in self.layers}

    def layers_of(self, source: str, config) -> dict[str, dict[int, int]]:
        """Kind -> {requested layer: the same counted from 0}; for "cross", -1 is the last with cross-attention.

        Raises UserError for a layer that the model does not have, and MissingAbility if none has cross-attention.
        """
        depth = config.image_layers if source == "image" else config.text_layers
        out = {}
        for (name, kind), layers in self.layers.items():
            if name == source:
                existing = config.fusion_layers if kind == "cross" else range(depth)
                if not existing:
                    raise MissingAbility("this model has no cross-attention, so its words attend to no image")
                index = {i: i for i in existing} | {k - len(existing): i for k, i in enumerate(existing)}
                if missing := [i for i in layers if i not in index]:
                    raise UserError(f"{source} has no {kind} of layer {missing[0]}; choose from {sorted(existing)}")
                out[kind] = {i: index[i] for i in layers}
        return out

    def __or__(self, other: "Want") -> "Want":
        layers = dict(self.layers)
        for key, value in other.layers.items():
            layers[key] = tuple(sorted({*layers.get(key, ()), *value}))
        return replace(self, abilities=self.abilities | other.abilities, layers=layers)


class Trace:
    """Keep hidden states and attention maps of an encoder's layers as they are computed.

    wanted: kind -> {requested layer: the same counted from 0}, as `Want.layers_of` returns it.
    """

    def __init__(self, wanted: dict[str, dict[int, int]] | None = None):
        self.wanted = wanted or {}
        self.kept: dict[tuple[str, int], Tensor] = {}

    @classmethod
    def of(cls, config, source: str, kind: str, layers: Iterable[int] = (-1,)) -> "Trace":
        """A trace of one kind in some layers of a source; by default the last. Raises as `Want.layers_of` does."""
        return cls(Want(layers={(source, kind): tuple(layers)}).layers_of(source, config))

    def wants(self, kind: str, layer: int) -> bool:
        return layer in self.wanted.get(kind, {}).values()

    def keep(self, kind: str, layer: int, value: Tensor) -> None:
        if self.wants(kind, layer):
            self.kept[kind, layer] = value

    def get(self, kind: str, layer: int = -1) -> Tensor:
        """States [N, T, D] or map [N, H, Q, K] of a layer, numbered as it was requested."""
        return self.kept[kind, self.wanted[kind][layer]]


@dataclass
class Features:
    """Everything computed of a batch of B images and captions, by name.

    ITC contrasts the C captioned images of all processes that share the batch (dlip/common/distributed.py).
    """

    traces: dict[str, Trace]
    """Source -> hidden states and attention maps."""
    mask: Tensor
    """bool [B, T]: true for the tokens of a caption; all false for an image without a caption."""
    image_id: Tensor
    """int64 [B]: equal for rows of the same image."""
    temp: Tensor
    """The ITC temperature."""
    logits: dict[str, Tensor] = field(default_factory=dict)
    """itc [C, C], itm [N, 2], lm [B, T, V], vqa [questions, A, V]."""
    labels: dict[str, Tensor] = field(default_factory=dict)
    """lm [B, T] and vqa [questions, A]: the next token; itm [N]: 1 for a match, else 0. -100 where there is no loss."""
    decoder_mask: Tensor | None = None
    """bool [B, T]: true for the tokens of the decoder's text."""
    pairs: tuple[Tensor, Tensor] | None = None
    """Image rows and text rows [N] that ITM reads: the B matching pairs, then negatives. Text rows count over all
    processes; each process reads the pairs of its own images."""
    image_embed: Tensor | None = None
    text_embed: Tensor | None = None
    """ITC vectors [B, E], L2-normalized."""
    rows: Tensor | None = None
    """int64 [C]: rows of the contrasted images in the batch of all processes."""

    def states(self, source: str, layer: int = -1) -> Tensor:
        """Hidden states [B, T, D] of a layer; for "fusion" those of the matching pairs."""
        return self.traces[source].get("states", layer)[: len(self.image_id)]

    def maps(self, source: str, kind: str, layer: int = -1) -> Tensor:
        """Attention map [B, H, Q, K] of a layer; for "fusion" that of the matching pairs."""
        return self.traces[source].get(kind, layer)[: len(self.image_id)]

    @property
    def captioned(self) -> Tensor:
        """bool [B]: true for images with a caption."""
        return self.mask.any(1)

    def contrast(self, image_embed: Tensor, text_embed: Tensor) -> None:
        """Set the ITC vectors [B, E] and the logits [C, C] of every image with every caption."""
        self.image_embed, self.text_embed = image_embed, text_embed
        self.rows = distributed.all_gather(self.captioned).nonzero().squeeze(1)
        images, texts = self.contrasted(image_embed), self.contrasted(text_embed)
        self.logits["itc"] = cosines(images, texts) / self.temp  # images in rows

    def contrasted(self, values: Tensor) -> Tensor:
        """Gather values [B, ...] of all processes and select the contrasted images, [C, ...]."""
        return distributed.all_gather(values)[self.rows]

    def choose_pairs(self, pairs: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Set and return the pairs that ITM reads: those passed, or hard negatives from all processes' batch.

        BLIP mines them so for retrieval (for pre-training within each process). The main process draws them, and each
        process reads the pairs of its own images, so that image states need not be sent.
        """
        b = len(self.image_id)
        if pairs is None:
            ids = self.contrasted(self.image_id)
            drawn = hard_negatives(self.logits["itc"].detach(), ids)
            images, texts = (self.rows[x[len(ids) :]] for x in drawn)
            images, texts = distributed.broadcast_from_main(torch.stack([images, texts]))
            first = b * (distributed.rank() if distributed.batch_world_size() > 1 else 0)
            own, matching = (images >= first) & (images < first + b), torch.arange(b, device=images.device)
            pairs = torch.cat([matching, images[own] - first]), torch.cat([matching + first, texts[own]])
        self.pairs = pairs
        self.labels["itm"] = torch.zeros_like(pairs[0])
        self.labels["itm"][:b] = torch.where(self.captioned, 1, -100)
        return pairs

    def text_mask(self, source: str) -> Tensor:
        """bool [B, T]: true for the tokens that `source` reads (the decoder's texts also hold the prompt)."""
        return self.decoder_mask if source == "decoder" else self.mask


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines [M, N] of L2-normalized vectors [M, E] and [N, E], in fp32: in bf16 a logit may be off by 0.1."""
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float().T


def hard_negatives(similarity: Tensor, image_id: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs for ITM: the B matching ones, B images each with a wrong text, B texts each with a wrong image.

    Wrong ones are drawn in proportion to softmax(similarity [B, B]), images in rows; captions of the same image are
    never drawn. Returns image rows and text rows, [3 B] each, or [B] if all captions are of one image.
    Source: Li et al., ALBEF (arXiv 2107.07651), section 3.2, as BLIP uses it.
    """
    similarity = similarity.float().nan_to_num()  # a non-finite loss is reported later, where the loss is computed
    keep = (image_id[:, None] != image_id[None]).float()
    rows = torch.arange(len(image_id), device=image_id.device)
    if not keep.any():
        return rows, rows
    texts = torch.multinomial((similarity.softmax(1) + 1e-4) * keep, 1).squeeze(1)
    images = torch.multinomial((similarity.softmax(0).T + 1e-4) * keep, 1).squeeze(1)
    return torch.cat([rows, rows, images]), torch.cat([rows, texts, rows])
