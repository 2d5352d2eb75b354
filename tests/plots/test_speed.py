"""Latency, throughput and memory: every part named, in the colors of the roles."""

import re

import pytest

from dlip.plots import COLORS, latency_bars, memory_bars, throughput_curves
from dlip.plots.speed import PARTS, luminance
from dlip.records.schema import ROLES
from tests.plots.helpers import numbers_of, title_of, traces_by_name

NAMES = {"big": "teacher", "small <1>": "distilled"}


def test_latency_bars_stack_the_modules():
    def timed(whole: float, **modules: float) -> dict:
        spread = {name: {"p50_ms": ms, "p95_ms": 2 * ms} for name, ms in modules.items()}
        return {"p50_ms": whole, "p95_ms": 2 * whole, "modules": spread}

    models = dict(zip(NAMES, (timed(9.0, image=2.0, decoder=6.0, decoder_step=0.5),
                              timed(3.0, image=1.0, decoder=2.0, decoder_step=0.2)), strict=True))  # fmt: skip
    fig = latency_bars(models, NAMES)
    traces = traces_by_name(fig)
    assert [*traces] == ["image", "decoder", "p50 end to end", "p95 end to end"] and fig.layout.barmode == "stack"
    assert traces["image"].x == (2.0, 1.0) and traces["decoder"].x == (6.0, 2.0)
    assert traces["p50 end to end"].x == (9.0, 3.0) and traces["p95 end to end"].x == (18.0, 6.0)
    assert traces["decoder"].marker.color == tuple(COLORS[role].lower() for role in NAMES.values())
    assert traces["image"].marker.color[0] == "#003f62"  # 0.55 of #0072B2
    assert re.search("decoder 75% .*big.* decoder 67% .*small &lt;1&gt;", title_of(fig))


def test_every_module_is_in_the_legend():
    timed = {"p50_ms": 9.0, "p95_ms": 9.0, "modules": {"image": {"p50_ms": 0.1}, "decoder": {"p50_ms": 8.0}}}
    assert all(trace.showlegend is not False for trace in latency_bars({"big": timed}, NAMES).data)


@pytest.mark.parametrize("role", ROLES)
def test_text_inside_bars_has_contrast(role):
    timed = {"p50_ms": 9.0, "p95_ms": 9.0, "modules": {part: {"p50_ms": 2.0} for part in PARTS}}
    bars = latency_bars({"big": timed}, {"big": role}).data[: len(PARTS)]
    bars += memory_bars({"big": {"weights_mb": 8.0, "peak_mb": 2.0}}, {"big": role}).data
    for bar in bars:
        low, high = sorted(map(luminance, (bar.marker.color[0], bar.insidetextfont.color[0])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, bar.name


def test_throughput_curves_have_a_line_per_model():
    fig = throughput_curves([1, 4], {"big": [10.0, 30.0], "small <1>": [50.0, 140.0]}, NAMES)
    traces = traces_by_name(fig)
    assert traces["big"].x == (1, 4) and traces["small &lt;1&gt;"].y == (50.0, 140.0)
    assert traces["big"].line.color == COLORS["teacher"]
    assert numbers_of(fig)[0] == "140" and re.search(r"small &lt;1&gt; .*\b4$", title_of(fig))


def test_memory_bars_stack_weights_and_peak():
    memories = {"big": {"weights_mb": 8.0, "peak_mb": 2.0}, "small <1>": {"weights_mb": 1.0, "peak_mb": None}}
    fig = memory_bars(memories, NAMES)
    traces = traces_by_name(fig)
    assert traces["weights"].x == (8.0, 1.0) and traces["additional peak"].x == (2.0, None)
    assert re.search(r"big 10\.0 MB.* small &lt;1&gt; 1\.0 MB", title_of(fig))
