"""The tasks that a model is evaluated, timed and exported for, and the sources of its hidden states."""

from dataclasses import dataclass
from typing import Literal

SOURCES = ("image", "text", "fusion", "decoder")
"""Where hidden states come from."""
Reranker = Literal["itm", "decoder"]
"""What re-ranks the candidates of retrieval."""


@dataclass(frozen=True)
class Task:
    """One task of a vision-language model."""

    abilities: tuple[str, ...]
    """Heads it uses (`dlip.models.features`): it runs with the first, in full with the last."""
    data: str
    """What each image needs for the task to be scored: "captions" or "questions"."""


TASKS = {
    "retrieval": Task(("itc", "itm"), "captions"),
    "captioning": Task(("lm",), "captions"),
    "vqa": Task(("vqa",), "questions"),
}
