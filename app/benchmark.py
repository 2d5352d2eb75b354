"""How long a visitor waits, in a real browser on an otherwise idle machine: python -m app.benchmark.

`dlip app` runs with the built-in models, and Chromium opens it under Playwright. Medians over rounds; the record goes
to results/bench/app.jsonl.
"""

import shutil
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from dlip.bench import about
from dlip.common.errors import UserError
from dlip.records.write import append

from . import images, models
from .served import served
from .view import parts

RESULTS = "results/bench/app.jsonl"
ROUNDS = 15
READY, PAINT, CAPTION, ATTENTION, OVERHEAD = (
    "ready after the command",
    "first paint",
    "caption by all models, click to text",
    "a word's attention, click to maps",
    "the app over the bare model calls",
)
TARGETS_S = {READY: 10.0, PAINT: 3.0, CAPTION: 1.0, ATTENTION: 0.4, OVERHEAD: 0.15}
"""Seconds that each may take on two cores."""
CLICK_AND_WAIT = """
async ([button, result]) => {
    document.querySelectorAll(result).forEach(element => element.dataset.old = true);
    const start = performance.now();
    document.querySelector(button).click();
    while (!document.querySelector(`${result}:not([data-old])`)) {
        if (performance.now() - start > 30_000) throw new Error(`${button} had no result within 30 s`);
        await new Promise(requestAnimationFrame);
    }
    return performance.now() - start;
}
"""
"""Clicks a button; milliseconds until its result is replaced."""
MARK_NEXT_WORD = """() => {
    const words = [...document.querySelectorAll('#words button')];
    words[(words.findIndex(word => word.ariaPressed === 'true') + 1) % words.length].id = 'next';
}"""


def in_browser(address: str) -> dict[str, list[float]]:
    """Seconds of each round. Raises UserError if there is no Chromium."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        raise UserError("there is no Chromium on the PATH; install it, for example with apt-get install chromium")
    seconds: dict[str, list[float]] = {PAINT: [], CAPTION: [], ATTENTION: []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(3):
            page = browser.new_page(viewport=dict(width=1280, height=800))
            page.goto(address)
            page.wait_for_selector("#rankings td")
            entries = "performance.getEntriesByName('first-contentful-paint').map(entry => entry.startTime)"
            seconds[PAINT].append(page.evaluate(entries)[0] / 1000)
        for _ in range(1 + ROUNDS):
            seconds[CAPTION].append(page.evaluate(CLICK_AND_WAIT, ["#caption-button", "#captions .card"]) / 1000)
            page.wait_for_timeout(200)
        page.locator("#attention-button").click()
        page.wait_for_selector("#attention-maps img")
        page.wait_for_timeout(1000)  # the words are drawn once more
        for _ in range(1 + ROUNDS):
            page.evaluate(MARK_NEXT_WORD)
            seconds[ATTENTION].append(page.evaluate(CLICK_AND_WAIT, ["#next", "#attention-maps img"]) / 1000)
            page.evaluate("document.getElementById('next')?.removeAttribute('id')")
            page.wait_for_timeout(200)
        browser.close()
    return {PAINT: seconds[PAINT], CAPTION: seconds[CAPTION][1:], ATTENTION: seconds[ATTENTION][1:]}


def overhead(address: str, folder: Path) -> list[float]:
    """Seconds of a call of the endpoint /captions beyond those of the models."""
    from gradio_client import Client, handle_file

    path = folder / "image.png"
    images.examples()[0].image.save(path)
    (teacher, student), seconds = models.defaults(), []
    client = Client(address, verbose=False)
    for _ in range(1 + ROUNDS):
        start = time.perf_counter()
        captions = client.predict(image=handle_file(str(path)), teacher=teacher, student=student, api_name="/captions")
        of_models = sum(captions[side]["cost"]["ms"] for side in parts.CARDS if side in captions) / 1000
        seconds.append(time.perf_counter() - start - of_models)
    return seconds[1:]


def main() -> None:
    start = time.perf_counter()
    with served() as (address, _), TemporaryDirectory() as folder:
        ready = time.perf_counter() - start
        seconds = {READY: [ready], **in_browser(address), OVERHEAD: overhead(address, Path(folder))}
    rows = [
        {"name": name, "s": round(median(seconds[name]), 3), "s_max": round(max(seconds[name]), 3), "target_s": target}
        for name, target in TARGETS_S.items()
    ]
    append({"bench": "app", **about("python -m app.benchmark"), "rows": rows}, RESULTS)
    for row in rows:
        print(f"{row['name']:40} {row['s']:7.3f} s (slowest {row['s_max']:.3f}), target {row['target_s']:g} s")


if __name__ == "__main__":
    main()
