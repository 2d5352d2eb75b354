"""The tables of a record of `dlip bench backends`."""

from dlip.export import backends
from tests.bench.backend_tables import footprints, over_stock, picks, speed_over_peers, times

CELL = {"model": "blip-base", "output": "caption", "batch": 8, "precision": "int8"}
RECORD = {
    "rows": [
        {"name": "product, int8", "precision": "int8", "gflops": 900.0},
        {"name": "stock int8", "precision": "int8", "cannot": "a reason"},
        {"name": "dlip, packed", "ms": 200.0, "ms_min": 190.4, "ms_max": 1210.0, "ratio": 5.0, **CELL},
        {"name": "onnxruntime", "ms": 250.0, "ms_min": 240.0, "ms_max": 260.0, "ratio": 4.0, **CELL},
        {"name": "OpenVINO", "ms": 300.0, "ms_min": 290.0, "ms_max": 310.0, "ratio": 3.3, **CELL},
        {"name": "limit", "ms": 61.25, **CELL},
        {"name": "OpenVINO", "model": "scenes/student", "precision": "bf16", "peak_mb": 1234, "disk_mb": 7.25,
         "start_s": 0.5, "error": 0.0123},
    ]
}  # fmt: skip


def test_table_of_times():
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in times(RECORD).splitlines()]
    assert lines[0] == ["", *backends.CLASSES, "dlip / best peer", "limit"]
    assert lines[2:] == [[
        "caption, BLIP-Base, batch 8, 8 bits", "", "", "200 (190 to 1,210)", "250 (240 to 260)", "300 (290 to 310)", "",
        "1.25", "61.2",
    ]]  # fmt: skip


def test_table_of_what_optimize_can_pick():
    """OpenVINO is faster but too far off; the fastest other is what cannot serve, in another precision."""
    rows = [
        *map(dict, RECORD["rows"][2:6]),
        {"name": "torch.compile", "ms": 250.0, **CELL, "precision": "bf16"},
        *({"name": name, "model": "blip-base", "precision": precision, "error": error} for name, precision, error in
          (("dlip, packed", "int8", 0.04), ("onnxruntime", "int8", 0.01), ("OpenVINO", "int8", 0.2),
           ("torch.compile", "bf16", 0.01))),
    ]  # fmt: skip
    rows[2]["ms"] = 100.0
    assert picks({"rows": rows}).splitlines()[2:] == [
        "| caption, BLIP-Base, batch 8 | 200, dlip, packed int8 | 250, torch.compile bf16 | 1.25 | 31% |"
    ]


def test_table_of_footprints():
    assert footprints(RECORD).splitlines()[2:] == ["| scenes/student, half, OpenVINO | 1,234 | 7.25 | 0.500 | 0.01 |"]


def test_fastest_of_both_sides_counts():
    ms_by_name = {"stock": 4.0, "dlip": 3.0, "dlip, packed": 2.0, "OpenVINO": 1.0, "limit": 0.1}
    assert speed_over_peers({name: {"ms": ms} for name, ms in ms_by_name.items()}) == 0.5


def test_table_of_speeds_over_stock():
    """A row of its own model's stock, and one of the large model's; int8 is too far off to be picked."""
    small = {**CELL, "model": "dlip-small"}
    rows = [
        {"name": "stock", "ms": 900.0, "ratio": 1.0, **CELL, "precision": "fp32"},
        {"name": "stock", "ms": 330.0, "ratio": 1.0, **small, "precision": "fp32"},
        {"name": "dlip, packed", "ms": 100.0, "ratio": 3.2, **small, "precision": "fp32"},
        {"name": "OpenVINO", "ms": 60.0, "ratio": 5.4, **small, "precision": "bf16"},
        {"name": "OpenVINO", "ms": 30.0, "ratio": 10.0, **small},
        *({"name": name, "model": model, "precision": precision, "error": error} for name, model, precision, error in
          (("stock", "blip-base", "fp32", 0.0), ("stock", "dlip-small", "fp32", 0.0),
           ("dlip, packed", "dlip-small", "fp32", 0.0), ("OpenVINO", "dlip-small", "bf16", 0.01),
           ("OpenVINO", "dlip-small", "int8", 0.1))),
    ]  # fmt: skip
    assert over_stock({"rows": rows}).splitlines()[2:] == [
        "| caption, BLIP-Base, batch 8 |  |  |  |",
        "| caption, DLIP-Small, batch 8 | 3.2 |  | 5.4 |",
        "| caption, DLIP-Small, batch 8, over BLIP-Base | 9.0 |  | 15.0 |",
    ]
