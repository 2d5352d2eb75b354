"""Teacher outputs that do not change between epochs, cached on disk.

The teacher's hidden states, attention maps (mean over heads) and ITC vectors of every image and caption are computed
once, before training. Logits of ITM (which depend on the batch) and of LM and VQA are computed during training from the
stored image states.
"""

from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dlip.checkpoints.tensors import read_tensors, write_tensors
from dlip.common.errors import UserError
from dlip.data.batch import Batch
from dlip.data.collate import Collate
from dlip.models.features import Features, Trace, Want
from dlip.models.tasks import SOURCES
from dlip.models.token_ids import with_prompt
from dlip.training.caches.disk import cache_key, fill, locked, open_columns, to_float16
from dlip.training.config import CACHE_GB
from dlip.training.teacher import Teacher

VERSION = 3
"""Version of the layout on disk."""
MAP_KINDS = ("self", "cross")


def cached_outputs(layers: dict[str, tuple[tuple[int, int], ...]], fusion_layers: tuple[int, ...]) -> Want:
    """What is cached: the last layers and the teacher's layers in `layers` (as in TrainConfig), and ITC vectors."""
    kept = {}
    for source in SOURCES:
        requested = tuple(sorted({-1, *(teacher_layer for teacher_layer, _ in layers.get(source, ()))}))
        kept[source, "states"] = requested
        if source in ("fusion", "decoder"):
            existing = {*fusion_layers, *range(-len(fusion_layers), 0)}
            kept[source, "self"], kept[source, "cross"] = requested, tuple(i for i in requested if i in existing)
    return Want(frozenset({"itc"}), kept)


class TeacherCache(nn.Module):
    """A teacher that reads its outputs from disk; called like `distillation.Teacher`.

    A column has a row for each image (`image.*`), caption (`text.embed`) or token (the others, without padding). Runs
    may share a cache: the first fills it under a lock while the others wait.
    """

    def __init__(
        self,
        root: str | Path,
        teacher: Teacher,
        dataset,
        collate: Collate,
        layers: dict | None = None,
        max_gb: float = CACHE_GB,
    ):
        """Open a cache in the folder `root`; fill what is missing and, with a warning, what is damaged.

        teacher: of one checkpoint, with the student's vocabulary. Raises UserError where no image has a caption, and as
        `open_columns` does.
        """
        super().__init__()
        self.teacher = teacher
        self.want = cached_outputs(layers or {}, teacher.med.config.fusion_layers)
        self.folder = Path(root) / self._key(dataset, collate)
        with locked(self.folder):
            self._count_tokens(dataset, collate)
            shapes = {column: self._shape(column) for column in self._names()}
            self.columns = open_columns(self.folder, shapes, max_gb, "teacher outputs")
            fill(
                self.folder, self.columns, len(dataset),
                lambda rows: self._fill_rows(rows, [dataset[row] for row in rows], collate), "teacher outputs",
                self._span,
            )  # fmt: skip

    # --- reading --------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch, want: Want, pairs=None) -> Features:
        """Features of a batch of the cached data set, whose `index` and `caption_index` are known."""
        med, device = self.teacher.med, batch.image_id.device
        fused = want.abilities & {"itm", "vqa"}
        image = self._rows("image.states.-1", batch.index).to(device, med.temp.dtype) if fused else None
        out = self.teacher(batch, Want(fused), pairs, image)
        mask = with_prompt(batch.ids, batch.mask, med.config.prompt_ids)[1]
        out.decoder_mask = mask & batch.captioned[:, None]
        for source in SOURCES:
            trace = Trace(want.layers_of(source, med.config))
            for kind, layers in trace.wanted.items():
                for requested, layer in layers.items():
                    trace.kept[kind, layer] = self._read(source, kind, requested, batch, out)
            out.traces[source] = trace
        if "itc" in want.abilities:
            embeds = self._rows("image.embed", batch.index), self._rows("text.embed", self._captions(batch))
            out.contrast(*(embed.to(device) for embed in embeds))
        if "lm" in want.abilities:
            with torch.no_grad():
                states = self._read("decoder", "states", -1, batch, out).to(med.temp.dtype)
                out.logits["lm"] = med.text_decoder.cls(states)
        return out

    def _read(self, source: str, kind: str, layer: int, batch: Batch, out: Features) -> Tensor:
        """States [B, T, D], or a map [B, 1, T, K]."""
        column = f"{source}.{kind}.{layer}"
        if source == "image":
            return self._rows(column, batch.index).to(batch.image_id.device)
        mask = out.text_mask(source).cpu()
        first = torch.from_numpy(self.starts[source].ravel()[self._captions(batch)])
        stored = self._rows(column, (first[:, None] + torch.arange(mask.shape[1]))[mask])
        values = stored.new_zeros(*mask.shape, stored.shape[-1])
        values[mask] = stored
        if kind == "self":  # stored with as many keys as the longest caption has tokens
            values = values[..., : mask.shape[1]]
        return (values[:, None] if kind in MAP_KINDS else values).to(batch.image_id.device)

    def _rows(self, column: str, rows: Tensor) -> Tensor:
        return torch.from_numpy(self.columns[column][rows.cpu().numpy()]).float()

    def _captions(self, batch: Batch) -> Tensor:
        """Row of each caption in `text.embed`: every image has as many rows as the most captions of one."""
        return (batch.index * self.lengths.shape[1] + batch.caption_index).cpu()

    # --- layout ---------------------------------------------------------------------------------------------------

    def _key(self, dataset, collate: Collate) -> str:
        med = self.teacher.med
        about = {
            "version": VERSION, "torch": torch.__version__, "pillow": PIL.__version__, "model": med.config.to_dict(),
            "data": dataset.fingerprint(), "image_size": collate.image_size, "max_text": collate.max_text,
            "tokenizer": collate.tokenizer.rules(), "columns": sorted(self._names()),
        }  # fmt: skip
        return cache_key(about, med)

    def _names(self) -> list[str]:
        names = [f"{source}.{kind}.{i}" for (source, kind), layers in self.want.layers.items() for i in layers]
        return [*names, "image.embed", "text.embed"]

    def _count_tokens(self, dataset, collate: Collate) -> None:
        """Read or make `lengths`: tokens of each caption [images, most captions of one], 0 where there is none.

        From it follow, by source, each caption's first row (`starts`), the number of rows and the longest caption.
        """
        path = self.folder / "lengths.safetensors"
        try:
            self.lengths = read_tensors(path, checked=True)[0]["lengths"].numpy()
        except UserError:  # missing or damaged
            indices = tqdm(range(len(dataset)), "reading captions", leave=False)
            texts = [dataset.without_image(i).captions for i in indices]
            if not any(texts):
                raise UserError(f"{dataset.name} has no captions, which the cache needs; train without it") from None
            self.lengths = np.zeros((len(texts), max(map(len, texts))), np.int64)
            for row, captions in zip(self.lengths, texts, strict=True):
                if captions:
                    row[: len(captions)] = collate.tokenizer.encode(captions, max_length=collate.max_text)[1].sum(1)
            write_tensors(path, {"lengths": torch.from_numpy(self.lengths)})
        prompt = len(self.teacher.med.config.prompt_ids)
        tokens = {"decoder": self.lengths + prompt * (self.lengths > 0)}
        tokens |= dict.fromkeys(("text", "fusion"), self.lengths)
        self.starts = {source: (n.cumsum() - n.ravel()).reshape(n.shape) for source, n in tokens.items()}
        self.count = {source: int(n.sum()) for source, n in tokens.items()}
        self.longest = {source: int(n.max()) for source, n in tokens.items()}

    def _shape(self, column: str) -> tuple[int, ...]:
        c, images = self.teacher.med.config, self.lengths.shape[0]
        patches = c.grid**2 + 1
        if column.endswith("embed"):
            return (images if column == "image.embed" else self.lengths.size, c.embed_dim)
        source, kind, _ = column.split(".")
        if source == "image":
            return (images, patches, c.image_width)
        return self.count[source], {"states": c.text_width, "self": self.longest[source], "cross": patches}[kind]

    def _span(self, column: str, images: range) -> slice:
        """A column's rows of these images."""
        if column.startswith("image."):
            return slice(images.start, images.stop)
        if column == "text.embed":
            return slice(images.start * self.lengths.shape[1], images.stop * self.lengths.shape[1])
        starts = self.starts[column.split(".")[0]][:, 0]
        return slice(starts[images.start], starts[images.stop] if images.stop < len(starts) else None)

    # --- filling --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _fill_rows(self, rows: range, items: list, collate: Collate) -> None:
        """Compute and store the outputs of consecutive images and all their captions."""
        med = self.teacher.med
        device = med.temp.device
        trace = Trace(self.want.layers_of("image", med.config))
        image = med.encode_image(med.normalize(collate.pixels(items, 0).to(device)), trace)
        own_rows = slice(rows.start, rows.stop)
        self._store("image.embed", own_rows, med.project_image(image))
        for layer in self.want.layers["image", "states"]:
            self._store(f"image.states.{layer}", own_rows, trace.get("states", layer))
        owner = [i for i, item in enumerate(items) for _ in item.captions]
        if not owner:
            return

        captions = [caption for item in items for caption in item.captions]
        ids, mask = collate.tokenizer.encode(captions, max_length=collate.max_text)
        image_ids = torch.tensor([items[i].image_id for i in owner])
        texts = Batch(torch.empty(len(owner), 0), image_ids, ids, mask).to(device)
        want = Want(self.want.abilities, {key: layers for key, layers in self.want.layers.items() if key[0] != "image"})
        out = self.teacher(texts, want, None, image[owner])
        span = self._span("text.embed", rows)
        self._store("text.embed", np.flatnonzero(self.lengths.ravel()[span]) + span.start, out.text_embed)
        for (source, kind), layers in want.layers.items():
            for layer in layers:
                name, value = f"{source}.{kind}.{layer}", out.traces[source].get(kind, layer)
                value = (value.mean(1) if kind in MAP_KINDS else value)[out.text_mask(source)]
                self._store(name, self._span(name, rows), value)

    def _store(self, column: str, rows: slice | np.ndarray, values: Tensor) -> None:
        """Store values [N, K, ...]; a self-attention map has zeros for keys that its texts do not have."""
        values = to_float16(values, f"the teacher's {column}")
        self.columns[column][rows, : values.shape[1]] = values
        self.columns[column][rows, values.shape[1] :] = 0
