"""How well a vocabulary covers the texts of a data set."""

import warnings
from itertools import islice

from dlip.data.dataset import DataSet
from dlip.data.tokenizer import Tokenizer

CHECKED_TEXTS = 1000
TOLERATED = 0.02
"""Share of unknown tokens, or of truncated texts, above which `warn_of_lost_texts` warns."""


def warn_of_lost_texts(dataset: DataSet, tokenizer: Tokenizer, max_text: int) -> None:
    """Warn where the vocabulary lacks many characters of the first texts, or many exceed `max_text` tokens."""
    ids, mask = tokenizer.encode(list(islice(dataset.texts(CHECKED_TEXTS), CHECKED_TEXTS)))
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
