"""Write captions for a data set's images, filter them, and make a data set of them and the human ones.

Source: BLIP's CapFilt (Li et al., arXiv 2201.12086, section 3.3).
"""

import io
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from dlip import data as data_sets
from dlip.common import machine
from dlip.common.errors import UserError
from dlip.common.files import exclusive_lock
from dlip.common.text import plural
from dlip.data.annotation import Annotation, image_id_from_name
from dlip.data.folders.dataset import Folder
from dlip.data.folders.write import write_annotations
from dlip.recaptioning.config import SelectionConfig, WritingConfig
from dlip.recaptioning.journal import Journal
from dlip.recaptioning.selection import mix, select
from dlip.recaptioning.writers import open_writer
from dlip.vlm import VLM

JOURNAL = "written.jsonl"
"""File of everything that was written, with scores."""


def recaption(
    name: str, out: str | Path, splits: tuple[str, ...], writing: WritingConfig, selection: SelectionConfig,
    on_error: str = "fatal",
) -> dict:  # fmt: skip
    """Write captions for splits of the data set `name`, and the data set with them to the folder `out`.

    Splits that are not named keep their own captions. A folder of a killed or finished command is continued: what it
    holds is not written again, while another selection makes the data set anew. Images of a folder are linked, others
    copied. Returns {"data", "writer", "out", "splits": {split: {"images", "human", "written", "dropped"}}}: of each
    written split the images with captions, their captions, and the written ones that were dropped. Raises UserError if
    the data, the models, the options or the folder are unusable, or no caption of a split is left.
    """
    selection.check_filter(writing.filter)
    folder = Path(out)
    datasets = _open(name, splits, on_error)
    about = {"writing": asdict(writing), "data": {split: datasets[split].fingerprint() for split in splits}}
    if folder.exists() and not (folder / JOURNAL).exists() and any(p.name != ".lock" for p in folder.iterdir()):
        raise UserError(f"{folder} holds other files; name another folder")
    journal = Journal(folder / JOURNAL, about)
    left = any(_missing(journal, datasets, split, writing.batch_size) for split in splits)
    write = _Write(writing) if left else None  # before anything is written
    with exclusive_lock(folder / ".lock", f"another process writes to {folder}; wait for it, or name another folder"):
        journal = Journal(folder / JOURNAL, about)  # another process may have added to it
        for split in splits if write else ():
            todo = _missing(journal, datasets, split, writing.batch_size)
            n = len(datasets[split])
            done = n - sum(map(len, todo))
            with tqdm(total=n, initial=done, desc=f"writing {split}", unit="image", disable=None) as bar:
                for places in todo:
                    journal.append(split, places[0], *write(datasets[split], split, places))
                    bar.update(len(places))
        counts = _write_data_set(folder, datasets, splits, journal, writing.writer, selection)
    return {"data": name, "writer": writing.writer, "out": str(folder), "splits": counts}


def text(result: dict) -> str:
    """The result of `recaption` as lines for a terminal."""
    return "\n".join(
        f"{split:12} {plural(n['images'], 'image')} with {n['human']:,} human and {n['written']:,} written captions, "
        f"{n['dropped']:,} dropped"
        for split, n in result["splits"].items()
    )


class _Write:
    """Captions and scores of some images of a data set."""

    def __init__(self, config: WritingConfig):
        self.config, self.filter = config, VLM.load(config.filter) if config.filter else None
        if self.filter:
            if config.score == "itm" and {"itc", "itm"} & self.filter.med.abilities == {"itc"}:
                raise UserError(f"{config.filter} gives no ITM score; add --score itc")
            self.filter.med.model_for(config.score)  # MissingAbility before anything is written
            self.filter.med.to(machine.device())
        self.writer = open_writer(config.writer)

    def __call__(self, dataset, split: str, places: range) -> tuple[list[list[str]], list[list[float]] | None]:
        images = [dataset[i].image for i in places]
        torch.manual_seed(image_id_from_name(f"{self.config.seed}:{split}:{places[0]}"))  # the same after a resume
        captions = self.writer.write(images, self.config)
        return captions, None if self.filter is None else scores(self.filter, self.config.score, images, captions)


def scores(model: VLM, kind: str, images: list, captions: list[list[str]]) -> list[list[float]]:
    """The ITM probability ("itm") or ITC cosine ("itc") of every caption with its image."""
    texts = [caption for own in captions for caption in own]
    rows = [row for row, own in enumerate(captions) for _ in own]
    if kind == "itm":
        values = model.match([images[row] for row in rows], texts).tolist()
    else:
        values = model.similarity(images, texts)[rows, range(len(texts))].tolist()
    remaining = iter(values)
    return [[next(remaining) for _ in own] for own in captions]


def _open(name: str, splits: tuple[str, ...], on_error: str) -> dict:
    """Every split of a data set, those to write for first. Raises UserError if one of them does not exist."""
    there = data_sets.splits(name, uncaptioned=True)
    if unknown := [split for split in splits if split not in there]:
        raise UserError(f"{name} has no split {unknown[0]!r}; name one of {', '.join(there)} with --splits")
    datasets = {}
    for split in dict.fromkeys((*splits, *there)):
        datasets[split] = data_sets.open(name, split, on_error=on_error, uncaptioned=True)
        datasets[split].verify()
    return datasets


def _missing(journal: Journal, datasets: dict, split: str, size: int) -> list[range]:
    """The batches of a split's images that the journal lacks."""
    done, n = journal.captions.get(split, {}), len(datasets[split])
    return [range(i, min(i + size, n)) for i in range(0, n, size) if i not in done]


def _write_data_set(
    folder: Path, datasets: dict, splits: tuple[str, ...], journal: Journal, writer: str, selection: SelectionConfig
) -> dict:
    """Write the images and annotations of every split; return the counts of those that were written for."""
    annotations, counts = [], {}
    for split, dataset in datasets.items():
        for i in tqdm(range(len(dataset)), f"collecting {split}", leave=False, disable=None):
            about = _own_annotation(folder, dataset, split, i)
            annotations.append(about)
            if split not in splits:
                continue
            texts, values = journal.captions[split][i], journal.scores.get(split, {}).get(i)
            new = select(about.captions, texts, values, selection)
            about.writers |= dict.fromkeys(new, writer)
            human = [caption for caption in about.captions if caption not in about.writers]
            earlier = [caption for caption in about.captions if caption in about.writers]
            human, written = mix(human, [*new, *earlier], selection.human)
            about.captions = [*human, *written]
            n = counts.setdefault(split, {"images": 0, "human": 0, "written": 0, "dropped": 0})
            n["images"] += bool(about.captions)
            n["human"] += len(human)
            n["written"] += len(written)
            n["dropped"] += len(texts) + len(earlier) - len(written)
        if split in splits and not counts[split]["images"]:
            raise UserError(f"no caption of the split {split} is left; choose a lower --threshold or another writer")
    write_annotations(folder, annotations)
    return counts


def _own_annotation(folder: Path, dataset, split: str, i: int) -> Annotation:
    """The texts that image i has already, under the name of its file below `images/`, which is linked or written."""
    images = folder / "images"
    if isinstance(dataset, Folder):
        root = dataset.root.resolve()
        if not images.is_symlink() or images.readlink() != root:
            images.unlink(missing_ok=True)
            images.symlink_to(root, target_is_directory=True)
        own = dataset.annotations[i]
        return Annotation(own.name, split, list(own.captions), own.questions, writers=dict(own.writers))
    images.mkdir(exist_ok=True)
    item, data = dataset.without_image(i), dataset.image_bytes(i)
    name = f"{split}-{i:09}.{Image.open(io.BytesIO(data)).format.lower()}"
    (images / name).write_bytes(data)
    return Annotation(name, split, list(item.captions), item.questions, writers=dict(item.writers))
