"""Write any dataset as a folder of images, in the layout that `dlip.data.folders.dataset` reads."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_folder(path: str | Path, splits: dict[str, object]) -> None:
    """Write `images/`, `captions.json` (Karpathy's layout) and `vqa.json` under `path`, replacing those that exist.

    splits: name of a split -> its dataset.
    """
    folder = Path(path)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    captions, questions = [], []
    for split, dataset in splits.items():
        for i in range(len(dataset)):
            item, name = dataset[i], f"{split}-{i:06}.png"
            image = Image.fromarray(item.image) if isinstance(item.image, np.ndarray) else item.image
            image.save(folder / "images" / name)
            if item.captions:
                sentences = [{"raw": text} for text in item.captions]
                captions.append({"filename": name, "split": split, "sentences": sentences})
            for question in item.questions or ():
                about = {"question": question.text, "answers": question.answers, "question_type": question.type}
                questions.append({"image": name, **about, "split": split})
    (folder / "captions.json").write_text(json.dumps({"images": captions}, indent=1))
    (folder / "vqa.json").write_text(json.dumps(questions, indent=1))
