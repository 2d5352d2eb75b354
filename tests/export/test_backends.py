"""Every backend gives this package's captions, image states and scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dlip.common.errors import UserError
from dlip.data.scenes.dataset import Scenes
from dlip.data.transforms import resize_square
from dlip.export import backends
from dlip.export.backends.agreement import score_error
from dlip.export.backends.worker import Worker
from dlip.models.med import Med
from dlip.vlm import VLM
from tests.helpers import randomize_weights

PRECISIONS = ("fp32", "bf16", "int8")
TOLERANCES = {"fp32": 1e-4, "bf16": 0.05, "int8": 0.1}
"""Relative to the norm; outputs of another image differ by 0.17 or more."""
SLOW = [("onnxruntime", "int8"), ("torch.compile", "fp32"), ("torch.compile", "bf16")]
VARIANTS = [
    pytest.param(name, precision, marks=pytest.mark.slow if name == "OpenVINO" or (name, precision) in SLOW else ())
    for name in backends.CLASSES for precision in PRECISIONS if precision not in backends.backend(name).lacks
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    """Folder of a model, images and texts. Captions of the images have 5, more than 30, and 5 tokens, and would repeat
    themselves."""
    folder = tmp_path_factory.mktemp("backends")
    # stock has cross-attention in every layer
    c = replace(tiny.med.config, fusion_layers=(0, 1), no_repeat_ngram_size=2)
    med = randomize_weights(Med(c), seed=1, spread=0.1)
    with torch.no_grad():
        med.text_decoder.cls.predictions.bias[c.sep_id] += 0.6
    VLM(med, tiny.tokenizer).save(folder / "model")
    images = np.stack([resize_square(Scenes("val")[i].image, c.image_size) for i in (0, 3, 9)])
    random = np.random.default_rng(0)
    ids = random.integers(10, c.vocab_size, size=(3, 7))
    return folder, images, ids, c


def outputs(backend, images, ids, c) -> dict:
    """Of three images, then the caption of one, so that batch sizes change."""
    texts, forced = ids.copy(), ids.copy()
    texts[:, 0], forced[:, 0] = c.enc_id, c.dec_id
    return {
        "states": backend.image_states(images), "pair": backend.pair_score(images, texts),
        "scores": backend.next_scores(images, forced), "forced": forced, "captions": backend.caption(images, 3, 30),
        "greedy": backend.caption(images[:1], 1, 9),
    }  # fmt: skip


@pytest.fixture(scope="module")
def expected(model):
    folder, *inputs = model
    backend = backends.make("dlip", "fp32").prepare(folder / "model", folder / "dlip", inputs[0])
    expected = outputs(backend, *inputs)
    return expected | {"log_probs": backend.log_probs(inputs[0], expected["forced"])}


@pytest.mark.parametrize(("name", "precision"), VARIANTS)
def test_backend_equals_this_package(name, precision, model, expected):
    for package in backends.backend(name).packages:
        pytest.importorskip(package)
    folder, *inputs = model
    place = folder / f"{name}-{precision}"  # the C++ compiler takes no spaces
    backends.make(name, precision, threads=1).prepare(folder / "model", place, inputs[0])
    backend = backends.make(name, precision, threads=1).prepare("not read again", place, inputs[0])
    actual = outputs(backend, *inputs)
    assert score_error(expected["log_probs"], *actual["scores"]) < TOLERANCES[precision]
    for output in ("states", "pair"):
        error = np.linalg.norm(actual[output] - expected[output]) / np.linalg.norm(expected[output])
        assert error < TOLERANCES[precision], output
    if precision == "fp32":
        assert all(actual[output] == expected[output] for output in ("captions", "greedy"))
        assert [*map(len, actual["captions"])] == [5, 30, 5]


def test_missing_package_and_precision(monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda package: package != "openvino")
    with pytest.raises(UserError, match=r"OpenVINO needs openvino, .* pip install 'dlip\[bench\]'"):
        backends.make("OpenVINO", "fp32")
    with pytest.raises(UserError, match="stock has no int8: "):
        backends.make("stock", "int8")


def test_a_killed_process_is_reported(model, tmp_path):
    """As the system kills one for lack of memory, while it waits for a request."""
    folder, images, *_ = model
    worker = Worker("dlip", "fp32", 1, str(folder / "model"), tmp_path, images)
    worker.process.kill()
    worker.process.join()
    with pytest.raises(UserError, match="the process of dlip in fp32 ended"):
        worker.call("image_states", images)
