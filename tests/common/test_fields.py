"""Dataclass fields: bounds, types of JSON values, docstrings."""

from dataclasses import dataclass
from typing import Literal

import pytest

from dlip.common.errors import UserError
from dlip.common.fields import check, docstrings, from_dict, option


@dataclass(frozen=True)
class Inner:
    name: str = "a"
    """Name of
    the inner one."""


@dataclass(frozen=True)
class Outer:
    lr: float = option(0.1, above=0, most=1)
    """Learning rate."""
    steps: int | None = option(None, least=1)
    kind: Literal["x", "y"] = "x"
    """Kind."""
    pairs: tuple[int, ...] = ()
    weights: dict[str, float] = option(factory=dict)
    inner: Inner = Inner()
    """Inner."""

    def __post_init__(self):
        check(self, "outer.")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0.0}, "outer.lr is 0.0; give a number, above 0, at most 1"),
        ({"steps": 0}, "outer.steps is 0; give a whole number, at least 1"),
        ({"kind": "z"}, "outer.kind is 'z'; choose one of x, y"),
        ({"kind": ""}, "outer.kind is empty"),
        ({"lr": float("nan")}, "lr is nan; it has to be a number"),
        ({"lr": "fast"}, "lr is 'fast'; it has to be a number"),
        ({"steps": True}, "steps is True; it has to be a whole number"),
        ({"pairs": [1.5]}, r"pairs is \[1.5\]; it has to be a list"),
        ({"weights": {"a": "b"}}, r"weights\['a'\] is 'b'; it has to be a number"),
        ({"weights": []}, r"weights is \[\]; it has to be an object"),
        ({"inner": []}, r"inner is \[\]; it has to be an object"),
        ({"inner": {"names": "b"}}, "the inner configuration has the unknown name 'names'"),
        ({"depth": 1}, "the outer configuration has the unknown name 'depth'"),
        ([], r"the outer configuration is \[\]"),
    ],
)
def test_wrong_values_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        from_dict(Outer, values, "outer")


def test_json_becomes_the_dataclass():
    values = {"lr": 1, "steps": None, "pairs": [1, 2], "weights": {"a": 1}, "inner": {"name": "b"}}
    assert from_dict(Outer, values, "outer") == Outer(lr=1, pairs=(1, 2), weights={"a": 1}, inner=Inner("b"))


def test_docstrings_are_those_below_the_fields():
    found = docstrings(Outer)
    assert found == {"lr": "Learning rate.", "kind": "Kind.", "inner": "Inner."}
    assert docstrings(Inner)["name"] == "Name of the inner one."
