"""Options of `dlip data recaption`: how captions are written, and which of them a data set gets."""

from dataclasses import dataclass
from typing import Literal

from dlip.common.errors import UserError
from dlip.common.fields import option


@dataclass(frozen=True, kw_only=True)
class WritingConfig:
    """How captions are written and scored; a folder holds captions of one such configuration."""

    writer: str = option(metavar="MODEL")
    """Model that writes: any that --model takes, or an image-text-to-text model of transformers (hub id or folder)."""
    prompt: str | None = None
    """Text that captions continue, or request to a chat model (default: one short sentence); no part of captions."""
    captions: int = option(3, least=1, most=100)
    """Captions to write for each image."""
    top_p: float = option(0.9, above=0, most=1)
    """Sample from the most probable tokens that together have this probability."""
    beams: int | None = option(None, least=1, most=100)
    """Take the best captions of a search with so many beams instead of sampling."""
    max_tokens: int = option(30, least=1, most=1000)
    """Maximum tokens of a caption."""
    filter: str | None = option(None, metavar="MODEL")
    """Model whose scores filter the captions, by --keep, --threshold or both; by default all are kept."""
    score: Literal["itm", "itc"] = "itm"
    """Score of a caption: itm, the probability that it matches its image (as BLIP's CapFilt), or itc, the cosine."""
    batch_size: int = option(16, least=1)
    """Images per batch; a resumed command repeats at most one batch."""
    seed: int = option(0, least=0, most=2**32 - 1)
    """Seed of the sampling."""

    def __post_init__(self):
        if self.beams is not None and self.beams < self.captions:
            raise UserError(f"--beams {self.beams} cannot give {self.captions} captions; use {self.captions} or more")


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """Which captions a data set gets."""

    keep: int | None = option(None, least=1)
    """Keep the N captions of an image that score best."""
    threshold: float | None = None
    """Keep captions that score at least this."""
    human: float | None = option(None, least=0, most=1)
    """Share of human captions among those of an image, 0 to 1: the larger kind loses captions; by default all stay."""

    def check_filter(self, model: str | None) -> None:
        """Raise UserError for a filter without `keep` or `threshold`, or for these without a filter."""
        if model and self.keep is None and self.threshold is None:
            raise UserError(f"--filter {model} filters nothing; add --keep N, --threshold X or both")
        if not model and (self.keep, self.threshold) != (None, None):
            name = "keep" if self.threshold is None else "threshold"
            raise UserError(f"--{name} needs scores; name a model that gives them: --filter MODEL")
