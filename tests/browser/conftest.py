"""A browser, and pages of the app in it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.helpers import TRIO
from tests.helpers import ROOT, running_app


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


@pytest.fixture(scope="session")
def scenes_address() -> Iterator[str]:
    """Address of an app with the scenes models alone."""
    with running_app("--models", ",".join(TRIO)) as (address, _):
        yield address


@pytest.fixture
def open_page(browser, scenes_address):
    """open_page(width=1280, height=800, scheme="light", script="", address=scenes_address): opens the app and waits for
    its first captions.

    script: JavaScript to run before the page's own. When the test ends, no page may have logged an error or sent a
    request to another host.
    """
    contexts, faults, opened = [], [], []

    def open_(
        width: int = 1280, height: int = 800, scheme: str = "light", script: str = "", address: str = scenes_address
    ):
        opened.append(address)
        contexts.append(browser.new_context(viewport=dict(width=width, height=height), color_scheme=scheme))
        contexts[-1].add_init_script(script)
        page = contexts[-1].new_page()
        page.set_default_timeout(90_000)
        page.on("console", lambda m: faults.append(f"{m.text} {m.location['url']}") if m.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: faults.append(request.url) if not own(request.url) else None)
        page.goto(address)
        page.wait_for_selector("#rankings td")
        return page

    def own(url: str) -> bool:
        return url.startswith((*opened, "data:", "blob:"))

    yield open_
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture(scope="session")
def screens() -> Path:
    """Folder of screenshots, for people to look at."""
    folder = ROOT / "build" / "screens"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
