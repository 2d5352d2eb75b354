"""Write any dataset as a folder of images, in the layout that `dlip.data.folders.dataset` reads."""

from collections.abc import Iterable
from pathlib import Path

from dlip.common.files import write_json
from dlip.data.annotation import Annotation
from dlip.data.transforms import as_pil


def write_folder(path: str | Path, splits: dict[str, object]) -> None:
    """Write `images/`, `captions.json` (Karpathy's layout) and `vqa.json` under `path`, replacing those that exist.

    splits: name of a split -> its dataset.
    """
    folder, annotations = Path(path), []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for split, dataset in splits.items():
        for i in range(len(dataset)):
            item, name = dataset[i], f"{split}-{i:06}.png"
            image = as_pil(item.image)
            image.save(folder / "images" / name)
            annotations.append(Annotation(name, split, item.captions, item.questions, writers=item.writers))
    write_annotations(folder, annotations)


def write_annotations(folder: Path, annotations: Iterable[Annotation]) -> None:
    """Write `captions.json` (Karpathy's layout) and `vqa.json`, the captions last."""
    captions, questions = [], []
    for about in annotations:
        if about.captions:
            sentences = [
                {"raw": text} | ({"writer": about.writers[text]} if text in about.writers else {})
                for text in about.captions
            ]
            captions.append({"filename": about.name, "split": about.split, "sentences": sentences})
        for question in about.questions:
            row = {"question": question.text, "answers": question.answers, "question_type": question.type}
            questions.append({"image": about.name, **row, "split": about.split})
    write_json(folder / "vqa.json", questions)
    write_json(folder / "captions.json", {"images": captions})
