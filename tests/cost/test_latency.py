"""Which figures are measured and under what settings; never how fast this machine is."""

import pytest
import torch

from dlip.common.errors import UserError
from dlip.cost.latency import compare_latency, throughput
from dlip.cost.memory import memory, peak_on_cpu
from dlip.models.config import scenes_size
from dlip.models.med import Med
from dlip.models.tasks import TASKS
from dlip.vlm import VLM

MODULES = {
    "retrieval": {"image", "text", "fusion"},
    "captioning": {"image", "decoder", "decoder_step"},
    "vqa": {"image", "fusion", "decoder", "decoder_step"},
}


@pytest.fixture(scope="module")
def vlm():
    return VLM(Med(scenes_size(32, 1, 2)), None)


@pytest.fixture(scope="module")
def med(vlm):
    return vlm.med


@pytest.mark.parametrize("task", MODULES)
def test_latency_states_settings_and_modules(vlm, task):
    timed = compare_latency({"a": vlm}, task, repeats=3, warmup=1, batch=2, beams=2, tokens=5, text_tokens=9)
    figures = timed["models"]["a"]
    assert 0 < figures["p50_ms"] <= figures["p95_ms"]
    assert set(figures["modules"]) == MODULES[task]
    assert all(0 < spread["p50_ms"] <= spread["p95_ms"] for spread in figures["modules"].values())
    stated = {"task": task, "batch": 2, "repeats": 3, "warmup": 1, "device": "cpu", "dtype": "float32"}
    stated |= {"threads": torch.get_num_threads(), "beams": None if task == "retrieval" else 2}
    stated |= {"text_tokens": None if task == "captioning" else 9}
    assert {name: figures[name] for name in stated} == stated


def test_retrieval_is_timed_without_itm_if_one_model_lacks_it(vlm, monkeypatch):
    by_itc = VLM(Med(scenes_size(32, 1, 2)), None)
    by_itc.med.abilities = frozenset({"itc", "lm"})
    monkeypatch.setattr(Med, "match_logits", lambda *_: 1 / 0)
    figures = compare_latency({"both": vlm, "itc": by_itc}, "retrieval", repeats=2, warmup=1)["models"]
    assert set(figures["both"]["modules"]) == set(figures["itc"]["modules"]) == {"image", "text"}
    assert throughput({"itc": by_itc}, "retrieval", batches=(1,), repeats=1)["itc"][0] > 0
    assert memory(by_itc, "retrieval")["peak_mb"] > 0


def test_models_take_turns(vlm, monkeypatch):
    order = []
    encode = Med.encode_image

    def spy(self, pixels, trace=None):
        order.append(self)
        return encode(self, pixels, trace)

    monkeypatch.setattr(Med, "encode_image", spy)
    other = VLM(Med(scenes_size(32, 2, 2)), None)
    figures = compare_latency({"teacher": vlm, "student": other}, "retrieval", repeats=2, warmup=1)
    assert set(figures["models"]) == set(figures["speedup"]) == {"teacher", "student"}
    assert figures["speedup"]["teacher"] == 1
    medians = {name: one["p50_ms"] for name, one in figures["models"].items()}
    assert figures["speedup"]["student"] == medians["teacher"] / medians["student"]
    timed = order[2:]  # after one call each to prepare the modules
    assert timed == [vlm.med, other.med] * (len(timed) // 2) and len(timed) == 2 * 2 * 3


def test_throughput_is_the_batch_over_its_median_time(vlm, monkeypatch):
    clock = iter([9000, 9000, *(time for ms in (10, 40, 20) for time in (ms, 2 * ms)),
                  9000, 9000, *(time for ms in (20, 80, 40) for time in (ms, 2 * ms))])  # fmt: skip
    monkeypatch.setattr(
        "dlip.cost.latency._time", lambda call, device: next(clock)
    )  # ms, the first round of each apart
    shares = []
    result = throughput({"one": vlm, "two": vlm}, "retrieval", batches=(1, 4), repeats=3, progress=shares.append)
    assert result == {"one": [50.0, 100.0], "two": [25.0, 50.0]}  # medians of 20 and 40 ms, then of 40 and 80
    assert shares[-1] == 1 and shares == sorted(shares) and len(shares) == 16


@pytest.mark.parametrize(
    ("task", "size", "words"),
    [("detection", {}, "captioning"), ("captioning", {"tokens": 60}, "48"), ("vqa", {"text_tokens": 60}, "48")],
)
def test_invalid_workloads_are_refused(vlm, task, size, words):
    with pytest.raises(UserError, match=words):
        compare_latency({"a": vlm}, task, **size)


def test_peak_is_that_of_live_tensors():
    kept = torch.empty(1000)

    def work():
        nonlocal kept
        kept = torch.empty(1000, 1000)
        more = torch.empty(500, 1000)
        del more
        return kept + 1, torch.empty(250, 1000)

    assert peak_on_cpu(work) == 4 * (2_000_000 + 250_000)
    assert peak_on_cpu(lambda: None) == 0


def test_memory_grows_with_batch_and_model(vlm):
    one, many = (memory(vlm, "retrieval", batch=batch) for batch in (1, 256))
    assert one["weights_mb"] == many["weights_mb"] == sum(p.numel() for p in vlm.med.parameters()) * 4 / 1e6
    assert many["peak_mb"] > max(1, 10 * one["peak_mb"]) and one["peak_mb"] > 0
    larger = VLM(Med(scenes_size(64, 2, 2)), None)
    for task in TASKS:
        figures = [memory(model, task) for model in (vlm, larger, vlm)]  # whatever this process held before
        assert figures[1]["peak_mb"] > figures[0]["peak_mb"] > 0.05 and figures[0] == figures[2]


@pytest.mark.parametrize("compare", [compare_latency, throughput])
def test_times_on_different_devices_are_not_compared(compare, vlm):
    with pytest.raises(UserError, match="student on meta"):
        compare({"teacher": vlm, "student": VLM(Med(vlm.med.config), None).to("meta")}, repeats=1)
