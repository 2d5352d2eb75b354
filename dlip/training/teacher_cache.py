"""Teacher outputs that do not change between epochs, cached on disk.

The teacher's hidden states, attention maps (mean over heads) and ITC vectors of every image and caption are computed
once, before training, and stored in float16. Logits of ITM (which depend on the batch) and of LM and VQA are computed
during training from the stored image states.
"""

import hashlib
import json
import math
import os
import re
import shutil
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dlip.checkpoints.tensors import read_tensors, weights, write_tensors
from dlip.common.errors import UserError
from dlip.common.files import exclusive_lock, read_json, write_json
from dlip.common.text import plural
from dlip.data.batch import Batch
from dlip.data.collate import Collate
from dlip.data.transforms import resize_square
from dlip.models.composite import Composite
from dlip.models.features import SOURCES, Features, Trace, Want
from dlip.models.token_ids import with_prompt
from dlip.training.config import CACHE_GB
from dlip.training.distillation import Teacher

VERSION = 3
"""Version of the layout on disk."""
BATCH_IMAGES = 16
"""Images per teacher batch while filling, with all their captions."""
BLOCK_IMAGES = 512
"""Images per block. A filled block is flushed to disk and its checksums are recorded."""
MAP_KINDS = ("self", "cross")
KEY_PATTERN = "[0-9a-f]{24}"


def cached_outputs(layers: dict[str, tuple[tuple[int, int], ...]], fusion_layers: tuple[int, ...]) -> Want:
    """What is cached: the last layers and the teacher's layers in `layers` (as in TrainConfig), and ITC vectors."""
    kept = {}
    for source in SOURCES:
        requested = tuple(sorted({-1, *(teacher_layer for teacher_layer, _ in layers.get(source, ()))}))
        kept[source, "states"] = requested
        if source in ("fusion", "decoder"):
            kept[source, "self"] = requested if source in layers else (-1,)
            kept[source, "cross"] = tuple(i for i in kept[source, "self"] if i < 0 or i in fusion_layers)
    return Want(frozenset({"itc"}), kept)


class TeacherCache(nn.Module):
    """A teacher that reads its outputs from disk; called like `distillation.Teacher`.

    A cache is a folder named by a hash of all that its outputs depend on (weights, data, tokenizer, sizes, layers), so
    that a stale one is never read. Each column is a file of rows: one for each image (`image.*`), caption
    (`text.embed`) or token (the others, without padding). `cache.json` holds the checksums of each column in each
    filled block of images. Runs may share a cache: the first fills it under a lock while the others wait.
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
        """Opens a cache in the folder `root`; fills what is missing and, with a warning, what is damaged.

        The least recently opened caches in `root` are deleted where all would take more than `max_gb` GB. Raises
        UserError where this one alone would, or where an image has no caption.
        """
        super().__init__()
        if not 0 < max_gb < math.inf:
            raise UserError(f"the caches' limit is {max_gb} GB; use a finite number above 0")
        if isinstance(teacher.med, Composite):
            raise UserError("outputs of a teacher of several checkpoints cannot be cached; train without the cache")
        if teacher.med.own_tokens:
            raise UserError("outputs of a teacher of another vocabulary cannot be cached; train without the cache")
        self.teacher = teacher
        self.want = cached_outputs(layers or {}, teacher.med.config.fusion_layers)
        self.folder = Path(root) / self._key(dataset, collate)
        with exclusive_lock(lock_path(self.folder)):
            self.folder.mkdir(exist_ok=True)
            os.utime(self.folder)
            self._count_tokens(dataset, collate)
            self._open_columns(max_gb)
            self._fill(dataset, collate)

    # --- reading --------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch, want: Want, pairs=None) -> Features:
        """Features of a batch of the cached data set, whose `rows` and `caption_index` are known."""
        med, device = self.teacher.med, batch.image_id.device
        image = self._rows("image.states.-1", batch.rows).to(device, med.temp.dtype)
        out = self.teacher(batch, Want(want.abilities & {"itm", "vqa"}), pairs, image)
        out.decoder_mask = with_prompt(batch.ids, batch.mask, med.config.prompt_ids)[0] != med.config.pad_id
        for source in SOURCES:
            trace = Trace(want.layers_of(source, med.config))
            for kind, layers in trace.wanted.items():
                for requested, layer in layers.items():
                    trace.kept[kind, layer] = self._read(source, kind, requested, batch, out)
            out.traces[source] = trace
        if "itc" in want.abilities:
            embeds = self._rows("image.embed", batch.rows), self._rows("text.embed", self._captions(batch))
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
            return self._rows(column, batch.rows).to(batch.image_id.device)
        mask = (out.decoder_mask if source == "decoder" else batch.mask).cpu()
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
        return (batch.rows * self.lengths.shape[1] + batch.caption_index).cpu()

    # --- layout ---------------------------------------------------------------------------------------------------

    def _key(self, dataset, collate: Collate) -> str:
        med = self.teacher.med
        about = {
            "version": VERSION, "torch": torch.__version__, "pillow": PIL.__version__, "model": med.config.to_dict(),
            "data": dataset.fingerprint(), "image_size": collate.image_size, "max_text": collate.max_text,
            "tokenizer": collate.tokenizer.rules(), "columns": sorted(self._names()),
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for name, tensor in sorted(weights(med).items()):
            digest.update(name.encode() + tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:24]

    def _names(self) -> list[str]:
        names = [f"{source}.{kind}.{i}" for (source, kind), layers in self.want.layers.items() for i in layers]
        return [*names, "image.embed", "text.embed"]

    def _count_tokens(self, dataset, collate: Collate) -> None:
        """Reads or makes `lengths`: tokens of each caption [images, most captions of one], 0 where there is none.

        From it follow, by source, each caption's first row (`starts`), the number of rows and the longest caption.
        """
        path = self.folder / "lengths.safetensors"
        try:
            self.lengths = read_tensors(path, checked=True)[0]["lengths"].numpy()
        except UserError:  # missing or damaged
            texts = [dataset[i].captions for i in tqdm(range(len(dataset)), "reading captions", leave=False)]
            if uncaptioned := sum(not captions for captions in texts):
                raise UserError(
                    f"{dataset.name} has {plural(uncaptioned, 'image')} without a caption, which the cache needs; "
                    f"train without the cache"
                ) from None
            self.lengths = np.zeros((len(texts), max(map(len, texts))), np.int64)
            for row, captions in zip(self.lengths, texts, strict=True):
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

    def _open_columns(self, max_gb: float) -> None:
        """Maps every column's file into memory, created at its full size where it is missing or of another size."""
        shapes = {column: self._shape(column) for column in self._names()}
        needed_gb = sum(2 * math.prod(shape) for shape in shapes.values()) / 1e9
        if needed_gb > max_gb:
            raise UserError(
                f"the teacher's outputs would take {needed_gb:.1f} GB, more than the {max_gb:g} GB allowed; raise "
                f"--cache-gb, use fewer images, or train without the cache"
            )
        delete_old_caches(self.folder, max_gb - needed_gb)
        self.columns = {}
        for column, shape in shapes.items():
            path, size = self.folder / f"{column}.f16", 2 * math.prod(shape)
            if not path.is_file() or path.stat().st_size != size:
                (self.folder / "cache.json").unlink(missing_ok=True)  # the blocks it lists are no longer all there
            with open(path, "a+b") as file:
                try:
                    file.truncate(size)
                    if hasattr(os, "posix_fallocate"):  # else a disk that fills up later would kill the process
                        os.posix_fallocate(file.fileno(), 0, size)
                except OSError as error:
                    raise UserError(
                        f"the teacher's outputs need {needed_gb:.1f} GB in {self.folder} ({error.strerror}); free "
                        f"some space, or train without the cache"
                    ) from None
            self.columns[column] = np.memmap(path, np.float16, "r+", shape=shape)

    def _fill(self, dataset, collate: Collate) -> None:
        """Computes the blocks that are missing, or whose checksums differ."""
        path, images, sums, damaged = self.folder / "cache.json", range(len(dataset)), [], 0
        with suppress(UserError):  # missing or damaged
            sums = read_json(path)["crc32"]
        checks = os.environ.get("LOCAL_RANK", "0") == "0"  # one process of a machine is enough
        with tqdm(total=len(dataset), desc="teacher outputs", unit="image", disable=None) as bar:
            for i, block in enumerate(images[start : start + BLOCK_IMAGES] for start in images[::BLOCK_IMAGES]):
                filled = i < len(sums)
                if filled and not (checks and self._checksums(block) != sums[i]):
                    bar.update(len(block))
                    continue
                damaged += filled * len(block)
                for rows in (block[start : start + BATCH_IMAGES] for start in range(0, len(block), BATCH_IMAGES)):
                    self._fill_rows(rows, [dataset[row] for row in rows], collate)
                    bar.update(len(rows))
                for column in self.columns.values():
                    column.flush()
                sums[i : i + 1] = [self._checksums(block)]
                write_json(path, {"crc32": sums})
        if damaged:
            about = f"{plural(damaged, 'image')} in {self.folder}"
            warnings.warn(f"the teacher's outputs of {about} were damaged and computed again", stacklevel=2)

    def _checksums(self, images: range) -> list[int]:
        """Checksum of each column's rows of these images."""
        return [zlib.crc32(values[self._span(column, images)]) for column, values in self.columns.items()]

    @torch.no_grad()
    def _fill_rows(self, rows: range, items: list, collate: Collate) -> None:
        """Computes and stores the outputs of consecutive images and all their captions."""
        med = self.teacher.med
        device = med.temp.device
        pixels = torch.from_numpy(np.stack([resize_square(item.image, collate.image_size) for item in items]))
        trace = Trace(self.want.layers_of("image", med.config))
        image = med.encode_image(med.normalize(pixels.permute(0, 3, 1, 2).to(device)), trace)
        owner = [i for i, item in enumerate(items) for _ in item.captions]
        captions = [caption for item in items for caption in item.captions]
        ids, mask = collate.tokenizer.encode(captions, max_length=collate.max_text)
        image_ids = torch.tensor([items[i].image_id for i in owner])
        texts = Batch(torch.empty(len(owner), 0), image_ids, ids, mask).to(device)
        want = Want(self.want.abilities, {key: layers for key, layers in self.want.layers.items() if key[0] != "image"})
        out = self.teacher(texts, want, None, image[owner])
        out.traces["image"] = trace

        span = self._span("text.embed", rows)
        embed_rows = np.flatnonzero(self.lengths.ravel()[span]) + span.start
        self.columns["image.embed"][rows.start : rows.stop] = to_float16(med.project_image(image), "image.embed")
        self.columns["text.embed"][embed_rows] = to_float16(out.text_embed, "text.embed")
        for (source, kind), layers in self.want.layers.items():
            for layer in layers:
                name, value = f"{source}.{kind}.{layer}", out.traces[source].get(kind, layer)
                column = self.columns[name][self._span(name, rows)]
                if source == "image":
                    column[:] = to_float16(value, name)
                    continue
                value = (value.mean(1) if kind in MAP_KINDS else value)[out.text_mask(source)]
                column[:, : value.shape[1]] = to_float16(value, name)
                column[:, value.shape[1] :] = 0


def to_float16(values: Tensor, name: str) -> np.ndarray:
    """Raises UserError where a value is beyond float16's range."""
    halves = values.half()
    if not halves.isfinite().all():
        raise UserError(
            f"the teacher's {name} has values up to {values.abs().max().item():.2g}, beyond the cache's limit of "
            f"65,504; train without the cache"
        )
    return halves.cpu().numpy()


def lock_path(folder: Path) -> Path:
    """The lock of a cache's folder lies beside it, so that it stays when the folder is deleted."""
    return folder.with_name(f"{folder.name}.lock")


def delete_old_caches(folder: Path, max_gb: float) -> None:
    """Deletes other caches beside `folder`, the least recently opened first, until they take at most `max_gb` GB.

    A cache that another process is opening or filling stays. A run that reads a deleted cache keeps its files open.
    """
    with exclusive_lock(folder.with_name("deleting.lock")):
        others = [path for path in folder.parent.iterdir() if re.fullmatch(KEY_PATTERN, path.name) and path != folder]
        sizes = {path: sum(file.stat().st_size for file in path.glob("*.f16")) for path in others}
        for path in sorted(others, key=lambda path: path.stat().st_mtime):
            if sum(sizes.values()) <= max_gb * 1e9:
                break
            with suppress(UserError), exclusive_lock(lock_path(path), "in use"):
                shutil.rmtree(path)
                del sizes[path]
