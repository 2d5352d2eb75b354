"""The models that visitors name: loaded once, the latest few kept, used by one thread at a time."""

import threading
from collections import OrderedDict
from concurrent.futures import Future
from contextlib import suppress
from functools import lru_cache

import dlip
from dlip.checkpoints.load import built_in_models, model_folder
from dlip.common.errors import UserError
from dlip.common.files import read_json
from dlip.vlm import VLM

from . import inputs

KEPT = 6
"""Models in memory; of more, the one that has not been used for longest is dropped."""
TEACHER, STUDENT = "scenes/teacher", "scenes/student"

turn = threading.Condition()
"""Held while a model works: two at a time would spoil each other's timings. Long work holds it a step at a time, and
nobody holds it while waiting for a model to be loaded."""

_fixed: tuple[str, ...] = ()
_kept: OrderedDict[str, Future[VLM]] = OrderedDict()
"""By name, those that are being loaded among them; the one that was asked for last stands last."""


def fix(names: list[str] | None) -> None:
    """Only these can be chosen from now on; any that `dlip.load` finds where there are none."""
    global _fixed
    _fixed = tuple(names or ())
    role.cache_clear()


def fixed() -> bool:
    return bool(_fixed)


def choices() -> list[str]:
    """Names to choose from: the fixed ones, or the built-in models."""
    return list(_fixed) or built_in_models()


def first() -> tuple[str, str]:
    """The teacher and the student that the page opens with."""
    return (_fixed[0], _fixed[min(1, len(_fixed) - 1)]) if _fixed else (TEACHER, STUDENT)


def load(name: str) -> VLM:
    """A model by name. Raises UserError where there is none of that name, or where it is not among the fixed ones."""
    name = str(name or "").strip()
    if not name:
        raise UserError("a model is missing; choose one at the top of the page")
    if len(name) > inputs.LONGEST:
        raise UserError(f"a model's name of {len(name):,} characters is too long; give at most {inputs.LONGEST:,}")
    if _fixed and name not in _fixed:
        raise UserError(f"the model {name!r} cannot be chosen here; choose one of {', '.join(_fixed)}")
    with turn:
        if name not in _kept:
            _kept[name] = Future()
            threading.Thread(target=_load, args=(name, _kept[name]), daemon=True).start()
        _kept.move_to_end(name)
        found = _kept[name]
        turn.wait_for(found.done)
    return found.result()


def _load(name: str, found: Future[VLM]) -> None:
    vlm = mistake = None
    try:
        vlm = dlip.load(name)
    except Exception as error:
        mistake = error
    with turn:
        if mistake:
            found.set_exception(mistake)
            _kept.pop(name, None)  # whoever asks again may have put it right
        else:
            found.set_result(vlm)
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
        turn.notify_all()


def pair(teacher: str, student: str) -> dict[str, VLM]:
    """{"teacher", "student"}: the two models. Raises UserError as `load` does."""
    return {"teacher": load(teacher), "student": load(student)}


def names(pair: dict[str, VLM]) -> dict[str, str]:
    """What the models of a `pair` are called."""
    return {side: vlm.name for side, vlm in pair.items()}


@lru_cache(maxsize=64)
def role(name: str, side: str) -> str:
    """The key of dlip.plots.style.COLORS that a model is drawn in: a student's own record says how it was trained.

    Of a name that cannot be chosen no file is looked at.
    """
    if side == "teacher":
        return side
    said = None
    if not _fixed or name in _fixed:
        with suppress(UserError, OSError):
            said = read_json(model_folder(name) / "record.json").get("role")
    return "undistilled" if said == "undistilled" else "distilled"  # whatever else a file says
