"""The app in a browser: what the page shows is what dlip says. Screens are kept in build/screens, to be looked at."""

import json

import pytest

import dlip
from app import images
from app.page import TABS
from app.tabs import search, tradeoffs
from dlip.evaluation.attention_maps import map_divergence, word_maps
from tests.browser.helpers import EXAMPLES, TRIO, captions_of, wait_for_cards

TEACHER, STUDENT, OTHER = TRIO
PHOTOS = ("photos/teacher", "photos/student", "photos/student-undistilled")
NAMELESS = """[...document.querySelectorAll("button, input:not([type=file]), textarea, img")].filter(e =>
    e.checkVisibility() && !(e.innerText || e.ariaLabel || e.title || e.alt || e.placeholder || e.labels?.length)
    && !(e.matches("img[alt='']") && e.closest("button[aria-label]"))).map(e => e.outerHTML.slice(0, 200))"""
"""Visible elements without an accessible name; an image inside a button has the button's."""


def select(page, tab: str) -> None:
    """Open a tab, from the menu of those for which there is no room."""
    button = page.locator(f"#{tab}-button")
    if not (button.count() and button.is_visible()):
        page.locator(".overflow-menu > button").click()
        button = page.locator(".overflow-dropdown button", has_text=TABS[tab][0])
    button.click()
    page.locator(f"#{tab}").wait_for()


def test_compare_follows_every_choice(open_page):
    page, example = open_page(), EXAMPLES[1]
    wait_for_cards(page, "captions", captions_of(EXAMPLES[0].image, *TRIO))
    page.get_by_role("button", name=example.name).click()
    wait_for_cards(page, "captions", captions_of(example.image, *TRIO))
    field = page.locator("#question textarea, #question input")
    assert field.input_value() == example.question
    page.get_by_text("greedy", exact=True).click()
    wait_for_cards(page, "captions", captions_of(example.image, *TRIO, num_beams=1))
    field.fill("how many objects are there?")
    page.locator("#answer").click()
    direct = [dlip.load(name).answer([example.image], ["how many objects are there?"])[0] for name in TRIO]
    wait_for_cards(page, "answers", direct)
    page.locator("#candidates textarea").fill("a <b>circle")
    page.locator("#rank").click()
    page.wait_for_function("document.querySelectorAll('#rankings tbody tr').length === 3")
    assert "a <b>circle" in page.locator("#rankings .teacher").inner_text()
    page.locator("#question textarea, #question input").fill(" ")
    page.locator("#answer").click()
    page.locator("#answers .hint").wait_for()
    page.get_by_label("Student", exact=True).click()
    page.get_by_role("option", name=OTHER).click()
    wait_for_cards(page, "captions", captions_of(example.image, TEACHER, OTHER, num_beams=1))


def test_an_image_selects_the_models_that_know_it(open_page, app_address, tmp_path):
    page, photo = open_page(address=app_address), images.photographs()[1].image
    for example, names in ((EXAMPLES[1], TRIO), (images.photographs()[0], PHOTOS), (EXAMPLES[0], TRIO)):
        page.get_by_role("button", name=example.name, exact=True).click()
        wait_for_cards(page, "captions", captions_of(example.image, *names))
        assert [page.get_by_label(side, exact=True).input_value() for side in ("Teacher", "Student")] == [*names[:2]]
    page.get_by_label("Remove Image").click()
    photo.save(tmp_path / "photo.png")
    page.locator("#image input[type=file]").set_input_files(tmp_path / "photo.png")
    wait_for_cards(page, "captions", captions_of(photo, *PHOTOS))
    (tmp_path / "wrong.png").write_text("no picture")
    page.get_by_label("Remove Image").click()
    page.locator("#image input[type=file]").set_input_files(tmp_path / "wrong.png")
    page.locator("#captions .hint").get_by_text("cannot be read as an image").wait_for()


def test_a_found_image_becomes_the_image(open_page):
    page, sentence = open_page(), "a large green triangle on a dark background"
    select(page, "search")
    page.locator("#sentence textarea, #sentence input").fill(sentence)
    page.keyboard.press("Enter")
    page.wait_for_selector("#found .hit img")
    hits = search.search(TEACHER, STUDENT, sentence)
    expected = [hit["caption"] for side in ("teacher", "student") for hit in hits[side]["hits"]]
    assert page.locator("#found .hit span").all_inner_texts() == expected
    page.locator("#found .teacher button").nth(1).click()
    wait_for_cards(page, "captions", captions_of(images.SCENES[hits["teacher"]["hits"][1]["place"]].image, *TRIO))


def test_a_clicked_word_shows_both_maps(open_page):
    page, image = open_page(), EXAMPLES[0].image
    select(page, "attention")
    page.wait_for_selector("#attention-maps img")
    caption = captions_of(image, STUDENT)[0]
    maps = [word_maps(dlip.load(name), image, caption, "decoder").map(2) for name in (TEACHER, STUDENT)]
    page.locator("#words .student button").nth(2).click()
    page.locator("#attention-maps").get_by_text(f"“{caption.split()[2]}”").first.wait_for()
    page.locator("#attention-maps").get_by_text(f"{map_divergence(*maps).item():.3f}", exact=True).wait_for()
    page.locator("#view").get_by_text("Grad-CAM", exact=True).click()
    page.locator("#explain").click()
    page.wait_for_selector("#attention-maps img[alt^='Grad-CAM']")


STOP_AT_ONCE = """() => {
    document.querySelector("#find-worst").click();
    window.stopping = setInterval(() => document.querySelector("#stop-finding").click(), 100);
}"""


def test_a_job_is_stopped(open_page):
    page = open_page()
    select(page, "disagreements")
    page.evaluate(STOP_AT_ONCE)
    page.locator("#worst .hint").get_by_text("Stopped").wait_for()
    page.evaluate("clearInterval(window.stopping)")
    page.locator("#find-worst").click()
    page.wait_for_selector("#worst article")


def test_speed_is_measured_and_downloaded(open_page):
    page = open_page()
    select(page, "speed")
    page.locator("#speed").get_by_text("retrieval", exact=True).click()
    for label in ("4", "16"):
        page.locator("#speed").get_by_label(label, exact=True).uncheck()
    page.locator("#measure").click()
    page.wait_for_selector("#memory .js-plotly-plot")
    with page.expect_download() as file:
        page.get_by_text("speed.json", exact=True).click()
    result = json.loads(file.value.path().read_text())
    timed = result["latency"]["models"]["student"]
    assert result["batches"] == [1] and f"{timed['p50_ms']:.1f} ms" in page.locator("#measured").inner_text()


def test_a_clicked_point_shows_its_run(open_page):
    page = open_page()
    select(page, "tradeoffs")
    point = page.locator("#runs .js-plotly-plot .point").last
    point.wait_for()
    box = point.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#run code")
    name = page.locator("#point input").input_value()
    assert page.locator("#run code").inner_text() == tradeoffs.run(name)["command"]


@pytest.mark.parametrize(("width", "height", "scheme"), [(1280, 800, "light"), (390, 844, "dark")])
def test_every_tab_fits_the_window(open_page, screens, width, height, scheme):
    """No tab is wider than the window, and every element has an accessible name; saves a screen of each tab."""
    page = open_page(width, height, scheme)
    for tab in TABS:
        select(page, tab)
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
        page.screenshot(path=screens / f"{tab}-{width}-{scheme}.png", full_page=width < 500)
        assert page.evaluate(NAMELESS) == [], tab
