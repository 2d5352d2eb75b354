"""Teacher outputs that stay the same from epoch to epoch, kept on disk.

What a teacher says of a picture, of a caption and of the two together is computed once, before training, and read from
then on: hidden states, attention maps (the mean over heads) and ITC vectors, in float16. What depends on the batch (ITM
of hard negatives) or is cheap (heads, answers) is computed from the pictures' stored states.
"""

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dlip.checkpoints.tensors import read_tensors, weights, write_tensors
from dlip.common.errors import UserError
from dlip.common.files import in_place, own_file, read_json, write_json
from dlip.common.text import plural
from dlip.data.batch import Batch
from dlip.data.collate import Collate
from dlip.data.transforms import resize_square
from dlip.models.composite import Composite
from dlip.models.features import SOURCES, Features, Trace, Want
from dlip.models.token_ids import with_prompt
from dlip.training.config import CACHE_GB
from dlip.training.distillation import Teacher

VERSION = 2
"""Of the layout below."""
PICTURES = 16
"""Pictures at a time in filling, with all their captions."""
FLUSH = 512
"""Pictures after which what was filled is safe on the disk, and whose checksums are kept."""
MAPS = ("self", "cross")
NAME = "[0-9a-f]{24}"
"""Of a cache's folder."""


def everything(layers: dict[str, tuple[tuple[int, int], ...]], fused: tuple[int, ...]) -> Want:
    """All that is kept: the last layers and those of the teacher that `layers` (as in TrainConfig) names; maps of
    cross-attention of those that are `fused`."""
    kept = {}
    for source in SOURCES:
        asked = tuple(sorted({-1, *(other for other, _ in layers.get(source, ()))}))
        for kind in ("states", *(MAPS if source in ("fusion", "decoder") else ())):
            some = asked if kind == "states" or source in layers else (-1,)
            kept[source, kind] = tuple(i for i in some if kind != "cross" or i < 0 or i in fused)
    return Want(frozenset({"itc"}), kept)


class TeacherCache(nn.Module):
    """A teacher that answers from the disk; called like `distillation.Teacher`.

    The folder's name is a hash of all that the outputs depend on (weights, data, texts, sizes, layers), so that a stale
    one is never read. Each column is a file of rows: a picture's (`image.*`), a caption's (`text.embed`) or a token's,
    so that no pads are kept. Rows beyond the `filled` pictures of `cache.json` have no meaning yet; "crc32" has the
    columns' checksums of every `FLUSH` of those before.
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
        """Opens the cache, filling what it lacks and, with a warning, what is damaged.

        Those in `root` that were opened longest ago give way where all of them would take more than `max_gb` GB. Raises
        UserError where this one alone would, or where a picture has no caption.
        """
        super().__init__()
        if not 0 < max_gb < math.inf:
            raise UserError(f"caches cannot take {max_gb} GB; give a finite number above 0")
        if isinstance(teacher.med, Composite):
            raise UserError("outputs of a teacher of several checkpoints are not kept on disk; train without the cache")
        self.teacher = teacher
        self.want = everything(layers or {}, teacher.med.config.fusion_layers)
        self.folder = Path(root) / self._key(dataset, collate)
        with locked(self.folder):
            self._index(dataset, collate)
            self._open(max_gb)
            self._fill(dataset, collate)

    def forward(self, batch: Batch, want: Want, pairs=None) -> Features:
        """What `want` names of a batch that was read from the same data set, its `rows` and `captions` known."""
        med, device = self.teacher.med, batch.image_id.device
        image = self._rows("image.states.-1", batch.rows).to(device, med.temp.dtype)
        live = Want(want.abilities & {"itm", "vqa"})
        out = self.teacher(batch, live, pairs, image)
        out.decoder_mask = with_prompt(batch.ids, batch.mask, med.config.prompt_ids)[0] != med.config.pad_id
        for source in SOURCES:
            trace = Trace(want.layers_of(source, med.config))
            for kind, layers in trace.wanted.items():
                for asked, layer in layers.items():
                    trace.kept[kind, layer] = self._trace(source, kind, asked, batch, out)
            out.traces[source] = trace
        if "itc" in want.abilities:
            embeds = self._rows("image.embed", batch.rows), self._rows("text.embed", self._caption(batch))
            out.contrast(*(embed.to(device) for embed in embeds))
        if "lm" in want.abilities:
            with torch.no_grad():
                states = self._trace("decoder", "states", -1, batch, out).to(med.temp.dtype)
                out.logits["lm"] = med.text_decoder.cls(states)
        return out

    def _trace(self, source: str, kind: str, layer: int, batch: Batch, out: Features) -> Tensor:
        """States [B, T, D], or a map [B, 1, T, K]."""
        column = f"{source}.{kind}.{layer}"
        if source == "image":
            return self._rows(column, batch.rows).to(batch.image_id.device)
        mask = (out.decoder_mask if source == "decoder" else batch.mask).cpu()
        first = torch.from_numpy(self.starts[source].ravel()[self._caption(batch)])
        rows = (first[:, None] + torch.arange(mask.shape[1]))[mask]
        kept = self._rows(column, rows)
        values = kept.new_zeros(*mask.shape, kept.shape[-1])
        values[mask] = kept
        if kind == "self":  # its keys are as many as the longest text of all
            values = values[..., : mask.shape[1]]
        return (values[:, None] if kind in MAPS else values).to(batch.image_id.device)

    def _rows(self, column: str, rows: Tensor) -> Tensor:
        return torch.from_numpy(self.columns[column][rows.cpu().numpy()]).float()

    def _caption(self, batch: Batch) -> Tensor:
        return (batch.rows * self.lengths.shape[1] + batch.caption_index).cpu()

    # --- on disk --------------------------------------------------------------------------------------------------

    def _key(self, dataset, collate: Collate) -> str:
        med = self.teacher.med
        about = {
            "version": VERSION, "torch": torch.__version__, "pillow": PIL.__version__, "model": med.config.to_dict(),
            "data": dataset.fingerprint(), "side": collate.image_size, "max_text": collate.max_text,
            "words": collate.tokenizer.rules(), "columns": sorted(self._names()),
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for name, tensor in sorted(weights(med).items()):
            digest.update(name.encode() + tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:24]

    def _names(self) -> list[str]:
        names = [f"{source}.{kind}.{i}" for (source, kind), layers in self.want.layers.items() for i in layers]
        return [*names, "image.embed", "text.embed"]

    def _index(self, dataset, collate: Collate) -> None:
        """How many tokens each caption has [pictures, most captions], and the first row of each, by source."""
        path = self.folder / "lengths.safetensors"
        try:
            self.lengths = read_tensors(path, checked=True)[0]["lengths"].numpy()
            if self.lengths.dtype != np.int64 or self.lengths.ndim != 2 or len(self.lengths) != len(dataset):
                raise ValueError(f"{path} is not what was written")
        except (UserError, LookupError, ValueError):  # not there yet, or damaged
            texts = [dataset[i].captions for i in tqdm(range(len(dataset)), "reading captions", leave=False)]
            if silent := sum(not captions for captions in texts):
                raise UserError(
                    f"{dataset.name} has {plural(silent, 'picture')} without a caption, by which the teacher's "
                    f"outputs are kept; train without the cache"
                ) from None
            lengths = np.zeros((len(texts), max(map(len, texts))), np.int64)
            for row, captions in zip(lengths, texts, strict=True):
                row[: len(captions)] = collate.tokenizer.encode(captions, max_length=collate.max_text)[1].sum(1)
            write_tensors(path, {"lengths": torch.from_numpy(lengths)})
            self.lengths = lengths
        prompt = len(self.teacher.med.config.prompt_ids)
        tokens = {"decoder": self.lengths + prompt * (self.lengths > 0)}
        tokens |= dict.fromkeys(("text", "fusion"), self.lengths)
        self.starts = {source: (n.cumsum() - n.ravel()).reshape(n.shape) for source, n in tokens.items()}
        self.count = {source: int(n.sum()) for source, n in tokens.items()}
        self.longest = {source: int(n.max()) for source, n in tokens.items()}

    def _shape(self, column: str) -> tuple[int, ...]:
        c, pictures = self.teacher.med.config, self.lengths.shape[0]
        patches = c.grid**2 + 1
        if column.endswith("embed"):
            return (pictures if column == "image.embed" else self.lengths.size, c.embed_dim)
        source, kind, _ = column.split(".")
        if source == "image":
            return (pictures, patches, c.image_width)
        return self.count[source], {"states": c.text_width, "self": self.longest[source], "cross": patches}[kind]

    def _open(self, max_gb: float) -> None:
        shapes = {column: self._shape(column) for column in self._names()}
        needed = sum(2 * int(np.prod(shape)) for shape in shapes.values()) / 1e9
        if needed > max_gb:
            raise UserError(
                f"the teacher's outputs would take {needed:.1f} GB, more than the {max_gb:g} GB allowed; allow more "
                f"with --cache-gb, use fewer pictures, or train without the cache"
            )
        make_room(self.folder, max_gb - needed)
        sizes = {self.folder / f"{column}.f16": 2 * int(np.prod(shape)) for column, shape in shapes.items()}
        if any(not path.is_file() or path.stat().st_size != size for path, size in sizes.items()):
            (self.folder / "cache.json").unlink(missing_ok=True)  # what it says is filled is not there
        self.columns = {}
        for (path, size), (column, shape) in zip(sizes.items(), shapes.items(), strict=True):
            with own_file(path) as file:
                try:
                    if hasattr(os, "posix_fallocate"):  # macOS has none: there a full disk is told of later
                        os.posix_fallocate(file.fileno(), 0, size)
                    else:
                        file.truncate(size)
                except OSError as error:
                    raise UserError(
                        f"{needed:.1f} GB for the teacher's outputs cannot be had in {self.folder} ({error.strerror}); "
                        f"make room, or train without the cache"
                    ) from None
                self.columns[column] = np.memmap(file, np.float16, "r+", shape=shape)

    def _fill(self, dataset, collate: Collate) -> None:
        state, pictures, kept, damaged = self.folder / "cache.json", range(len(dataset)), None, 0
        with suppress(UserError):  # where it is not there, or not whole
            kept = read_json(state).get("crc32")
        blocks = [pictures[i : i + FLUSH] for i in pictures[::FLUSH]]
        sums = kept[: len(blocks)] if isinstance(kept, list) else []
        checks = os.environ.get("LOCAL_RANK", "0") == "0"  # of a machine's several processes one is enough
        with tqdm(total=len(dataset), desc="teacher's outputs", unit="picture", disable=None) as bar:
            for place, block in enumerate(blocks):
                filled = place < len(sums)
                if filled and not (checks and self._sums(block) != sums[place]):
                    bar.update(len(block))
                    continue
                damaged += filled * len(block)
                for rows in (block[i : i + PICTURES] for i in range(0, len(block), PICTURES)):
                    self._fill_rows(rows, [dataset[i] for i in rows], collate)
                    bar.update(len(rows))
                for column in self.columns.values():
                    column.flush()
                sums[place : place + 1] = [self._sums(block)]
                write_json(state, {"filled": blocks[len(sums) - 1].stop, "crc32": sums})
        if damaged:
            whose = f"of {plural(damaged, 'picture')} in {self.folder}"
            warnings.warn(f"the teacher's outputs {whose} were damaged, and were made anew", stacklevel=2)

    def _sums(self, pictures: range) -> list[int]:
        """A checksum of each column's rows of these pictures."""
        return [zlib.crc32(values[self._span(column, pictures)]) for column, values in self.columns.items()]

    def _span(self, column: str, pictures: range) -> slice:
        """A column's rows that are of these pictures."""
        if column.startswith("image."):
            return slice(pictures.start, pictures.stop)
        if column == "text.embed":
            return slice(pictures.start * self.lengths.shape[1], pictures.stop * self.lengths.shape[1])
        starts = self.starts[column.split(".")[0]][:, 0]
        return slice(starts[pictures.start], starts[pictures.stop] if pictures.stop < len(starts) else None)

    @torch.no_grad()
    def _fill_rows(self, rows: range, items: list, collate: Collate) -> None:
        med = self.teacher.med
        device = med.temp.device
        pixels = torch.from_numpy(
            np.stack([resize_square(item.image, collate.image_size) for item in items])
        )  # [B, S, S, 3]
        trace = Trace(self.want.layers_of("image", med.config))
        image = med.encode_image(med.normalize(pixels.permute(0, 3, 1, 2).to(device)), trace)
        picture = [i for i, item in enumerate(items) for _ in item.captions]
        ids, mask = collate.tokenizer.encode([c for item in items for c in item.captions], max_length=collate.max_text)
        owner = torch.tensor([items[i].image_id for i in picture])
        texts = Batch(torch.empty(len(picture), 0), owner, ids, mask).to(device)
        want = Want(self.want.abilities, {key: layers for key, layers in self.want.layers.items() if key[0] != "image"})
        out = self.teacher(texts, want, None, image[picture])
        out.traces["image"] = trace

        at = slice(rows.start, rows.stop)
        first, last = rows.start * self.lengths.shape[1], rows.stop * self.lengths.shape[1]
        captions = np.flatnonzero(self.lengths.ravel()[first:last]) + first
        self.columns["image.embed"][at] = halves(med.project_image(image), "image.embed")
        self.columns["text.embed"][captions] = halves(out.text_embed, "text.embed")
        for (source, kind), layers in self.want.layers.items():
            for layer in layers:
                value = out.traces[source].get(kind, layer)
                name = f"{source}.{kind}.{layer}"
                column = self.columns[name]
                if source == "image":
                    column[at] = halves(value, name)
                    continue
                value = halves((value.mean(1) if kind in MAPS else value)[out.text_mask(source)], name)
                start = self.starts[source][rows.start, 0]
                column[start : start + len(value), : value.shape[1]] = value
                column[start : start + len(value), value.shape[1] :] = 0


def halves(values: Tensor, what: str) -> np.ndarray:
    """In float16. Raises UserError where that cannot hold them."""
    kept = values.half()
    if not kept.isfinite().all():
        raise UserError(
            f"the teacher's {what} has numbers up to {values.abs().max().item():.2g}, and the cache holds none beyond "
            f"65,504; train without the cache"
        )
    return kept.cpu().numpy()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder for this process alone, made where it is not there; another that holds it is waited for."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # where another makes room at this moment
            lock = own_file(folder / "lock")
            fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
            if in_place(lock, folder / "lock"):
                break
    with lock:
        yield


def make_room(folder: Path, gb: float) -> None:
    """Removes caches beside this one, those opened longest ago first, until the others take no more than `gb` GB.

    One that is being filled stays; a run that reads one that is removed has it open, and goes on.
    """
    found = []
    for lock in folder.parent.glob("*/lock"):
        if lock.parent != folder and re.fullmatch(NAME, lock.parent.name):
            with suppress(FileNotFoundError):  # where another makes room at this moment
                size = sum(file.stat().st_size for file in lock.parent.glob("*.f16"))
                found.append((lock.stat().st_mtime, size, lock))  # which it was opened at, to be locked
    taken = sum(size for _, size, _ in found)
    for _, size, lock in sorted(found):
        if taken <= gb * 1e9:
            break
        try:
            with own_file(lock) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
        except BlockingIOError:
            continue
        except FileNotFoundError:  # as above
            pass
        taken -= size
