"""Small image files, folders and shards."""

import io
import json
import tarfile
from pathlib import Path

from PIL import Image

from dlip.data.dataset import DataSet


def encoded(shade: int, kind: str = "PNG") -> bytes:
    """An image file of one color."""
    out = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 10, 200)).save(out, kind)
    return out.getvalue()


def write_tar(path: Path, members: dict[str, bytes | str | dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            content = json.dumps(content) if isinstance(content, dict) else content
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_shards(folder: Path, dataset: DataSet, images: int) -> Path:
    """A data set as WebDataset shards of so many images."""
    for first in range(0, len(dataset), images):
        members = {}
        for i in range(first, min(first + images, len(dataset))):
            x = dataset.without_image(i)
            questions = [{"question": q.text, "answers": q.answers, "question_type": q.type} for q in x.questions]
            members[f"{i:06}.png"] = dataset.image_bytes(i)
            members[f"{i:06}.json"] = {"image_id": x.image_id, "captions": x.captions, "questions": questions}
        write_tar(folder / f"{dataset.split}-{first // images:05}.tar", members)
    return folder


def write_captioned(folder: Path, kinds: str, split: str = "train") -> Path:
    """A folder with one captioned image for each letter: a good, a corrupt or a missing one ("gcm")."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for i, kind in enumerate(kinds):
        if kind != "m":
            (folder / "images" / f"{i}.png").write_bytes(encoded(20 * i) if kind == "g" else b"no image")
        rows.append(dict(filename=f"{i}.png", split=split, sentences=[{"raw": f"shade {i}"}]))
    (folder / "captions.json").write_text(json.dumps({"images": rows}))
    return folder


def write_questioned(folder: Path, images: int, split: str = "train") -> Path:
    """A folder with one question about each image."""
    (folder / "images").mkdir(parents=True)
    for i in range(images):
        (folder / "images" / f"{i}.png").write_bytes(encoded(20 * i + 10))
    rows = [dict(image=f"{i}.png", question="how much?", answers=[f"{i}"], split=split) for i in range(images)]
    (folder / "vqa.json").write_text(json.dumps(rows))
    return folder
