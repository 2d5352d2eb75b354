"""What a model knows of a batch: the one vocabulary that losses read, the same for teacher and student."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dlip.common import distributed
from dlip.common.errors import UserError

SOURCES = ("image", "text", "fusion", "decoder")
ABILITIES = ("itc", "itm", "lm", "vqa")
NEEDS = {"itc": {"text"}, "itm": {"fusion"}, "lm": {"decoder"}, "vqa": set()}
"""Sources that a task's logits need; the image every one of them, and ITM the text too where it mines its own pairs."""


@dataclass(frozen=True)
class Want:
    """What to compute of a batch. A source that nobody wants is not computed."""

    abilities: frozenset[str] = frozenset()
    """Logits wanted, of `ABILITIES`."""
    layers: dict[tuple[str, str], tuple[int, ...]] = field(default_factory=dict)
    """(source, kind) -> layers, -1 being the last. Kind is "states", "self" or "cross" (attention maps)."""

    def includes(self, name: str) -> bool:
        return any(name in NEEDS[ability] for ability in self.abilities) or any(
            name == source for source, _ in self.layers
        )

    def layers_of(self, source: str, config) -> dict[str, dict[int, int]]:
        """Kind -> {layer as asked for: layer counted from 0}; for "cross", -1 is the last one with cross-attention.

        Raises UserError for a layer that the model does not have.
        """
        depth = config.image_layers if source == "image" else config.text_layers
        out = {}
        for (name, kind), layers in self.layers.items():
            if name == source:
                there = config.fusion_layers if kind == "cross" else range(depth)
                places = {i: i for i in there} | {k - len(there): i for k, i in enumerate(there)}
                if missing := [i for i in layers if i not in places]:
                    raise UserError(f"{source} has no {kind} of layer {missing[0]}; name one of {sorted(there)}")
                out[kind] = {i: places[i] for i in layers}
        return out

    def __or__(self, other: "Want") -> "Want":
        layers = dict(self.layers)
        for key, value in other.layers.items():
            layers[key] = tuple(sorted({*layers.get(key, ()), *value}))
        return Want(self.abilities | other.abilities, layers)


class Trace:
    """Keeps what is wanted of an encoder's layers as they run by.

    wanted: kind -> {layer as asked for: layer counted from 0}.
    """

    def __init__(self, wanted: dict[str, dict[int, int]] | None = None):
        self.wanted = wanted or {}
        self.kept: dict[tuple[str, int], Tensor] = {}

    def wants(self, kind: str, layer: int) -> bool:
        return layer in self.wanted.get(kind, {}).values()

    def keep(self, kind: str, layer: int, value: Tensor) -> None:
        if self.wants(kind, layer):
            self.kept[kind, layer] = value

    def get(self, kind: str, layer: int = -1) -> Tensor:
        """States [N, T, D] or map [N, H, Q, K] of a layer, named as it was asked for."""
        return self.kept[kind, self.wanted[kind][layer]]


@dataclass
class Features:
    """Everything computed of a batch of B pictures and captions, by name.

    Contrast is over the C pictures with a caption of all processes that share the batch (dlip/common/distributed.py).
    """

    traces: dict[str, Trace]
    """Source -> hidden states and attention maps."""
    mask: Tensor | None
    """bool [B, T]: true where the caption has a token; nowhere in the row of a picture without a caption."""
    image_id: Tensor
    temp: Tensor
    """The ITC temperature."""
    logits: dict[str, Tensor] = field(default_factory=dict)
    """itc [C, C], itm [N, 2], lm [B, T, V], vqa [questions, A, V]."""
    labels: dict[str, Tensor] = field(default_factory=dict)
    """lm [B, T] and vqa [questions, A]: the next token; itm [N]: 1 for a match, else 0. -100 where none is learnt."""
    decoder_mask: Tensor | None = None
    """bool [B, T]: true where the decoder's text has a token."""
    pairs: tuple[Tensor, Tensor] | None = None
    """Rows of pictures and of texts [N] that ITM read: B matching pairs, then negatives. Texts are counted over all
    processes; each reads the pairs of its own pictures."""
    image_embed: Tensor | None = None
    text_embed: Tensor | None = None
    """ITC vectors [B, E], L2-normalised."""
    rows: Tensor | None = None
    """int64 [C]: places, in the batch of all processes, of the pictures that are contrasted."""

    def states(self, source: str, layer: int = -1) -> Tensor:
        """Hidden states [B, T, D] of a layer; of fusion, those of the matching pairs."""
        return self.traces[source].get("states", layer)[: len(self.image_id)]

    def maps(self, source: str, kind: str, layer: int = -1) -> Tensor:
        """Attention map [B, H, Q, K] of a layer; of fusion, that of the matching pairs."""
        return self.traces[source].get(kind, layer)[: len(self.image_id)]

    @property
    def captioned(self) -> Tensor:
        """bool [B]: which pictures have a caption."""
        return self.mask.any(1)

    def contrast(self, image_embed: Tensor, text_embed: Tensor) -> None:
        """Takes the ITC vectors [B, E] and computes the logits [C, C] of every picture with every caption."""
        self.image_embed, self.text_embed = image_embed, text_embed
        self.rows = distributed.all_gather(self.captioned).nonzero().squeeze(1)
        images, texts = self.contrasted(image_embed), self.contrasted(text_embed)
        self.logits["itc"] = cosines(images, texts) / self.temp  # pictures in rows

    def contrasted(self, values: Tensor) -> Tensor:
        """Of values [B, ...] of each process those of the pictures that are contrasted, [C, ...]."""
        return distributed.all_gather(values)[self.rows]

    def choose_pairs(self, given: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Sets and returns the pairs that ITM reads: `given` ones, or hard negatives drawn from all processes' batch.

        So BLIP draws them for retrieval (in pre-training from each process's own part). The main process draws, and a
        pair is read where its picture is, so that the states of pictures need not be sent.
        """
        b = len(self.image_id)
        if given is None:
            ids = self.contrasted(self.image_id)
            pictures, texts = (self.rows[x[len(ids) :]] for x in hard_negatives(self.logits["itc"].detach(), ids))
            pictures, texts = distributed.broadcast_from_main(torch.stack([pictures, texts]))
            first = b * (distributed.rank() if distributed.batch_world_size() > 1 else 0)
            own, here = (pictures >= first) & (pictures < first + b), torch.arange(b, device=pictures.device)
            given = torch.cat([here, pictures[own] - first]), torch.cat([here + first, texts[own]])
        self.pairs = given
        self.labels["itm"] = torch.zeros_like(given[0])
        self.labels["itm"][:b] = torch.where(self.captioned, 1, -100)
        return given

    def text_mask(self, source: str) -> Tensor:
        """bool [B, T]: true where `source` has a token (the decoder's texts hold the prompt besides)."""
        return self.decoder_mask if source == "decoder" else self.mask


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Of L2-normalised vectors [M, E] and [N, E], [M, N]; in fp32, as in bf16 a logit may be 0.1 off."""
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float().T


def hard_negatives(similarity: Tensor, image_id: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs for ITM: the B matching ones, B pictures each with a wrong text, B texts each with a wrong picture.

    Wrong ones are drawn in proportion to their softmax similarity [B, B] (pictures in rows); a caption of the same
    picture never is one. Returns rows of pictures and of texts, [3 B] each, or [B] where no two pictures differ.
    Source: ALBEF (arXiv 2107.07651), section 3.2, as BLIP uses it.
    """
    similarity = similarity.float().nan_to_num()  # what is no number is told of by the loss
    same = image_id[:, None] == image_id[None]
    keep = (~same).float()
    rows = torch.arange(len(image_id), device=image_id.device)
    if not keep.any():
        return rows, rows
    texts = torch.multinomial((similarity.softmax(1) + 1e-4) * keep, 1).squeeze(1)
    pictures = torch.multinomial((similarity.softmax(0).T + 1e-4) * keep, 1).squeeze(1)
    return torch.cat([rows, rows, pictures]), torch.cat([rows, texts, rows])
