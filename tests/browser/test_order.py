"""What several events show in one place, in a browser: the answer to the last one stays, whatever comes when."""

from tests.browser.helpers import EXAMPLES, TRIO, captions_of, delay_requests, type_text, wait_for_cards

LATE = """const now = window.fetch
window.late = []
window.fetch = async (...asked) => {
    if (String(asked[0]).includes("/queue/join")) await new Promise(done => setTimeout(done, window.late.shift() ?? 0))
    return now(...asked)
}"""
"""Requests leave so many milliseconds late: the first one, the second one, and so on."""


def test_a_late_answer_to_an_earlier_request_is_dropped(open_page):
    page, image = open_page(script=LATE), EXAMPLES[0].image
    short, full = (captions_of(image, *TRIO, num_beams=1, max_new_tokens=length) for length in (4, 30))
    assert short != full
    page.get_by_role("button", name="Beams, length and seed").click()
    page.evaluate("window.late = [2500]")
    page.get_by_text("greedy", exact=True).click()  # asks for the whole caption
    type_text(page.get_by_label("number input for Length"), "4")
    page.locator("#caption-button").click()
    wait_for_cards(page, "captions", short)
    page.wait_for_timeout(4000)  # until both are answered
    assert page.evaluate("window.late.length") == 0
    wait_for_cards(page, "captions", short)


def test_the_last_of_two_examples_wins_if_the_first_is_slow(open_page):
    page = open_page()
    delay_requests(page, "/queue/join", 2000)
    for place in (2, 1):
        page.locator("#examples button").nth(place).click()
        page.wait_for_timeout(300)
    page.wait_for_timeout(3000)  # until both are answered
    wait_for_cards(page, "captions", captions_of(EXAMPLES[1].image, *TRIO))
