"""Captions and questions of one image, and the faults among them."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from dlip.data.batch import Question

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
"""Word in the name of a file, a folder or a hub's split -> split."""
_SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join(SPLITS)})(?![a-z])")


def as_text(value) -> str:
    """A value as text, a whole number without a decimal point: tables store counts as floats beside missing values."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def split_in(text: str) -> str | None:
    """The split that the last such word in a file's name or path stands for: train2014 -> train."""
    found = _SPLIT_WORD.findall(text)
    return SPLITS[found[-1]] if found else None


def image_id_from_name(name: str) -> int:
    """53 bits of the hash of an image's name: the same in every run, split and folder, and exact in JSON."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()) >> 11


@dataclass
class Annotation:
    """Captions and questions of one image, all of them or some."""

    name: str
    """Name of the image; in a folder its path below `images/`."""
    split: str = ""
    captions: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """What cannot be used, each beginning with the name of the image."""
    writers: dict[str, str] = field(default_factory=dict, repr=False)  # folders' fingerprints hash the repr
    """Caption -> name of the model that wrote it; others are human."""

    def add_captions(self, captions: Iterable[str], writers: dict[str, str] | None = None) -> None:
        """Add captions, and a fault for each empty one. writers: caption -> name of the model that wrote it."""
        captions = [caption.strip() for caption in captions]
        self.captions += filter(None, captions)
        self.faults += [f"{self.name} has an empty caption"] * captions.count("")
        self.writers |= {caption.strip(): name for caption, name in (writers or {}).items()}

    def add_question(self, text: str, answers: Iterable[str | float], kind: str) -> None:
        """Add a question with its non-empty answers, numbers as text, or a fault if there is no text or no answer."""
        answers = [as_text(answer).strip() for answer in answers if isinstance(answer, str | int | float)]
        text, answers = text.strip(), list(filter(None, answers))
        if not text:
            self.faults.append(f"{self.name} has an empty question")
        elif not answers:
            self.faults.append(f"{self.name} has no answer to {text!r}")
        else:
            self.questions.append(Question(text, answers, kind))

    def check_not_empty(self) -> None:
        """Add a fault if there are neither texts nor faults."""
        if not self.captions and not self.questions and not self.faults:
            self.faults.append(self.no_caption)

    @property
    def no_caption(self) -> str:
        """The fault of an image without texts."""
        return f"{self.name} has no caption"
