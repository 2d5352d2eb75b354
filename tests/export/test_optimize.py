"""The fastest of the backends that keep a model's outputs serves it."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import dlip
from dlip.common.errors import MissingAbility, UserError
from dlip.data.dataset import FirstN
from dlip.export import optimize as module
from dlip.export.optimize import Candidate, Optimized, optimize
from dlip.models.fast import linear
from dlip.models.fast.precision import convert_precision, precision
from dlip.models.med import Med
from dlip.vlm import VLM

SIZED = [f"{what}, {size}" for what, sizes in module.SIZES.items() for size in sizes]
TEXTS = ["is there a red circle?", "what color is the large square at left?"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("optimized")


@pytest.fixture(autouse=True)
def bf16_instructions(monkeypatch):
    """The same candidates on every machine."""
    monkeypatch.setattr(module, "onednn_has_bf16", lambda: True)


def pick(monkeypatch, backend: str, precision: str) -> None:
    """Make this candidate the fastest at everything."""
    make, wanted = module.backends.make, []

    def marked(name, own, *options):
        made = make(name, own, *options)
        if (name, own) == (backend, precision):
            wanted.append(made)
        return made

    monkeypatch.setattr(module.backends, "make", marked)
    monkeypatch.setattr(
        module, "measure", lambda models, *_: [1.0 if any(m is one.model for one in wanted) else 2.0 for m in models]
    )


@pytest.mark.parametrize("backend", ["dlip, packed", "onnxruntime", pytest.param("OpenVINO", marks=pytest.mark.slow)])
def test_fastest_backend_has_the_methods_of_a_vlm(backend, tiny, scenes, cache, monkeypatch):
    for package in module.backends.backend(backend).packages:
        pytest.importorskip(package)
    monkeypatch.setattr(module, "BACKENDS", (backend,))
    monkeypatch.setattr(module, "PRECISIONS", ("fp32",))
    pick(monkeypatch, backend, "fp32")
    model, (candidate,) = optimize(tiny, cache=cache)
    assert model.name == f"tiny by {backend} in fp32" and candidate.error < 1e-4
    images = [item.image for item in scenes][:2]
    assert model.caption(images) == tiny.caption(images)
    assert model.answer(images, TEXTS) == tiny.answer(images, TEXTS)  # of different lengths
    assert model.match(images, TEXTS).tolist() == pytest.approx(tiny.match(images, TEXTS).tolist(), abs=1e-4)
    expected = tiny.similarity(images, TEXTS).flatten().tolist()
    assert model.similarity(images, TEXTS).flatten().tolist() == pytest.approx(expected, abs=1e-4)
    assert model.caption([]) == model.answer([], []) == [] and len(model.match([], [])) == 0
    assert model.similarity([], TEXTS).shape == (0, 2) and model.similarity(images, []).shape == (2, 0)
    scores, options = [], dict(progress=False, java=False)
    for one in (model, tiny):
        scores.append(dlip.evaluate(one, FirstN(scenes, 2), **options)["retrieval"])
    assert scores[0] == scores[1]


def test_low_precision_gives_arrays_too(tiny, scenes, cache, monkeypatch):
    monkeypatch.setattr(module, "BACKENDS", ("dlip, packed",))
    monkeypatch.setattr(module, "PRECISIONS", ("bf16",))
    model, _ = optimize(tiny, tolerance=1.0, cache=cache)
    images = [item.image for item in scenes][:2]
    assert model.match(images, TEXTS).tolist() == pytest.approx(tiny.match(images, TEXTS).tolist(), abs=0.05)
    assert model.similarity(images, TEXTS).dtype == np.float32
    with pytest.raises(UserError, match="1 image and 2 texts"):
        model.match(images[:1], TEXTS)


def test_answers_stay_in_fp32(tiny, cache, monkeypatch):
    monkeypatch.setattr(module, "BACKENDS", ("dlip, packed",))
    monkeypatch.setattr(module, "PRECISIONS", ("fp32", "bf16"))
    pick(monkeypatch, "dlip, packed", "bf16")
    model, _ = optimize(tiny, tolerance=1.0, cache=cache)
    assert [precision(model.pick(what, 1).med) for what in ("caption", "answer")] == ["bf16", "fp32"]


class Recorder:
    """Stands for a model and records what it is called with."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda images, *rest: self.calls.append((name, len(images))) or np.zeros((len(images), 4))


def test_each_call_uses_the_fastest_backend_for_its_size():
    timed = module.SIZES | {"answer": (1, 8)}
    picks = {(what, size): Recorder() for what, sizes in timed.items() for size in sizes}
    model, image, texts = Optimized("x", picks), "image.png", [""] * 9
    model.caption([image])
    model.caption([image] * 9)
    model.answer([image] * 7, texts[:7])
    model.match([image], texts[:1])
    model.match([str(i) for i in range(9)], texts)
    model.match([image] * 9, texts)
    model.similarity([image], texts)
    called = {pick: one.calls for pick, one in picks.items()}
    assert called == {
        ("caption", 1): [("caption", 1)], ("caption", 8): [("caption", 9)], ("answer", 1): [],
        ("answer", 8): [("answer", 7)],
        ("match", 1): [("match", 1)], ("match", 8): [("match", 9)], ("rank", 64): [("match", 9)],
        ("image", 1): [("embed_images", 1)], ("image", 8): [("embed_texts", 9)],
    }  # fmt: skip


def test_conversions_of_earlier_models_are_deleted_beyond_the_limit(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CACHE_GB", 1e-9)
    monkeypatch.setattr(module, "BACKENDS", ("dlip",))
    monkeypatch.setattr(module, "PRECISIONS", ("fp32",))
    earlier = tmp_path / ("0" * 24)
    (earlier / "onnxruntime-fp32").mkdir(parents=True)
    (earlier / "onnxruntime-fp32" / "weights.bin").write_bytes(b"four")
    optimize(tiny, cache=tmp_path)
    (kept,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert kept != earlier and (kept / "model").is_dir()


def test_candidates_beyond_the_tolerance_are_not_timed(tiny, cache, monkeypatch):
    monkeypatch.setattr(module, "BACKENDS", ("dlip, packed",))
    pick(monkeypatch, "dlip, packed", "fp32")
    model, candidates = optimize(tiny, tolerance=1e-6, cache=cache)
    times = dict.fromkeys(SIZED, 1.0)
    assert candidates[0] == Candidate("dlip, packed", "fp32", times, candidates[0].error)
    assert {one.precision: one.ms for one in candidates[1:]} == {"bf16": {}, "int8": {}}
    assert "outputs differ by" in candidates[1].reason and "has no int8" in candidates[2].reason
    model, candidates = optimize(tiny, tolerance=1.0, cache=cache)
    assert [bool(one.ms) for one in candidates] == [True, True, False]


def test_bf16_is_passed_over_where_it_is_emulated(tiny, cache, monkeypatch):
    monkeypatch.setattr(module, "onednn_has_bf16", lambda: False)
    monkeypatch.setattr(module, "BACKENDS", ("dlip, packed",))
    pick(monkeypatch, "dlip, packed", "fp32")
    model, candidates = optimize(tiny, cache=cache)
    assert [one.precision for one in candidates if one.ms] == ["fp32"]
    assert {one.precision: one.reason for one in candidates}["bf16"] == "this CPU has no instructions for bf16"


def test_a_backend_that_fails_is_passed_over(tiny, cache, monkeypatch):
    monkeypatch.setattr(module.backends, "find_spec", lambda package: package != "openvino")
    monkeypatch.setattr(module, "BACKENDS", ("dlip, packed", "OpenVINO"))
    monkeypatch.setattr(module, "PRECISIONS", ("fp32",))
    model, (_, failed) = optimize(tiny, cache=cache)
    assert isinstance(model.pick("caption", 1), VLM) and "not installed" in failed.reason


def test_models_without_itm_are_optimized(tiny, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BACKENDS", ("onnxruntime",))
    monkeypatch.setattr(module, "PRECISIONS", ("fp32",))
    pick(monkeypatch, "onnxruntime", "fp32")
    med = Med(tiny.med.config).eval()
    med.load_state_dict(tiny.med.state_dict())
    med.abilities = frozenset({"itc", "lm", "vqa"})
    model, (candidate,) = optimize(VLM(med, tiny.tokenizer, "part"), cache=tmp_path)
    assert candidate.error < 1e-4 and model.pick("caption", 1).abilities == med.abilities
    with pytest.raises(MissingAbility):
        model.match(["image.png"], TEXTS[:1])
    images = [item.image for item in scenes][:2]
    scores = dlip.evaluate(model, FirstN(scenes, 2), tasks=("retrieval",), progress=False)["retrieval"]
    assert scores == dlip.evaluate(tiny, FirstN(scenes, 2), tasks=("retrieval",), k=0, progress=False)["retrieval"]
    assert model.embed_images(images).shape == (2, tiny.med.config.embed_dim)


def test_candidates_with_nan_are_refused(tiny, cache, monkeypatch):
    monkeypatch.setattr(module, "BACKENDS", ("dlip, packed",))
    monkeypatch.setattr(module, "PRECISIONS", ("fp32",))
    errors = {("states", 1): 0.0, ("pair", 1): float("nan"), ("scores", 1): 0.0}
    monkeypatch.setattr(module, "relative_errors", lambda expected, actual: errors)
    with pytest.raises(UserError, match="no backend keeps the outputs within 0.05 .* differ by nan"):
        optimize(tiny, cache=cache)


def test_other_heads_are_another_model(tiny, cache, monkeypatch):
    monkeypatch.setattr(module, "BACKENDS", ("dlip, packed",))
    monkeypatch.setattr(module, "PRECISIONS", ("fp32",))
    pick(monkeypatch, "dlip, packed", "fp32")
    heads = tiny.med.config.text_heads // 2
    other = VLM(Med(replace(tiny.med.config, text_heads=heads)).eval(), tiny.tokenizer, "other")
    other.med.load_state_dict(tiny.med.state_dict())
    assert [optimize(vlm, cache=cache)[0].pick("caption", 1).med.config.text_heads for vlm in (tiny, other)] == [
        2 * heads, heads,
    ]  # fmt: skip


def test_times_are_those_of_the_fastest_call(tiny, cache, monkeypatch):
    monkeypatch.setattr(module, "BACKENDS", ("dlip, packed",))
    monkeypatch.setattr(module, "PRECISIONS", ("fp32",))
    seconds = [0.5, 0.3, 0.4, 12, 9, 8]  # three calls, and two that take 20 seconds together
    ticks = iter([tick for duration in seconds for tick in (0, duration)])
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr(module, "SIZES", {"caption": (1, 8)})
    monkeypatch.setattr(module, "MIN_ROUNDS", 2)
    monkeypatch.setattr(module, "MAX_ROUNDS", 3)
    _, (candidate,) = optimize(tiny, cache=cache)
    assert candidate.ms == {"caption, 1": 300, "caption, 8": 9000}


def test_model_in_another_precision_is_refused(tiny, cache):
    lowered = VLM(convert_precision(VLM.load("scenes/student").med, "bf16"), tiny.tokenizer)
    with pytest.raises(UserError, match="in bf16, which optimize does not support"):
        lowered.optimize()


@pytest.mark.skipif(not linear.ONEDNN, reason="packing needs oneDNN")
def test_a_packed_model_is_refused(tiny, cache, monkeypatch):
    monkeypatch.setattr(linear, "MIN_WEIGHTS", 0)
    with pytest.raises(UserError, match="packed"):
        optimize(copy.deepcopy(tiny).pack(), cache=cache)
