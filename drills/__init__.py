"""Drills: what happens when things go wrong, tried many times over, and kept as records. A file each.

`python -m drills` does all of them, `python -m drills killed` one. A record is {"drill", "created", "command",
"machine", "versions", "settings", "counts", "faults", "seconds"}: what was tried, how often each came out in which way,
and every one that came out wrong, in words; a drill has held where there are none.
"""

import time
from inspect import signature
from pkgutil import resolve_name

from dlip.bench import about
from dlip.common.errors import UserError

DRILLS = {
    "bounds": "every test with the oldest and with the newest releases that pyproject.toml admits",
    "full": "a disk that is full, at random moments of training and of an export",
    "inputs": "thousands of bad pictures, texts, files, checkpoints and commands",
    "killed": "SIGKILL at random moments of training, of a cache's fill, of a grid and of an export",
    "large": "a million captions and 100,000 pictures packed, indexed, searched and learnt from, in flat memory",
    "siege": "the app under fifty visitors for five minutes, good and bad, and killed in the end",
}
"""Name, that of its module -> what is tried."""


def drill(name: str, command: str = "", **options) -> dict:
    """The record of a drill; `options` are those of its module's `run`. Raises UserError where there is none."""
    if name not in DRILLS:
        raise UserError(f"there is no drill {name!r}; choose one of {', '.join(DRILLS)}")
    run = resolve_name(f"drills.{name}:run")
    if unknown := options.keys() - signature(run).parameters:
        raise UserError(f"the drill {name} takes no {min(unknown)}; leave it out")
    began = time.perf_counter()
    settings, counts, faults = run(**options)
    seconds = round(time.perf_counter() - began, 1)
    record = {"drill": name, **about(command), "settings": settings, "counts": counts}
    return record | {"faults": faults, "seconds": seconds}
