"""How the app's page is laid out, in a browser: what fits the window, what is seen of it, and where it stands."""

import time

import pytest
from gradio_client import Client, handle_file

from tests.browser.helpers import EXAMPLES

pytestmark = pytest.mark.slow

PLACES = (2, 1, 3, 8, 10, 0)
"""Places of examples with long captions, with several answers, with much to say."""


def select(page, label: str) -> None:
    """Open a tab, from the menu of those for which there is no room."""
    tab = page.get_by_role("tab", name=label, exact=True)
    if not tab.is_visible():
        page.locator(".overflow-menu > button").click()
        tab = page.locator(".overflow-dropdown").get_by_text(label, exact=True)
    tab.click()


@pytest.mark.parametrize(("tab", "shown"), [("Compare", "#rankings td"), ("Attention", "#attention-maps img")])
def test_the_first_screen_needs_no_scrolling(open_page, tab, shown):
    page = open_page(1280, 800)
    select(page, tab)
    for place in PLACES:
        page.wait_for_selector(shown)
        page.evaluate("shown => document.querySelectorAll(shown).forEach(e => e.dataset.old = 'yes')", shown)
        page.get_by_role("button", name=EXAMPLES[place].name, exact=True).click()
        page.wait_for_selector(f"{shown}:not([data-old])")
        assert page.evaluate("document.documentElement.scrollHeight") <= 800, EXAMPLES[place].name


def test_decoding_settings_open_below_their_row(open_page):
    page = open_page()
    button = page.get_by_text("Beams, length and seed")
    button.click()
    seed = page.get_by_label("Seed")
    seed.wait_for()
    assert seed.bounding_box()["y"] > page.locator("#caption-button").bounding_box()["y"] + 38
    assert button.bounding_box()["y"] < page.locator("#caption-button").bounding_box()["y"] + 38


def test_hints_on_other_models_and_images(open_page, app_address):
    page = open_page(address=app_address)
    for side in ("teacher", "student"):
        assert "or type a run folder or a hub id" in page.locator(f"#{side}").inner_text()
    page = open_page()
    assert page.locator("#domain-hint").inner_text() == ""
    page.get_by_role("button", name="Photograph: a lion").click()
    page.locator("#domain-hint").get_by_text("know only the drawn scenes").wait_for()


SEEN = """where => new Promise(done => {
    const lines = [...document.querySelectorAll(`${where} .progress-text`)];
    const line = lines.find(e => /queue: \\d+\\/\\d+/.test(e.innerText));
    if (!line || !line.checkVisibility({opacityProperty: true})) return done(false);
    new IntersectionObserver(([seen], observer) => {
        observer.disconnect();
        done(seen.intersectionRatio > 0.9);
    }).observe(line);
})"""
"""Whether a place in the queue is there, and nothing cuts it off or hides it."""


@pytest.mark.parametrize(
    ("tab", "press", "where"),
    [
        ("Compare", "#caption-button", "#captions"),
        ("Attention", "#words button:nth-of-type(2)", "#attention-maps"),
        ("Trade-offs", "#speed-button, #tradeoffs-button", "#runs"),
    ],
)
def test_the_place_in_the_queue_is_visible(open_page, scenes_address, image_path, tab, press, where):
    """Of a visitor who waits behind others."""
    page = open_page()
    select(page, tab)
    page.wait_for_selector({"Compare": "#rankings td", "Attention": "#attention-maps img"}.get(tab, "#runs .point"))
    client, models = Client(scenes_address, verbose=False), ["scenes/teacher"] * 2
    jobs = [
        client.submit(handle_file(image_path), *models, "beam", 8, 0.9, 40, 0, api_name="/captions") for _ in range(20)
    ]
    page.wait_for_timeout(500)  # until they are in the queue
    for button in page.locator(press).all()[:2]:
        button.click()
    end = time.monotonic() + 30
    while not page.evaluate(SEEN, where):
        assert time.monotonic() < end, "no place in the queue was seen"
        page.wait_for_timeout(50)
    for job in jobs:
        job.result()


def test_a_chart_drawn_in_a_hidden_tab_fits_a_phone(open_page):
    page = open_page(390, 844)
    select(page, "Speed")
    page.locator("#speed").get_by_text("retrieval", exact=True).click()
    for label in ("4", "16", "Memory"):
        page.locator("#speed").get_by_label(label, exact=True).uncheck()
    page.locator("#measure").click()
    page.get_by_role("tab", name="Compare", exact=True).click()
    page.wait_for_selector("#latency .js-plotly-plot", state="attached")
    page.wait_for_timeout(1000)
    select(page, "Speed")
    page.wait_for_function(
        """() => [...document.querySelectorAll("#latency svg.main-svg")].every(
            e => e.getBoundingClientRect().width > 200 && e.getBoundingClientRect().right <= 390)"""
    )


def test_speed_settings_fit_and_follow_the_task(open_page):
    page = open_page(390, 844)
    select(page, "Speed")
    box = page.locator("#with-memory").bounding_box()
    assert box["width"] > 300 and page.locator("#measure").bounding_box()["width"] < 220
    assert not page.locator("#stop-measuring").is_visible()
    beams, tokens, rounds = (
        page.locator("#speed").get_by_label(name).first for name in ("Beams", "New tokens", "Rounds")
    )
    assert beams.is_enabled() and tokens.is_enabled()
    page.locator("#speed").get_by_text("retrieval", exact=True).click()
    page.wait_for_function("document.querySelectorAll('#speed input[type=range]:disabled').length === 2")
    assert beams.is_disabled() and tokens.is_disabled() and rounds.is_enabled()


def test_words_wrap_and_the_meter_is_neutral(open_page):
    page = open_page()
    select(page, "Attention")
    page.wait_for_selector("#attention-maps meter")
    lines = {round(e.bounding_box()["y"]) for e in page.locator("#words .teacher button").all()}
    gaps = sorted(lines)
    assert all(b - a > 20 for a, b in zip(gaps, gaps[1:], strict=False))  # the last word is no line of its own
    assert page.locator("#attention-maps meter").evaluate("e => getComputedStyle(e).appearance") == "none"


BAR = """() => new MutationObserver((_, observer) => {
    const bar = document.querySelector("#attention-maps .progress-bar-wrap");
    if (!bar) return;
    observer.disconnect();
    const below = [...document.querySelectorAll("button")].find(e => e.innerText.includes("Layers, heads"));
    window.bar = {bottom: bar.getBoundingClientRect().bottom, below: below.getBoundingClientRect().top};
}).observe(document, {childList: true, subtree: true})"""
"""Notes where the bar ends, and what follows it begins, at the moment at which it is there: it may be gone soon."""


def test_the_progress_bar_fits(open_page):
    page = open_page()
    select(page, "Attention")
    page.wait_for_selector("#attention-maps img")
    page.locator("#view").get_by_text("integrated gradients", exact=True).click()
    page.locator("#attention-maps").get_by_text("press Explain").wait_for()
    page.evaluate(BAR)
    page.locator("#explain").click()
    seen = page.wait_for_function("window.bar").json_value()
    assert seen["bottom"] < seen["below"]
