"""How long a visitor waits, measured in a real browser on an otherwise idle machine: python -m app.benchmark.

The app is started as a user starts it, with the built-in models, and Chromium opens it under Playwright. Medians over
the rounds; the record goes to results/bench/app.jsonl.
"""

import shutil
import time
from pathlib import Path
from statistics import median

from PIL import Image

from dlip.bench import about
from dlip.common.errors import UserError
from dlip.records.write import append

from . import images
from .served import served

RESULTS = "results/bench/app.jsonl"
ROUNDS = 15
ASKED_S = {
    "ready after the command": 10.0,
    "first paint": 3.0,
    "caption by both models, click to text": 0.6,
    "a word's attention, click to maps": 0.4,
    "the app over the bare model calls": 0.15,
}
"""What is measured, and the seconds it may take on two cores."""
RENEWED = """
async ([press, shown]) => {
    document.querySelectorAll(shown).forEach(element => element.dataset.old = true);
    const began = performance.now();
    document.querySelector(press).click();
    while (!document.querySelector(`${shown}:not([data-old])`)) await new Promise(requestAnimationFrame);
    return performance.now() - began;
}
"""
"""Presses a button; milliseconds until what it shows has been made anew."""


def in_browser(address: str) -> dict[str, list[float]]:
    """Seconds of each round, by what was waited for. Raises UserError where there is no Chromium."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        raise UserError("there is no Chromium on the PATH; install it, for example with apt-get install chromium")
    paint, caption, attention = [], [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(3):
            page = browser.new_page(viewport=dict(width=1280, height=800))
            page.goto(address)
            page.wait_for_selector("#rankings td")
            entries = "performance.getEntriesByName('first-contentful-paint').map(entry => entry.startTime)"
            paint.append(page.evaluate(entries)[0] / 1000)
        for _ in range(1 + ROUNDS):
            caption.append(page.evaluate(RENEWED, ["#say", "#captions .card"]) / 1000)
            page.wait_for_timeout(200)
        page.locator("#attention-button").click()
        page.wait_for_selector("#look img")
        words = page.locator("#words button").count()
        for turn in range(1 + ROUNDS):
            page.evaluate("i => document.querySelectorAll('#words button')[i].id = 'next'", (turn + 1) % words)
            attention.append(page.evaluate(RENEWED, ["#next", "#look img"]) / 1000)
            page.evaluate("document.getElementById('next')?.removeAttribute('id')")
            page.wait_for_timeout(200)
        browser.close()
    names = list(ASKED_S)
    return {names[1]: paint, names[2]: caption[1:], names[3]: attention[1:]}


def over_the_models(address: str, folder: Path) -> list[float]:
    """Seconds of a call of the endpoint /captions beyond those that both models took."""
    from gradio_client import Client, handle_file

    picture = folder / "picture.png"
    Image.fromarray(images.examples()[0].image).save(picture)
    client, found = Client(address, verbose=False), []
    for _ in range(1 + ROUNDS):
        began = time.perf_counter()
        said = client.predict(
            picture=handle_file(str(picture)), teacher="scenes/teacher", student="scenes/student", api_name="/captions"
        )
        spent = sum(said[side]["cost"]["ms"] for side in ("teacher", "student")) / 1000
        found.append(time.perf_counter() - began - spent)
    return found[1:]


def main() -> None:
    from tempfile import TemporaryDirectory

    began = time.perf_counter()
    with served() as (address, _), TemporaryDirectory() as folder:
        ready = time.perf_counter() - began
        ready_name, *_, over_name = ASKED_S
        waited = {ready_name: [ready], **in_browser(address), over_name: over_the_models(address, Path(folder))}
    rows = [
        {"name": name, "s": round(median(waited[name]), 3), "s_max": round(max(waited[name]), 3), "asked_s": asked}
        for name, asked in ASKED_S.items()
    ]  # fmt: skip
    append({"bench": "app", **about("python -m app.benchmark"), "rows": rows}, RESULTS)
    for row in rows:
        print(f"{row['name']:40} {row['s']:7.3f} s (slowest {row['s_max']:.3f}), asked {row['asked_s']:g}")


if __name__ == "__main__":
    main()
