"""What visitors type and choose, within its limits; a mistake names its field."""

from dlip.errors import UserError

LONGEST = 1000
"""Characters of a text, at most."""
CONTROLS = dict.fromkeys((*range(32), 127), " ")


def text(words: str | None, noun: str, optional: bool = False) -> str:
    """Control characters as spaces, and none around it. Raises UserError where it is longer than `LONGEST`, or empty
    and not `optional`."""
    words = " ".join((words or "").translate(CONTROLS).split())
    if not words and not optional:
        raise UserError(f"the {noun} is empty; type one")
    if len(words) > LONGEST:
        raise UserError(f"the {noun} has {len(words):,} characters; shorten it to {LONGEST:,}")
    return words


def number(value: float | None, name: str, least: float, most: float) -> float:
    """Raises UserError where it is missing, no number, or beyond its limits."""
    asked = f"choose a number from {least:,} to {most:,}"
    if value is None:
        raise UserError(f"{name} is missing; {asked}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise UserError(f"{name} is {value!r:.40} here; {asked}")
    return value


def whole(value: float | None, name: str, least: int, most: int) -> int:
    """As `number`, without its fraction."""
    return int(number(value, name, least, most))
