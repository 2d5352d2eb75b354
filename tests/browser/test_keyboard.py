"""The app by keyboard alone, and for those who hear it, in a browser."""

import pytest

import dlip
from app import images

pytestmark = pytest.mark.slow

OTHER = "scenes/student-undistilled"


def tab_on(page, until: str) -> list[str]:
    """Tab by Tab until something that fits has the focus; the dropdowns on the way. No list stays open behind it."""
    passed = []
    for _ in range(80):
        name = page.evaluate(
            "document.activeElement.matches('[role=combobox]') ? document.activeElement.ariaLabel : ''"
        )
        passed += [name] if name else []
        page.keyboard.press("Tab")
        page.wait_for_timeout(250)  # a list opens and closes slowly
        here = page.evaluate("document.activeElement.matches('[role=combobox]')")
        assert page.locator("[role=listbox]:visible").count() <= here, f"after {passed}"
        if page.evaluate("until => !!document.activeElement.closest(until)", until):
            return passed
    raise AssertionError(f"{until} was not reached; passed {passed}")


def test_tab_closes_dropdowns(open_page):
    page = open_page()
    page.get_by_label("Teacher", exact=True).focus()
    assert tab_on(page, "#image") == ["Teacher", "Student"]
    page.locator("#tradeoffs-button").click()
    page.wait_for_selector("#runs .js-plotly-plot .point")
    page.locator("#tradeoffs-button").focus()
    assert tab_on(page, "footer") == ["Runs", "Cost", "Score", "A point of the chart"]
    assert page.get_by_label("Score", exact=True).input_value() == "VQA by type"  # as before


def test_models_are_chosen_by_keyboard(open_page, app_address):
    page, image = open_page(address=app_address), images.examples()[0].image
    (caption,) = dlip.load(OTHER).caption([image], max_new_tokens=30)
    student = page.get_by_label("Student", exact=True)
    student.fill(OTHER)
    page.keyboard.press("Tab")
    page.wait_for_selector(f"#captions [aria-label='Student {OTHER}']")
    assert student.input_value() == OTHER
    shown = page.locator("#captions .undistilled .said").inner_text()
    assert [word for word in shown.split() if word != "…"] == caption.split()

    student.focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    page.locator(f"#captions [aria-label='Student {OTHER}']").wait_for(state="detached")
    chosen = student.input_value()
    page.keyboard.press("Tab")
    page.wait_for_timeout(500)
    assert student.input_value() == chosen != OTHER and page.locator("[role=listbox]:visible").count() == 0


def test_choices_and_charts_have_accessible_names(open_page):
    page = open_page()
    assert page.get_by_role("group", name="Decoding", exact=True).get_by_role("radio").count() == 3
    page.locator("#tradeoffs-button").click()
    page.wait_for_selector("#runs .js-plotly-plot .point")
    title = page.locator("#runs-finding h3").inner_text()
    assert title and page.get_by_role("figure", name=title, exact=True).is_visible()
    for tab in ("attention", "speed", "disagreements"):
        page.locator(f"#{tab}-button").click()
        page.wait_for_timeout(1000)
        groups = page.locator("fieldset:visible")
        assert groups.count() >= 1 and all(groups.nth(i).get_attribute("aria-label") for i in range(groups.count()))
