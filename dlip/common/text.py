"""Formatting of text that users read."""

import math
import re

MAX_CHARACTERS = 800
"""Longest text that `one_line` returns in full: users' file names and texts are quoted in error messages."""

CJK = "\u3001-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff9f\U00020000-\U0002fa1f"
"""Class of a regular expression: Chinese and Japanese characters and punctuation, which have no spaces between them."""


def plural(n: int, noun: str) -> str:
    """A count with its noun: `1 fault`, `2 faults`, `1,000 faults`."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def one_line(text: str) -> str:
    """Text on one printable line: line breaks become spaces, unprintable characters are escaped, a long text loses its
    middle."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in re.sub(r"\s*[\n\r\t\v\f]\s*", " ", text))
    half = MAX_CHARACTERS // 2
    return line if len(line) <= MAX_CHARACTERS else f"{line[:half]} ... {line[-half:]}"


def replace_surrogates(text: str) -> str:
    """The text with unpaired surrogates, which no tokenizer reads, as question marks."""
    return text.encode("utf-8", "replace").decode()


def join_words(text: str) -> str:
    """Decoded WordPiece as people write it: "a man ' s dog" becomes "a man's dog"; no space stays between `CJK`.

    tokenizers' decoder cleans up one token at a time, so it never sees the spaces on both sides of an apostrophe;
    `transformers` replaces them in the whole text, as this does. BERT puts spaces around each Chinese character.
    """
    return re.sub(f"(?<=[{CJK}]) (?=[{CJK}])", "", text.replace(" ' ", "'"))


def split_cjk(text: str) -> str:
    """The text with spaces around each Chinese or Japanese character, and a space in place of their punctuation."""
    return re.sub(f"[{CJK}]", lambda match: f" {match[0]} " if match[0].isalnum() else " ", text)


def mean_and_spread(mean: float, spread: float, digits: int = 1) -> str:
    """A mean with its standard deviation, if it has one: `86.6 ±4.8`; a dash in place of NaN."""
    if math.isnan(mean):
        return "–"
    return f"{mean:.{digits}f}" + ("" if math.isnan(spread) else f" ±{spread:.{digits}f}")


def three_digits(value: float) -> str:
    """A cost with three significant digits: 0.0493, 12.5, 12,345."""
    return "<0.001" if value < 0.001 else f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"
