"""What several test modules share."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from dlip.data.batch import Batch
from dlip.data.scenes.dataset import Scenes
from dlip.data.tokenizer import Tokenizer
from dlip.models.config import ModelConfig, scenes_size
from dlip.models.med import Med
from dlip.vlm import VLM
from tests.helpers import ROOT, SMALL, random_texts, running_app, scattered


@pytest.fixture(scope="session")
def scenes() -> Scenes:
    """Eight pictures with captions and questions."""
    return Scenes("test", size=8)


@pytest.fixture(scope="session")
def tiny(scenes) -> VLM:
    """An untrained model that reads them, its weights far enough from the start that its scores differ."""
    texts = [text for item in scenes for text in item.captions]
    texts += [text for item in scenes for q in item.questions for text in (q.text, *q.answers)]
    tokenizer = Tokenizer.train(texts, 200)
    torch.manual_seed(0)
    med = Med(scenes_size(32, 2, 2, vocab_size=len(tokenizer), fusion_layers=(1,)))
    for parameter in med.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return VLM(med, tokenizer, "tiny")


@pytest.fixture(scope="session")
def make_med():
    """Makes an untrained model."""
    return lambda seed=0, **changes: scattered(Med(ModelConfig(**{**SMALL, **changes})).eval(), seed)


@pytest.fixture(scope="session")
def make_batch():
    """Makes a batch with captions, questions and answers of different lengths."""

    def make(seed: int = 0, size: int = 5, pixels: int = 16, lengths: tuple[int, int, int] = (8, 6, 5)) -> Batch:
        torch.manual_seed(seed)
        images = torch.randint(0, 256, (size, 3, pixels, pixels), dtype=torch.uint8)
        texts = [random_texts(size, length, first) for length, first in zip(lengths, (2, 2, 5), strict=True)]
        return Batch(images, torch.arange(size) + 100, *texts[0], *texts[1], *texts[2])

    return make


# --- the app, as a user starts it -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def app_address() -> Iterator[str]:
    with running_app() as (address, _):
        yield address


@pytest.fixture(scope="session")
def picture(tmp_path_factory) -> str:
    """A scene as the file that a visitor brings."""
    path = tmp_path_factory.mktemp("app") / "scene.png"
    Image.fromarray(Scenes("test")[0].image).save(path)
    return str(path)


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium under Playwright, with a camera that shows a clock."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium on the PATH; install it (`apt-get install chromium`) to test in a browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        camera = [f"--use-fake-{part}-for-media-stream" for part in ("device", "ui")]
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu", *camera])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, app_address):
    """Opens the app in a window of its own and waits for its first captions: open_page(width=, height=, scheme=,
    script=). script: what runs in the page before its own ones.

    When the test ends, no page may have written errors to its console or asked another host for anything.
    """
    contexts, faults = [], []

    def open_(width: int = 1280, height: int = 800, scheme: str = "light", script: str = ""):
        contexts.append(browser.new_context(viewport=dict(width=width, height=height), color_scheme=scheme))
        contexts[-1].add_init_script(script)
        page = contexts[-1].new_page()
        page.set_default_timeout(90_000)
        page.on(
            "console",
            lambda said: faults.append(f"{said.text} {said.location['url']}") if said.type == "error" else None,
        )
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: faults.append(request.url) if not own(request.url) else None)
        page.goto(app_address)
        page.wait_for_selector("#rankings td")
        return page

    def own(url: str) -> bool:
        return url.startswith((app_address, "data:", "blob:"))

    yield open_
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture(scope="session")
def screens() -> Path:
    """The folder that pictures of pages are kept in, to be looked at."""
    folder = ROOT / "build" / "screens"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def make_vlm(tiny):
    """Makes an untrained model with a vocabulary; the same seed gives the same weights."""

    def make(seed: int = 1, **changes) -> VLM:
        torch.manual_seed(seed)
        sizes = scenes_size(16, 1, 2, vocab_size=len(tiny.tokenizer))
        return VLM(Med(replace(sizes, **changes)), tiny.tokenizer, "small")

    return make
