"""Errors that a user can cause."""

import re

from dlip.common.text import one_line


class UserError(Exception):
    """A user's mistake. Its message is one line that says what is wrong, the offending value, and what to do."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


def check_at_least(least: int, **values: int | None) -> None:
    """Raise UserError if a value, by its name, is below `least`; None is unset."""
    for name, value in values.items():
        if value is not None and value < least:
            raise UserError(f"{name} is {value}; give {least} or more")


class MissingAbility(UserError):
    """The checkpoint has no weights for what the model was asked to do."""


def first_line(error: Exception) -> str:
    """The first line of another library's message, or the type of the error if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error reports lack of memory; torch raises a plain RuntimeError for it on CPUs."""
    return isinstance(error, MemoryError) or bool(re.search("out of memory|can't allocate memory", str(error)))
