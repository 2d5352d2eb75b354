"""Models by name: loaded once, the most recent ones kept, used by one thread at a time."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakKeyDictionary

import dlip
from dlip.checkpoints.load import built_in_models, model_folder, parse_name
from dlip.common.errors import UserError
from dlip.common.files import read_json
from dlip.export.optimize import Optimized
from dlip.vlm import VLM

MAX_LOADED = 6
"""Models in memory; beyond that, the least recently used one is dropped."""
PAIRS = {kind: (f"{kind}/teacher", f"{kind}/student") for kind in ("photos", "scenes")}
"""Kind of images -> the shipped teacher and student that know it, the pair that the page prefers first."""
LIMIT_S = 300
"""Seconds that one long job may take."""
Progress = Callable[[float], object]
"""Is called with the finished fraction of a job."""
UNDISTILLED = "-undistilled"
"""End of the names of shipped students that were trained without a teacher."""

turn = threading.Condition()
"""Held while a model runs, as two at a time would distort each other's timings. Long jobs hold it a step at a time, and
nobody holds it while a model is loaded."""

_fixed: tuple[str, ...] = ()
_optimizes = False
_optimized: WeakKeyDictionary[VLM, Optimized] = WeakKeyDictionary()
_loaded: OrderedDict[tuple[str, tuple[int, ...]], Future[VLM]] = OrderedDict()
"""Models by name and version, those being loaded included; the most recently used one last."""


def fix(names: list[str] | None) -> None:
    """Allow these models only; with None, allow whatever `dlip.load` finds."""
    global _fixed
    _fixed = tuple(names or ())


def optimize(on: bool) -> None:
    """Optimize the models that are loaded from now on, for `fastest`, or stop doing so."""
    global _optimizes
    _optimizes = on


def fastest(vlm: VLM) -> VLM | Optimized:
    """What `dlip.export.optimize.optimize` made of a loaded model; the model itself if it was not optimized."""
    return _optimized.get(vlm, vlm)


def are_fixed() -> bool:
    return bool(_fixed)


def choices() -> list[str]:
    """Names to choose from: the fixed models, or the built-in ones."""
    return list(_fixed) or built_in_models()


def defaults() -> tuple[str, str]:
    """The teacher and the student that the page opens with."""
    if _fixed:
        return _fixed[0], _fixed[min(1, len(_fixed) - 1)]
    return next(pair for pair in PAIRS.values() if {*pair} <= {*choices()})


def out_of_domain(kind: str, names: tuple[str, str]) -> set[str]:
    """Those of the models that are shipped and were not trained on this kind of images, "photos" or "scenes"."""
    return {*names} & {*built_in_models()} - {*built_in_models(kind)}


def pair_for(kind: str, names: tuple[str, str]) -> tuple[str, str]:
    """The shipped teacher and student for a kind of images, if both models are out of their domain on it and this pair
    can be chosen; else the models themselves. An undistilled student is replaced by an undistilled one."""
    teacher, student = PAIRS[kind]
    pair = teacher, (undistilled(student) or student) if names[1].endswith(UNDISTILLED) else student
    return pair if out_of_domain(kind, names) == {*names} and {*pair} <= {*choices()} else names


def undistilled(student: str) -> str | None:
    """Name of the student of the same kind that was trained without a teacher, if it can be chosen."""
    name = student + UNDISTILLED
    return name if name in choices() else None


def load(name: str) -> VLM:
    """A model by name. Raises UserError if it does not exist or is not among the fixed ones."""
    name = str(name or "").strip()
    if not name:
        raise UserError("a model is missing; choose one at the top of the page")
    if _fixed and name not in _fixed:
        raise UserError(f"the model {name!r} is not available here; choose one of {', '.join(_fixed)}")
    key = name, _version(name)
    with turn:
        if key not in _loaded:
            _loaded[key] = Future()
            threading.Thread(target=_load, args=(key, _loaded[key]), daemon=True).start()
        _loaded.move_to_end(key)
        future = _loaded[key]
        turn.wait_for(future.done)
    return future.result()


def _version(name: str) -> tuple[int, ...]:
    """Times of the weights in a run's folder: one that is trained again is loaded again."""
    with suppress(UserError, OSError):
        return tuple(file.stat().st_mtime_ns for file in sorted(_folder(name).glob("model*.safetensors")))
    return ()


def _folder(name: str) -> Path:
    """The folder of a model, at whatever image size. Raises UserError if dlip has not written it."""
    return model_folder(parse_name(name).name)


def _load(key: tuple[str, tuple[int, ...]], future: Future[VLM]) -> None:
    vlm = failure = None
    try:
        vlm = dlip.load(key[0])
        if _optimizes:
            with suppress(UserError):  # a CLIP, several models as one, one without captions
                _optimized[vlm] = vlm.optimize()
    except Exception as error:
        failure = error
    with turn:
        if failure:
            future.set_exception(failure)
            _loaded.pop(key, None)  # the next request tries again
        else:
            future.set_result(vlm)
        while len(_loaded) > MAX_LOADED:
            _loaded.popitem(last=False)
        turn.notify_all()


def pair(teacher: str, student: str) -> dict[str, VLM]:
    """{"teacher": VLM, "student": VLM}. Raises UserError as `load` does."""
    return {"teacher": load(teacher), "student": load(student)}


def names(pair: dict[str, VLM]) -> dict[str, str]:
    """Side -> name of its model."""
    return {side: vlm.name for side, vlm in pair.items()}


def role(name: str, side: str) -> str:
    """Key of `dlip.plots.style.COLORS` for a model: a student's record says whether it was distilled.

    No file is read for a name that is not available.
    """
    if side != "student":
        return side
    recorded = None
    if not _fixed or name in _fixed:
        with suppress(UserError, OSError):
            recorded = read_json(_folder(name) / "record.json").get("role")
    return "undistilled" if recorded == "undistilled" else "distilled"  # never any other text of a file


@contextmanager
def in_turns(progress: Progress | None = None) -> Iterator[Progress]:
    """Hold `turn`; yield a `progress` callback for dlip's long functions that lets others take a turn.

    The callback raises UserError after `LIMIT_S` seconds.
    """
    end = time.monotonic() + LIMIT_S

    def step(fraction: float) -> None:
        if time.monotonic() > end:
            raise UserError(f"this job reached its limit of {LIMIT_S} seconds; choose a smaller one")
        turn.release()
        try:
            if progress:
                progress(fraction)
            time.sleep(0.001)  # a lock that is released and acquired at once goes to nobody else
        finally:
            turn.acquire()

    with turn:
        yield step
