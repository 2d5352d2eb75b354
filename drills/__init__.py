"""Fault injection: each drill repeats one kind of failure many times and records every outcome.

`python -m drills` runs all of them, `python -m drills killed` one. A record is {"drill", "created", "command",
"machine", "versions", "settings", "counts", "faults", "seconds"}. counts: how often each outcome occurred; faults: a
sentence for each wrong outcome. A drill passes when there are none.
"""

import time
from inspect import signature
from pkgutil import resolve_name

from dlip.bench import about
from dlip.common.errors import UserError

DRILLS = {
    "bounds": "all tests with the oldest and with the newest releases that pyproject.toml allows",
    "full": "a full disk at random moments of training, caching, a grid and an export",
    "inputs": "thousands of malformed images, texts, files, checkpoints and commands",
    "killed": "SIGKILL at random moments of training, caching, a grid and an export",
    "siege": "50 users of the app for five minutes, good and bad, and a kill at the end",
}
"""Name of a drill and of its module -> what it does."""


def run_drill(name: str, command: str = "", **options) -> dict:
    """Run a drill and return its record. options: arguments of its module's `run`. Raises UserError for others."""
    if name not in DRILLS:
        raise UserError(f"there is no drill {name!r}; choose one of {', '.join(DRILLS)}")
    run = resolve_name(f"drills.{name}:run")
    if unknown := options.keys() - signature(run).parameters:
        raise UserError(f"the drill {name} has no option {min(unknown)}; omit it")
    start = time.perf_counter()
    settings, counts, faults = run(**options)
    seconds = round(time.perf_counter() - start, 1)
    record = {"drill": name, **about(command), "settings": settings, "counts": counts}
    return record | {"faults": faults, "seconds": seconds}
