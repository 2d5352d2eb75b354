"""The app in a browser as its users meet it: what the page shows is what dlip says, and every mistake is a sentence.

Screens are kept in build/screens, to be looked at.
"""

import re

import numpy as np
import pytest
from PIL import Image, ImageColor

import dlip
from app import events, gallery, images, models
from app.page import TABS
from app.tabs import compare, search
from dlip.plots import COLORS
from dlip.plots.html import data_uri
from tests.browser.helpers import EXAMPLES, TRIO, captions_of, delay_requests, type_text, wait_for_cards

TEACHER, STUDENT, OTHER = TRIO
PHOTOS = (*models.PAIRS["photos"], "photos/student-undistilled")
BOTH = {"teacher": TEACHER, "student": STUDENT}


NAMELESS = """[...document.querySelectorAll("button, input:not([type=file]), textarea, img")].filter(e =>
    e.checkVisibility() && !(e.innerText || e.ariaLabel || e.title || e.alt || e.placeholder || e.labels?.length)
    && !(e.matches("img[alt='']") && e.closest("button[aria-label]"))).map(e => e.outerHTML.slice(0, 200))"""
"""Visible elements without an accessible name; an image inside a button has the button's."""


def card_texts(page, where: str) -> list[str]:
    """What both models' cards say, without the gaps where one has none of the other's words."""
    return [" ".join(text.split()) for text in page.locator(f"#{where} .said").all_inner_texts()]


def test_the_page_follows_every_choice(open_page, screens):
    """The examples, the models, the ways of decoding, a question and captions to rank."""
    page = open_page()
    first, second = EXAMPLES[:2]
    assert card_texts(page, "captions") == captions_of(first.image, *TRIO)
    page.screenshot(path=screens / "compare.png")

    page.get_by_role("button", name=second.name).click()
    wait_for_cards(page, "captions", captions_of(second.image, *TRIO))
    assert page.locator("#question textarea, #question input").input_value() == second.question

    page.get_by_text("greedy", exact=True).click()
    wait_for_cards(page, "captions", captions_of(second.image, *TRIO, num_beams=1))

    page.get_by_role("button", name="Beams, length and seed").click()
    length = page.get_by_label("number input for Length")
    type_text(length, "4")
    page.locator("#caption-button").click()
    wait_for_cards(page, "captions", captions_of(second.image, *TRIO, num_beams=1, max_new_tokens=4))
    type_text(length, "30")
    page.locator("#caption-button").click()
    wait_for_cards(page, "captions", captions_of(second.image, *TRIO, num_beams=1))

    question = "how many objects are there?"
    page.locator("#question textarea, #question input").fill(question)
    page.locator("#answer").click()
    direct = [dlip.load(name).top_answers([second.image], [question])[0] for name in TRIO]
    wait_for_cards(page, "answers", [answers[0][0] for answers in direct])
    assert f"{100 * direct[0][0][1]:.1f}%" in page.locator("#answers .teacher").inner_text()

    texts = ["a ${1 + 1} {{value}} <b>circle", min(second.captions, key=len)]
    page.locator("#candidates textarea").fill("\n".join(texts))
    page.locator("#rank").click()
    page.wait_for_function("document.querySelectorAll('#rankings tbody tr').length === 6")
    rows = [row.split("\t") for row in page.locator("#rankings .teacher tbody tr").all_inner_texts()]
    vlm = dlip.load(TEACHER)
    itm, itc = vlm.match([second.image] * 2, texts).tolist(), vlm.similarity([second.image], texts)[0].tolist()
    best = max(range(2), key=itm.__getitem__)
    assert [cell.strip() for cell in rows[0]] == [texts[best], f"{100 * itm[best]:.1f}%", f"{itc[best]:.2f}"]

    page.get_by_label("Student", exact=True).click()
    page.get_by_role("option", name=OTHER).click()
    wait_for_cards(page, "captions", captions_of(second.image, TEACHER, OTHER, num_beams=1))
    assert page.locator("#captions .undistilled").count() == 1
    page.wait_for_function(
        "colour => getComputedStyle(document.querySelector('#student')).borderLeftColor === colour",
        arg=f"rgb{ImageColor.getrgb(COLORS['undistilled'])}",
    )
    marks = page.locator("#captions mark").all_inner_texts()
    words = [set(text.split()) for text in captions_of(second.image, TEACHER, OTHER, num_beams=1)]
    assert words[1] - words[0] and set(" ".join(marks).split()) >= words[1] - words[0]
    for part in ("ms", "tokens/s", "0.626M parameters", "GFLOPs"):
        assert part in page.locator("#captions .undistilled footer").inner_text()
    assert "times as fast as" in page.locator("#captions .summary").inner_text()


def test_search_by_sentence_and_by_image(open_page, screens, image_path):
    page = open_page()
    page.locator("#search-button").click()
    sentence = "a large green triangle on a dark background"
    type_text(page.locator("#sentence textarea, #sentence input"), sentence)
    page.keyboard.press("Enter")
    page.wait_for_selector("#found .hit img")
    assert hit_captions(page) == [hit["caption"] for hits in search.search(**BOTH, sentence=sentence).values()
                           for hit in hits["hits"]]  # fmt: skip
    page.screenshot(path=screens / "search.png")
    hit = search.search(**BOTH, sentence=sentence)["teacher"]["hits"][1]
    page.locator("#found .teacher button").nth(1).click()
    wait_for_cards(page, "captions", captions_of(gallery.current().image(hit["place"]), *TRIO))
    assert page.locator("#found .hit img").count() == 2 * search.SHOWN
    assert page.locator("#examples [aria-pressed=true]").count() == 0
    page.locator("#image [aria-label='Remove Image']").click()
    page.locator("#image input[type=file]").set_input_files(image_path)
    wait_for_cards(page, "captions", captions_of(image_path, *TRIO))
    page.locator("#reverse").click()
    page.wait_for_function("!document.querySelector('#found .hit img') && document.querySelector('#found .hit')")
    expected = []
    for name in BOTH.values():
        vlm, texts = dlip.load(name), [item.captions[0] for item in images.SCENES]
        itc, best = vlm.similarity([image_path], texts)[0].topk(search.CANDIDATES)
        itm = vlm.match([image_path] * len(best), [texts[i] for i in best])
        joint = itc / vlm.med.temp + itm.logit(eps=1e-6)
        expected += [texts[best[i]] for i in joint.argsort(descending=True, stable=True)[: search.SHOWN]]
    assert hit_captions(page) == expected


def hit_captions(page) -> list[str]:
    """What the teacher's search found, then what the student's did."""
    return page.locator("#found .hit span").all_inner_texts()


def test_an_example_selects_the_models_that_know_it(open_page, app_address, screens):
    page = open_page(address=app_address)
    photograph, scene = images.photographs()[1], EXAMPLES[1]
    wait_for_cards(page, "captions", captions_of(images.photographs()[0].image, *PHOTOS))
    page.screenshot(path=screens / "compare-photograph.png")
    for example, names in ((scene, TRIO), (photograph, PHOTOS)):
        page.get_by_role("button", name=example.name, exact=True).click()
        wait_for_cards(page, "captions", captions_of(example.image, *names))
        assert [page.get_by_label(side, exact=True).input_value() for side in ("Teacher", "Student")] == [*names[:2]]
        hint = "" if names == TRIO else compare.FEW_PHOTOGRAPHS
        page.wait_for_function("hint => document.querySelector('#domain-hint').innerText.trim() === hint", arg=hint)
        page.locator("#found .hit").first.wait_for(state="detached")  # by the models before
        if names == TRIO:
            page.locator("#search-button").click()
            assert page.locator("#sentence textarea, #sentence input").input_value() == scene.captions[0]
            page.locator("#find").click()
            page.locator("#found .hit").first.wait_for()
            page.locator("#compare-button").click()
    page.get_by_label("Student", exact=True).fill(STUDENT)
    page.keyboard.press("Tab")
    wait_for_cards(page, "captions", captions_of(photograph.image, PHOTOS[0], STUDENT, OTHER))
    page.locator("#domain-hint").get_by_text("know only the drawn scenes").wait_for()
    page.get_by_role("button", name=scene.name, exact=True).click()
    wait_for_cards(page, "captions", captions_of(scene.image, PHOTOS[0], STUDENT, OTHER))
    page.locator("#domain-hint").get_by_text("know only photographs").wait_for()


def test_an_own_image_brings_models_and_texts(open_page, app_address, tmp_path):
    """In place of those of an example; what the visitor typed stays."""
    page, photo = open_page(address=app_address), tmp_path / "photo.png"
    images.photographs()[1].image.save(photo)
    question = page.locator("#question textarea, #question input")
    new_question, new_captions = images.OWN_IMAGE["photos"]
    for kept in (new_question, "is it night?"):
        page.get_by_role("button", name=EXAMPLES[1].name, exact=True).click()
        wait_for_cards(page, "captions", captions_of(EXAMPLES[1].image, *TRIO))
        if kept != new_question:
            type_text(question, kept)
        page.get_by_label("Remove Image").click()
        page.locator("#image input[type=file]").set_input_files(photo)
        wait_for_cards(page, "captions", captions_of(images.photographs()[1].image, *PHOTOS))
        assert question.input_value() == kept
        assert page.locator("#candidates textarea").input_value() == "\n".join(new_captions)


def test_an_image_is_uploaded_and_errors_are_sentences(open_page, app_address, tmp_path):
    page = open_page(address=app_address)
    photo = tmp_path / "photo.jpg"
    images.drawing(900).crop((100, 0, 900, 500)).save(photo, quality=95)
    page.locator(
        "#image button[aria-label='Clear'], #image button[title='Clear'], #image [aria-label='Remove Image']"
    ).first.click()
    page.locator("#image input[type=file]").set_input_files(photo)
    wait_for_cards(page, "captions", captions_of(photo, *PHOTOS))

    def toast() -> str:
        message = page.locator(".toast-body").last
        message.wait_for()
        text = message.inner_text()
        message.locator("button").click()
        message.wait_for(state="detached")
        return re.sub(r"\s+", " ", text)

    page.locator("#question textarea, #question input").fill("  ")
    page.locator("#answer").click()
    assert "The question is empty; type one." in toast()
    page.locator("#candidates textarea").fill("a\n" * 30)
    page.locator("#rank").click()
    assert "30 captions cannot be ranked" in toast()
    page.get_by_label("Student", exact=True).fill("scenes/none")
    page.keyboard.press("Enter")
    assert "There is no model 'scenes/none'" in toast()
    assert "Traceback" not in page.content()


def test_an_unreadable_file_is_reported_once_and_removed(open_page, tmp_path, image_path):
    page = open_page()
    (tmp_path / "wrong.png").write_text("no picture")
    for _ in range(2):
        page.locator("#image [aria-label='Remove Image']").click()
        page.locator("#image input[type=file]").set_input_files(tmp_path / "wrong.png")
        page.locator(".toast-body").wait_for()
        page.locator("#image img").wait_for(state="detached")
        page.wait_for_timeout(1000)
        assert page.locator(".toast-body").inner_text().count("This file cannot be read as an image") == 1
        assert page.locator(".toast-body").bounding_box()["y"] > 400  # below the models' names
        page.locator(".toast-body button").click()
        page.locator("#image input[type=file]").set_input_files(image_path)
        wait_for_cards(page, "captions", captions_of(image_path, *TRIO))


def test_an_image_that_the_browser_cannot_show(open_page, tmp_path, image_path):
    page, photo = open_page(), tmp_path / "photo.tiff"
    images.drawing(300).save(photo)
    for file, hides in ((photo, True), (image_path, False)):
        page.locator("#image [aria-label='Remove Image']").click()
        page.locator("#image input[type=file]").set_input_files(file)
        wait_for_cards(page, "captions", captions_of(file, *TRIO))
        page.locator("#image img").wait_for(state="hidden" if hides else "visible")
        card_texts = page.evaluate(
            "getComputedStyle(document.querySelector('#image .image-container'), '::after').content"
        )
        assert ("cannot show this kind of image" in card_texts) == hides


def test_an_image_uploaded_during_a_request_is_answered(open_page, tmp_path):
    page, held = open_page(), []

    def hold(request):
        held.append(request)

    (tmp_path / "wrong.png").write_text("no picture")
    page.route("**/queue/join*", hold)
    with page.expect_request("**/queue/join*"):
        page.locator("#image [aria-label='Remove Image']").click()
    page.wait_for_timeout(500)
    with page.expect_response("**/upload*"):
        page.locator("#image input[type=file]").set_input_files(tmp_path / "wrong.png")
    page.wait_for_timeout(500)
    for request in list(held):
        request.continue_()
    page.unroute("**/queue/join*", hold)
    page.locator(".toast-body").wait_for()
    assert "This file cannot be read as an image" in page.locator(".toast-body").inner_text()


@pytest.mark.parametrize(
    ("width", "height", "scheme"),
    [
        (1280, 800, "light"),
        (390, 844, "dark"),
        pytest.param(1280, 800, "dark", marks=pytest.mark.slow),
        pytest.param(390, 844, "light", marks=pytest.mark.slow),
    ],
)
def test_every_tab_fits_the_window(open_page, screens, width, height, scheme):
    """No tab is wider than the window, and every element has an accessible name; saves a screenshot of each tab."""
    page = open_page(width, height, scheme)
    for tab, (label, _) in TABS.items():
        if page.locator(f"#{tab}-button").count() == 0:  # in a narrow window
            page.locator(".overflow-menu > button").click()
            page.locator(".overflow-dropdown button", has_text=label).click()
        else:
            page.locator(f"#{tab}-button").click()
        page.locator(f"#{tab}").wait_for()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
        page.screenshot(path=screens / f"{tab}-{width}-{scheme}.png", full_page=width < 500)
        assert page.evaluate(NAMELESS) == [], tab


def test_the_keyboard_reaches_every_control(open_page):
    """Tab moves from the models over the image and the examples to the buttons."""
    page = open_page()
    parts, reached = ("student", "examples", "caption-button", "question", "answer", "candidates", "rank"), set()
    page.get_by_label("Teacher", exact=True).focus()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("parts => document.activeElement.closest(parts)?.id", ", ".join(f"#{x}" for x in parts))
        )
    assert set(parts) <= reached
    example = page.get_by_role("button", name=EXAMPLES[2].name)
    example.focus()
    page.keyboard.press("Enter")
    wait_for_cards(page, "captions", captions_of(EXAMPLES[2].image, *TRIO))


def test_the_last_of_quick_choices_wins(open_page):
    page, requests = open_page(), []
    wait_for_cards(page, "captions", captions_of(EXAMPLES[0].image, *TRIO))
    page.on("request", lambda request: requests.append(request.url))
    large = max(range(len(EXAMPLES)), key=lambda i: np.asarray(EXAMPLES[i].image).size)
    for place in (2, large, 1):
        page.locator("#examples button").nth(place).click()
        page.wait_for_timeout(300)
    last = EXAMPLES[1]
    wait_for_cards(page, "captions", captions_of(last.image, *TRIO))
    assert page.locator("#examples button").nth(1).get_attribute("aria-pressed") == "true"
    assert page.locator("#question textarea, #question input").input_value() == last.question
    page.wait_for_timeout(4000)
    requests.clear()
    page.wait_for_timeout(3000)
    assert not requests


LATE = """const now = window.fetch
window.fetch = async (...asked) => {
    const answer = await now(...asked)
    if (String(asked[0].url).includes("/queue/data")) await new Promise(done => setTimeout(done, 1500))
    return answer
}"""
"""Streams of answers come later, and with them their ends."""


def test_a_request_at_the_end_of_the_event_stream_is_answered(open_page):
    page = open_page(script=LATE)
    page.evaluate("document.querySelectorAll('.card').forEach(e => e.dataset.old = 'yes')")
    page.locator("#caption-button").click()
    page.wait_for_timeout(1000)
    page.locator("#answer").click()
    for place in ("captions", "answers"):
        page.wait_for_selector(f"#{place} .card:not([data-old])")


def test_an_image_is_pasted(open_page):
    page, example = open_page(), EXAMPLES[3]
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    copy = """async address => navigator.clipboard.write(
        [new ClipboardItem({"image/png": await (await fetch(address)).blob()})])"""
    page.evaluate(copy, data_uri(Image.fromarray(np.asarray(example.image))))
    page.get_by_label("Paste from clipboard").click()
    wait_for_cards(page, "captions", captions_of(example.image, *TRIO))


def test_an_image_dropped_on_another_replaces_it(open_page, tmp_path):
    page, example = open_page(), EXAMPLES[3]
    path = tmp_path / "dropped.png"
    Image.fromarray(np.asarray(example.image)).save(path)
    box = page.locator("#image").bounding_box()
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    tools = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        tools.send("Input.dispatchDragEvent", {"type": kind, **place, "data": data})
    wait_for_cards(page, "captions", captions_of(example.image, *TRIO))
    assert page.locator("#image img").count() == 1


def test_an_image_is_taken_with_a_camera(open_page, tmp_path):
    page, taken = open_page(), tmp_path / "taken.png"
    page.context.grant_permissions(["camera"])
    page.get_by_label("Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('#image video')?.videoWidth > 0")
    size = page.locator("#image video").evaluate("video => [video.videoWidth, video.videoHeight]")
    delay_requests(page, "/queue/join", *[1000] * 20)
    page.get_by_label("capture photo").click()
    address = page.get_by_alt_text("the image that the models are shown").get_attribute("src")
    taken.write_bytes(page.request.get(address).body())
    assert Image.open(taken).size == tuple(size)
    wait_for_cards(page, "captions", captions_of(taken, *TRIO))


def test_a_missing_camera_is_reported(open_page):
    page = open_page()
    page.evaluate("() => { navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('none')) }")
    page.get_by_label("Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.locator("#image").get_by_text("There is no camera that this page may use").wait_for()


def test_a_full_queue_is_reported_in_place_of_results(browser, app_address):
    """At the start, and in place of an earlier image's results."""
    page = browser.new_context().new_page()
    page.set_default_timeout(90_000)
    page.goto(app_address)
    page.locator("#rankings td").first.wait_for()
    page.locator("#attention-button").click()
    page.locator("#attention-maps img").first.wait_for()
    page.route("**/queue/join*", lambda route: route.fulfill(status=503, json={"detail": "Queue is full."}))
    page.get_by_label("Remove Image").click()
    for place in ("captions", "words"):
        page.locator(f"#{place}").get_by_text(events.BUSY).wait_for(state="attached")
    page.wait_for_function("!document.querySelector('.card, #words [data-index]')")
    page.reload()
    page.locator("#captions").get_by_text(events.BUSY).wait_for()
    page.context.close()
