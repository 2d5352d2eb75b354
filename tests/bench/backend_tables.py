"""Tables in Markdown of a record of `dlip bench backends`."""

from collections.abc import Callable

from dlip.bench.backends import OWN
from dlip.common.text import three_digits
from dlip.export import backends
from dlip.export.optimize import BACKENDS, TOLERANCE

MODELS = {"blip-base": "BLIP-Base", "dlip-small": "DLIP-Small"}
OUTPUTS = {"caption": "caption", "states": "image states", "pair": "pair score"}
PRECISIONS = {"fp32": "fp32", "bf16": "half", "int8": "8 bits"}

Row = dict
Cell = tuple[str, str, int]
"""Output, model, batch."""


def times(record: dict) -> str:
    """A row is an output, model, batch and precision, a column a backend."""
    names, cells = list(backends.CLASSES), dict[tuple, dict[str, Row]]()
    for one in filter(_is_timed, record["rows"]):
        cells.setdefault((*_cell(one), one["precision"]), {})[one["name"]] = one
    lines = []
    for (*cell, precision), by_name in cells.items():
        own = [_spread(by_name[name]) if name in by_name else "" for name in names]
        compared = by_name.keys() & {*OWN} and by_name.keys() - {*OWN, "limit"}
        ratio = f"{speed_over_peers(by_name):.2f}" if compared else ""
        lines.append([f"{_title(*cell)}, {PRECISIONS[precision]}", *own, ratio, three_digits(by_name["limit"]["ms"])])
    return _markdown(["", *names, "dlip / best peer", "limit"], lines)


def speed_over_peers(by_name: dict[str, Row]) -> float:
    """How many times as fast this package is as the fastest other backend, by medians."""
    here, peers = (
        min(one["ms"] for name, one in by_name.items() if name != "limit" and (name in OWN) == own)
        for own in (True, False)
    )
    return peers / here


def picks(record: dict) -> str:
    """The fastest backend that `optimize` can pick for every model, output and batch, and the fastest other one: of
    those within its tolerance, in any precision.
    """
    lines, limits = [], {(*_cell(one), one["precision"]): one["ms"] for one in record["rows"] if one["name"] == "limit"}
    for cell, rows in _accurate(record).items():
        own, other = _fastest(rows, _can_serve), _fastest(rows, lambda one: not _can_serve(one))
        ratio = f"{other['ms'] / own['ms']:.2f}" if own and other else ""
        share = f"{100 * limits[*cell, own['precision']] / own['ms']:.0f}%" if own else ""
        lines.append([_title(*cell), *map(_named, (own, other)), ratio, share])
    return _markdown(["", "optimize, ms", "fastest other, ms", "ratio", "share of the limit"], lines)


def over_stock(record: dict) -> str:
    """How many times as fast as stock in fp32 this package is, packed, and what `optimize` can pick; below, captions of
    the small model over stock's of the large one.
    """
    cells, (large, small) = _accurate(record), MODELS
    stock = {cell: one["ms"] for cell, rows in cells.items() for one in rows if one["name"] == "stock"
             and one["precision"] == "fp32"}  # fmt: skip

    def line(title: str, cell: Cell, speed: Callable[[Row], float]) -> list[str]:
        packed = {one["precision"]: one for one in cells[cell] if one["name"] == "dlip, packed"}
        shown = packed.get("fp32"), packed.get("bf16"), _fastest(cells[cell], _can_serve)
        return [title, *(f"{speed(one):.1f}" if one else "" for one in shown)]

    lines = [line(_title(*cell), cell, lambda one: one["ratio"]) for cell in stock]
    lines += [
        line(f"{_title(output, small, batch)}, over {MODELS[large]}", (output, small, batch),
             lambda one, ms=ms: ms / one["ms"])
        for (output, model, batch), ms in stock.items() if (output, model) == ("caption", large)
    ]  # fmt: skip
    return _markdown(["", "dlip, packed, fp32", "dlip, packed, half", "optimize"], lines)


def footprints(record: dict) -> str:
    """Peak memory, size on disk, start-up and error of every backend, a row for each model."""
    lines = [
        [f"{MODELS.get(one['model'], one['model'])}, {PRECISIONS[one['precision']]}, {one['name']}",
         f"{one['peak_mb']:,}", three_digits(one["disk_mb"]), three_digits(one["start_s"]), f"{one['error']:.1g}"]
        for one in record["rows"] if "peak_mb" in one
    ]  # fmt: skip
    return _markdown(["model, precision, backend", "peak memory, MB", "on disk, MB", "start-up, s", "error"], lines)


def _markdown(head: list[str], lines: list[list[str]]) -> str:
    rows = [f"| {' | '.join(cells)} |" for cells in (head, *lines)]
    return "\n".join([rows[0], "|---" * len(head) + "|", *rows[1:]])


def _is_timed(one: Row) -> bool:
    return "output" in one


def _can_serve(one: Row) -> bool:
    return one["name"] in BACKENDS


def _cell(one: Row) -> Cell:
    return one["output"], one["model"], one["batch"]


def _title(output: str, model: str, batch: int) -> str:
    return f"{OUTPUTS[output]}, {MODELS.get(model, model)}, batch {batch}"


def _accurate(record: dict) -> dict[Cell, list[Row]]:
    """Timed rows of backends within the tolerance of `optimize`; an error that is rounded to it may be above."""
    errors = {(one["model"], one["name"], one["precision"]): one["error"] for one in record["rows"] if "error" in one}
    cells: dict[Cell, list[Row]] = {}
    for one in filter(_is_timed, record["rows"]):
        if one["name"] != "limit" and errors[one["model"], one["name"], one["precision"]] < TOLERANCE:
            cells.setdefault(_cell(one), []).append(one)
    return cells


def _fastest(rows: list[Row], wanted: Callable[[Row], bool]) -> Row | None:
    return min(filter(wanted, rows), key=lambda one: one["ms"], default=None)


def _named(one: Row | None) -> str:
    return f"{three_digits(one['ms'])}, {one['name']} {one['precision']}" if one else ""


def _spread(one: Row) -> str:
    return f"{three_digits(one['ms'])} ({three_digits(one['ms_min'])} to {three_digits(one['ms_max'])})"
