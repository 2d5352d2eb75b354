"""How the app's page is laid out, in a browser: what fits the window, what is seen of it, and where it stands."""

import pytest

from app import pictures

EXAMPLES = (2, 8, 10, 11, 0)
"""Places of examples with long captions, with several answers, with much to say."""


def select(page, label: str) -> None:
    """Opens a tab, from the menu of those for which there is no room."""
    tab = page.get_by_role("tab", name=label, exact=True)
    if not tab.is_visible():
        page.locator(".overflow-menu > button").click()
        tab = page.locator(".overflow-dropdown").get_by_text(label, exact=True)
    tab.click()


@pytest.mark.parametrize(("tab", "shown"), [("Compare", "#rankings td"), ("Attention", "#look img")])
def test_the_first_screen_needs_no_scrolling(open_page, tab, shown):
    page = open_page(1280, 800)
    select(page, tab)
    for place in EXAMPLES:
        page.wait_for_selector(shown)
        page.evaluate("shown => document.querySelectorAll(shown).forEach(e => e.dataset.old = 'yes')", shown)
        page.get_by_role("button", name=pictures.examples()[place].name, exact=True).click()
        page.wait_for_selector(f"{shown}:not([data-old])")
        assert page.evaluate("document.documentElement.scrollHeight") <= 800, pictures.examples()[place].name


def test_settings_of_decoding_open_below_their_line(open_page):
    page = open_page()
    button = page.get_by_text("Beams, length and seed")
    button.click()
    seed = page.get_by_label("Seed")
    seed.wait_for()
    assert seed.bounding_box()["y"] > page.locator("#say").bounding_box()["y"] + 38
    assert button.bounding_box()["y"] < page.locator("#say").bounding_box()["y"] + 38


def test_the_page_says_what_else_can_be_named_and_what_the_models_know(open_page):
    page = open_page()
    for side in ("teacher", "student"):
        assert "or type a run folder or a hub id" in page.locator(f"#{side}").inner_text()
    assert page.locator("#strange").inner_text() == ""
    page.get_by_role("button", name="Photograph: a lion").click()
    page.locator("#strange").get_by_text("know only the drawn scenes").wait_for()
