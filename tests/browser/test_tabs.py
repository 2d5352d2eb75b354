"""Attention, Speed, Trade-offs and Disagreements in a browser: what the page shows is what dlip says.

Screens are kept in build/screens, to be looked at.
"""

import json
import re
import time

import pytest
from gradio_client import Client, handle_file

import dlip
from app.tabs import attention, attributions, disagreements, tradeoffs
from dlip.data.scenes.dataset import Scenes
from dlip.evaluation import disagreement
from dlip.evaluation.attention_maps import answer_maps, map_divergence, word_maps
from dlip.evaluation.evaluate import evaluate
from dlip.records import frame
from dlip.records.compare import summary
from tests.browser.helpers import EXAMPLES, delay_requests, type_text

TEACHER, STUDENT = "scenes/teacher", "scenes/student"
BOTH = (TEACHER, STUDENT)
SCENES = "scenes test, 1,000 images"


def wait_for_text(page, where: str, expected: str) -> None:
    page.wait_for_function(
        "([where, wanted]) => document.querySelector(where)?.innerText.includes(wanted)", arg=[where, expected]
    )


def test_clicking_a_word_shows_both_maps(open_page, screens):
    page, image = open_page(), EXAMPLES[0].image
    captions = [dlip.load(name).caption([image])[0] for name in BOTH]
    page.locator("#attention-button").click()
    page.wait_for_selector("#attention-maps img")
    spoken = [" ".join(row.all_inner_texts()) for row in map(page.locator, (f"#words .{who} button" for who in
                                                                          ("teacher", "student")))]  # fmt: skip
    assert spoken == captions
    page.screenshot(path=screens / "attention-word.png")

    word = captions[1].split()[2]
    bits = map_divergence(*(word_maps(dlip.load(name), image, captions[1], "decoder").map(2) for name in BOTH)).item()
    page.locator("#words .student button").nth(2).click()
    wait_for_text(page, "#attention-maps", f"“{word}”")
    wait_for_text(page, "#attention-maps", f"differ by {bits:.3f} of 1 bit")
    assert page.locator("#words [aria-pressed=true]").all_inner_texts() == [word]
    alts = [image.get_attribute("alt") for image in page.locator("#attention-maps img").all()]
    assert len(alts) == 2 and all(alt.startswith("cross-attention of the") for alt in alts)

    question = "what color is the large circle?"
    type_text(page.locator("#attention textarea, #attention input[type=text]").first, question)
    page.locator("#describe").click()
    answers = [dlip.load(name).answer([image], [question])[0] for name in BOTH]
    wait_for_text(page, "#words", "answer")
    page.locator("#words > div > div, .words > div").last.locator("button").first.click()
    maps = [answer_maps(dlip.load(name), image, question, answers[1]).map(0) for name in BOTH]
    wait_for_text(page, "#attention-maps", f"“{answers[1].split()[0]}”")
    wait_for_text(page, "#attention-maps", f"differ by {map_divergence(*maps).item():.3f} of 1 bit")


STOP_AT_ONCE = """([start, stop]) => new Promise((done, fail) => {
    setTimeout(() => fail(new Error(`${stop} never appeared`)), 30000);
    document.querySelector(start).click();
    const timer = setInterval(() => {
        const button = document.querySelector(stop);
        if (!button?.offsetParent) return;
        clearInterval(timer);
        button.click();
        done();
    }, 10);
})"""
"""In the page itself, as a short job may end before a request to stop it comes from outside."""


def assert_stops(page, start: str, stop: str, shown: str) -> None:
    """Work that is done once, to know how long it takes, and then stopped: nothing comes of it in much longer."""
    began = time.monotonic()
    page.locator(start).click()
    page.wait_for_selector(shown)
    took = time.monotonic() - began
    page.locator(stop).wait_for(state="hidden")
    page.evaluate("shown => document.querySelectorAll(shown).forEach(e => e.dataset.old = 'yes')", shown)
    page.evaluate(STOP_AT_ONCE, [start, stop])
    page.locator(stop).wait_for(state="hidden")
    page.wait_for_timeout(1000 * (1.5 * took + 1))
    assert page.locator(f"{shown}:not([data-old])").count() == 0
    assert page.locator(".progress-level, .toast-body").count() == 0


def test_attributions_can_be_stopped(open_page, screens):
    page = open_page()
    page.locator("#attention-button").click()
    page.wait_for_selector("#attention-maps img")
    page.locator("#view").get_by_text("Grad-CAM", exact=True).click()
    page.locator("#explain").click()
    page.wait_for_selector("#attention-maps img[alt^='Grad-CAM']")
    page.screenshot(path=screens / "attribution.png")

    page.locator("#view").get_by_text("integrated gradients", exact=True).click()
    assert_stops(page, "#explain", "#stop-explaining", "#attention-maps img[alt^='integrated']")


def test_a_failed_job_leaves_one_sentence(open_page, screens):
    page = open_page()
    page.locator("#attention-button").click()
    page.wait_for_selector("#attention-maps img")
    page.locator("#view").get_by_text("Grad-CAM", exact=True).click()
    page.wait_for_function(
        "!document.querySelector('#attention-maps img') && document.querySelector('#attention-maps').innerText.trim()"
    )
    page.get_by_label("Remove Image").click()
    page.wait_for_function(
        "!document.querySelector('#attention-maps').innerText.trim()"
    )  # what follows the image has ended
    page.locator("#explain").click()
    wait_for_text(page, ".toast-body", "There is no word to explain; upload an image, and choose one of its words.")
    page.locator("#stop-explaining").wait_for(state="hidden")
    page.wait_for_timeout(500)
    page.screenshot(path=screens / "attribution-of-nothing.png")
    assert page.locator("[data-testid=status-tracker] :is(.error, .clear-status):visible").count() == 0


@pytest.mark.parametrize("late", [pytest.param("request", marks=pytest.mark.slow), "answer"])
def test_a_job_is_stopped_before_the_page_knows_its_id(late, open_page):
    page = open_page()
    page.locator("#attention-button").click()
    page.wait_for_selector("#attention-maps img")
    page.locator("#view").get_by_text("integrated gradients", exact=True).click()
    page.evaluate(
        """late => {
            const now = window.fetch, moment = () => new Promise(done => setTimeout(done, 1000))
            window.fetch = async (...asked) => {
                const slow = String(asked[0]).includes("/queue/join")
                if (slow && late === "request") await moment()
                const answer = await now(...asked)
                if (slow && late === "answer") await moment()
                return answer
            }
        }""",
        late,
    )
    with page.expect_response("**/cancel") as cancelled:
        page.locator("#explain").click()
        page.locator("#stop-explaining").wait_for()
        page.locator("#stop-explaining").click(force=True)  # at once: the job is short
    assert cancelled.value.ok
    assert json.loads(cancelled.value.request.post_data)["event_id"] is None
    page.locator("#stop-explaining").wait_for(state="hidden")
    page.wait_for_timeout(5_000)
    assert page.locator("#attention-maps img[alt^='integrated']").count() == 0
    assert page.locator(".progress-level").count() == 0


def test_an_earlier_choice_does_not_stop_a_job(open_page):
    page = open_page()
    page.locator("#speed-button").click()
    delay_requests(page, "/run/", *[1000] * 20)
    for label in ("1", "4", "16", "Memory"):
        page.locator("#speed").get_by_label(label, exact=True).uncheck()
    page.locator("#speed").get_by_text("retrieval", exact=True).click()
    page.locator("#measure").click()
    wait_for_text(page, "#measured", "Measured: retrieval")
    page.locator("#stop-measuring").wait_for(state="hidden")


def test_finding_disagreements_can_be_stopped(open_page):
    page = open_page()
    page.locator("#disagreements-button").click()
    page.locator("#disagreements").get_by_text("answers", exact=True).click()
    assert_stops(page, "#find-worst", "#stop-finding", "#worst article")


def test_the_outline_can_be_toggled(open_page):
    page = open_page()
    page.locator("#attention-button").click()
    page.wait_for_selector("#attention-maps img")
    page.get_by_text("Layers, heads, and how captions are read").click()
    fields = [page.get_by_label(name, exact=True) for name in ("as it is read with the image", "Teacher’s layer")]
    for view, usable in (("rollout", [False, False]), ("self-attention", [False, True]), ("Grad-CAM", [False, False])):
        page.locator("#view").get_by_text(view, exact=True).click()
        page.wait_for_function(
            "usable => document.querySelector('#attention [aria-label=\"Teacher’s layer\"]').disabled !== usable",
            arg=usable[1],
        )
        assert [field.is_enabled() for field in fields] == usable, view
    page.locator("#explain").click()
    page.wait_for_selector("#attention-maps img[alt^='Grad-CAM']")
    outlined = [image.get_attribute("src") for image in page.locator("#attention-maps img").all()]
    head = page.locator("#attention-maps .differ").inner_text()
    page.get_by_label("Outline the object that the word names").uncheck()
    page.wait_for_function("src => document.querySelector('#attention-maps img')?.src !== src", arg=outlined[0])
    assert (
        page.locator("#attention-maps img[alt^='Grad-CAM']").count() == 2
        and page.locator("#attention-maps .differ").inner_text() == head
    )
    page.get_by_label("Outline the object that the word names").check()
    page.wait_for_function("src => document.querySelector('#attention-maps img')?.src === src", arg=outlined[0])


def test_speed_is_measured_and_downloaded(open_page, screens):
    page = open_page()
    page.locator("#speed-button").click()
    page.locator("#speed").get_by_text("retrieval", exact=True).click()
    for label in ("4", "16"):
        page.locator("#speed").get_by_label(label, exact=True).uncheck()
    page.locator("#measure").click()
    page.wait_for_selector("#measured h2")
    shown = page.locator("#measured").inner_text()
    page.wait_for_selector("#latency .js-plotly-plot")
    page.screenshot(path=screens / "speed-measured.png", full_page=True)
    with page.expect_download() as file:
        page.get_by_text("speed.json", exact=True).click()
    result = json.loads(file.value.path().read_text())
    assert result["batches"] == [1]
    bars = page.evaluate("document.querySelector('#memory .js-plotly-plot').data.flatMap(t => Array.from(t.x))")
    taken = [result["memory"][side][key] for side in ("teacher", "student") for key in ("weights_mb", "peak_mb")]
    assert sorted(bars) == pytest.approx(sorted(taken))
    for side in ("teacher", "student"):
        timed = result["latency"]["models"][side]
        assert timed["task"] == "retrieval" and f"{timed['p50_ms']:.1f} ms" in shown
        assert f"{result['throughput'][side][0]:,.1f} per second" in shown
    assert f"{timed['threads']} thread" in shown


def test_the_last_of_two_words_wins(open_page):
    page = open_page()
    page.locator("#attention-button").click()
    page.wait_for_selector("#words button")
    page.wait_for_selector("#attention-maps img")
    held = []
    page.route("**/queue/join*", lambda route: held.append(route))
    page.locator("#words button").nth(1).click()
    page.wait_for_timeout(500)
    page.locator("#words button").nth(3).click()
    page.wait_for_timeout(500)
    for route in list(held):
        route.continue_()
    page.unroute("**/queue/join*")
    word = page.locator("#words button").nth(3)
    assert word.get_attribute("aria-pressed") == "true"
    wait_for_text(page, "#attention-maps", f"“{word.inner_text()}”")
    page.wait_for_timeout(2000)
    assert f"“{word.inner_text()}”" in page.locator("#attention-maps").inner_text()


def test_clicking_a_point_shows_its_run(open_page, screens):
    page = open_page()
    page.locator("#tradeoffs-button").click()
    page.wait_for_selector("#runs .js-plotly-plot .point")
    rows = summary(frame(tradeoffs.records_of()).dropna(subset=["params_m", "vqa"]))
    role = rows["role"].iloc[-1]
    name = rows.loc[rows["role"] == role, "name"].iloc[0]
    names = page.evaluate(
        "role => document.querySelector('#runs .js-plotly-plot').data.find(t => t.name === role).customdata", role
    )
    assert name in names
    place = page.evaluate("role => document.querySelector('#runs .js-plotly-plot').data.map(t => t.name).indexOf(role)",
                          role)  # fmt: skip
    point = page.locator("#runs .scatterlayer .trace").nth(place).locator(".point").nth(names.index(name))
    box = point.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#run code")
    clicked = page.locator("#point input").input_value()
    assert clicked in names  # the one that lies on top
    assert page.locator("#run code").inner_text() == tradeoffs.run(clicked)["command"]
    page.screenshot(path=screens / "tradeoffs-point.png", full_page=True)

    page.locator("#point input").click()  # the same by name
    page.get_by_role("option", name="teacher", exact=True).click()
    figures = tradeoffs.run("teacher")["figures"]
    wait_for_text(page, "#run", f"{figures['tr1']:,.1f}")


POINTS = """points => {
    const drawn = document.querySelector("#runs .js-plotly-plot").data.filter(t => t.customdata)
        .flatMap(t => t.customdata.map((name, i) => [name, ...[t.x, t.y].map(of => (of._inputArray ?? of)[i])]));
    drawn.sort((a, b) => a[0] < b[0] ? -1 : 1);
    return drawn.length === points.length && drawn.every((d, i) => d[0] === points[i][0]
        && [1, 2].every(k => d[k] === points[i][k] || Math.abs(d[k] - points[i][k]) < 1e-6));
}"""
"""Whether the chart shows these points: name and both places of each."""


def test_the_chart_follows_its_axes_and_group(open_page):
    page = open_page()
    page.locator("#tradeoffs-button").click()
    page.wait_for_selector("#runs .js-plotly-plot .point")
    last, cost, score = tradeoffs.groups()[-1], "params_m", "vqa_mean"
    for label, noun in (("Cost", "FLOPs"), ("Score", "CIDEr"), ("Runs", last)):
        page.get_by_label(label, exact=True).click()
        page.get_by_role("option", name=noun, exact=True).click()
        cost, score = ("flops_g", score) if label == "Cost" else (cost, "cider")
        group = last if label == "Runs" else tradeoffs.groups()[0]
        points, fig = tradeoffs.tradeoffs(group, cost, score), tradeoffs.chart_of(group, cost, score)
        wait_for_text(page, "#tradeoffs", f"{sum(point['runs'] for point in points)} of the ")
        traces = [(trace.customdata, trace.x, trace.y) for trace in fig.data if trace.customdata is not None]
        drawn = sorted(point for trace in traces for point in zip(*trace, strict=True))
        page.wait_for_function(POINTS, arg=json.loads(json.dumps(drawn)))


def test_disagreements_are_shown_with_their_images(open_page, screens):
    page = open_page()
    page.locator("#disagreements-button").click()
    page.locator("#disagreements").get_by_text("answers", exact=True).click()
    type_text(page.locator("#disagreements input[type=number]"), "50")
    page.locator("#disagreements input[type=number]").press("Tab")
    page.locator("#find-worst").click()
    page.wait_for_selector("#worst article")
    items = [evaluate(name, Scenes("test", size=50), tasks=("vqa",), return_items=True, progress=False)["items"]
             for name in BOTH]  # fmt: skip
    rows = disagreement.disagreements(*items, "vqa")
    cards = page.locator("#worst article")
    assert cards.count() == len(rows) and cards.locator("img").count() == len(rows)
    first = re.sub(r"\s+", " ", cards.first.inner_text())
    assert rows["asked"][0] in first and rows["teacher"][0] in first and rows["student"][0] in first
    page.screenshot(path=screens / "disagreements-found.png", full_page=True)


def test_endpoints_of_other_tabs_equal_their_functions(app_address, tmp_path):
    client, path = Client(app_address, verbose=False), str(tmp_path / "scene.png")
    EXAMPLES[0].image.save(path)
    image_path, text, last = handle_file(path), "a large yellow circle", ("last", "mean", "last", "mean")
    documented = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    for function, inputs, direct in (
        (attention.words, (image_path, *BOTH, "what is this?"), (path, *BOTH, "what is this?")),
        (attention.attention, (image_path, *BOTH, text, 3, "fusion", "", *last), (path, *BOTH, text, 3, "fusion")),
        (attention.self_attention, (image_path, *BOTH, True, *last), (path, *BOTH, True)),
        (attributions.attribution, (image_path, *BOTH, text, 3, "Grad-CAM"), (path, *BOTH, text, 3, "Grad-CAM")),
        (tradeoffs.tradeoffs, (SCENES, "flops_g", "cider"), (SCENES, "flops_g", "cider")),
        (tradeoffs.run, ("student", SCENES), ("student",)),
        (disagreements.disagreements, (*BOTH, "answers", 10), (*BOTH, "answers", 10)),
    ):
        name = function.__name__
        assert documented[f"/{name}"]["returns"][0]["type"], name
        result = client.predict(*inputs, api_name=f"/{name}")
        assert json.loads(json.dumps(result), parse_float=rounded) == json.loads(
            json.dumps(function(*direct)), parse_float=rounded
        )
    result = client.predict(*BOTH, "retrieval", 1, 1, 5, 2, [2], False, api_name="/speed")
    assert result["batches"] == [2] and result["latency"]["models"]["student"]["repeats"] == 2


def rounded(number: str) -> float:
    return round(float(number), 3)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height", "scheme"), [(390, 844, "dark"), (390, 844, "light"), (1280, 800, "dark")])
def test_the_tabs_fit_a_phone_and_dark_mode(open_page, screens, width, height, scheme):
    page = open_page(width=width, height=height, scheme=scheme)
    for tab, filled in (("Attention", "#attention-maps img"), ("Trade-offs", "#runs .js-plotly-plot .point")):
        button = page.get_by_role("tab", name=tab, exact=True)
        if not button.is_visible():
            page.locator(".overflow-menu > button").click()
            button = page.locator(".overflow-dropdown").get_by_text(tab, exact=True)
        button.click()
        page.wait_for_selector(filled)
        page.screenshot(path=screens / f"{tab.lower()}-{width}-{scheme}-filled.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
