"""The texts of a dataset, and how well a vocabulary covers them."""

import warnings
from collections.abc import Iterator
from itertools import islice

from dlip.data.quarantine import without_image
from dlip.data.tokenizer import Tokenizer

CHECKED_TEXTS = 1000
TOLERATED = 0.02
"""Share of unknown tokens, or of truncated texts, above which `warn_of_lost_texts` warns."""


def texts_of(dataset, images: int) -> Iterator[str]:
    """Captions, questions and answers of at most `images` images, of each of joined datasets."""
    for part in getattr(dataset, "datasets", [dataset]):
        for i in range(min(images, len(part))):
            item = without_image(part, i)
            yield from item.captions
            for question in item.questions:
                yield from (question.text, *question.answers)


def warn_of_lost_texts(dataset, tokenizer: Tokenizer, max_text: int) -> None:
    """Warn where the vocabulary lacks many characters of the first texts, or many exceed `max_text` tokens."""
    ids, mask = tokenizer.encode(list(islice(texts_of(dataset, CHECKED_TEXTS), CHECKED_TEXTS)))
    if not mask.any():
        return
    unknown = ((ids == tokenizer.unknown_id).sum() / mask.sum()).item()
    truncated = (mask.sum(1) > max_text).float().mean().item()
    lost = []
    if unknown > TOLERATED:
        lost.append(f"{unknown:.0%} of the tokens are unknown to the vocabulary")
    if truncated > TOLERATED:
        lost.append(f"{truncated:.0%} are cut at {max_text} tokens")
    if lost:
        warnings.warn(
            f"of the first texts of {dataset.name} {' and '.join(lost)}, so the model cannot learn them; choose a "
            "teacher or --tokenizer that knows their words",
            stacklevel=3,
        )
