"""What a user may meet."""

import re

LONGEST = 800
"""Characters of a sentence: names and texts that users give stand in it as they are."""


class UserError(Exception):
    """A mistake that the user can mend: its text says in one sentence what is wrong, where, and what to do."""

    def __init__(self, sentence: str):
        super().__init__(one_line(sentence))


class Unable(UserError):
    """A model was asked for what its checkpoint has no weights for."""


def no_memory(error: Exception) -> bool:
    """Whether it tells that there is not enough memory, as torch does in errors of no kind of their own."""
    return isinstance(error, MemoryError) or bool(re.search("out of memory|can't allocate memory", str(error)))


def number_of(n: int, noun: str) -> str:
    """`1 fault`, `2 faults`, `1,000 faults`."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def one_line(text: str) -> str:
    """A text as a terminal can show it: a long one without its middle, line breaks as spaces, what does not print as
    escapes."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in re.sub(r"\s*[\n\r\t\v\f]\s*", " ", text))
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST // 2]} ... {shown[-LONGEST // 2 :]}"


def three_digits(value: float) -> str:
    """A cost as it is read: 0.0493, 12.5, 12,345."""
    return "<0.001" if value < 0.001 else f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"
