"""Compare: both models' caption of a picture, answer to a question, and ranking of typed captions, side by side."""

import time
from collections.abc import Callable
from html import escape
from typing import Literal, TypedDict, get_args

import gradio as gr
import torch
from gradio.context import Context
from PIL import Image

from dlip.checkpoints.load import built_in_models
from dlip.common.errors import MissingAbility, UserError
from dlip.cost.count import needed_params, task_macs
from dlip.data.scenes.world import SIDE
from dlip.data.transforms import resize_square
from dlip.plots.html import mark_differences
from dlip.vlm import VLM

from .. import events, images, inputs, models
from ..events import QUICK
from ..view import parts

MOST = 20
"""Captions of a ranking, at most."""
ENDS = 5
"""Beams of the search whose ends are an answer's alternatives."""
Method = Literal["beam", "greedy", "nucleus"]
BEAMS, TOP_P, LENGTH, SEED = (2, 8), (0.1, 1), (3, 40), (0, 2**31)
"""The least and the most of what can be asked of decoding."""
USUAL = dict(beams=3, length=30)
"""A caption's, where nobody asks for others: here and in Attention."""


HEADS = (
    '<th><abbr title="matching: the probability that the caption describes the picture">ITM</abbr></th>'
    '<th><abbr title="contrast: the cosine similarity of caption and picture, -1 to 1">ITC</abbr></th>'
)


class Caption(TypedDict):
    text: str | None
    """None where the model cannot write captions; `note` says why."""
    note: str
    cost: parts.Cost | None


class Captions(TypedDict):
    teacher: Caption
    student: Caption
    summary: str


class Answer(TypedDict):
    answers: list[tuple[str, float]]
    """The likeliest answers, the first being the model's, each with its probability from 0 to 1."""
    note: str
    """Why there is nothing, or what of a long text was not read."""
    cost: parts.Cost | None


class Answers(TypedDict):
    teacher: Answer
    student: Answer
    summary: str


class Ranked(TypedDict):
    text: str
    itm: float
    """Probability from 0 to 1 that the text describes the picture."""
    itc: float
    """Cosine similarity of text and picture, -1 to 1."""


class Ranking(TypedDict):
    ranked: list[Ranked]
    """By ITM, the best first."""
    note: str
    """Why there is nothing, or what of a long text was not read."""
    cost: parts.Cost | None


class Rankings(TypedDict):
    teacher: Ranking
    student: Ranking
    summary: str


@inputs.checked
def captions(
    picture: str, teacher: str, student: str, method: Method = "beam", beams: int = USUAL["beams"],
    top_p: float = 0.9, length: int = USUAL["length"], seed: int = 0,
) -> Captions:  # fmt: skip
    """What both models say of a picture: by beam search, greedily, or sampled from the words that make up `top_p`.

    length: tokens at most. seed: of the sampling.
    """
    image = images.read(picture)
    if method not in get_args(Method):
        raise UserError(f"there is no decoding {method!r}; choose {', '.join(get_args(Method))}")
    beams, top_p = inputs.whole(beams, "beams", *BEAMS), inputs.number(top_p, "top p", *TOP_P)
    length, seed = inputs.whole(length, "length", *LENGTH), inputs.whole(seed, "seed", *SEED)
    beams, top_p = (beams if method == "beam" else 1), (top_p if method == "nucleus" else None)

    def say(vlm: VLM) -> dict:
        torch.manual_seed(seed)
        (text,), *taken = _timed(vlm, "lm", image, lambda im: vlm.caption(im, beams, length, top_p))
        return {"text": text, "cost": _cost(vlm, "lm", "captioning", *taken, beams=beams)}

    return _both(teacher, student, say, {"text": None})


@inputs.checked
def answers(picture: str, teacher: str, student: str, question: str) -> Answers:
    """Both models' likeliest answers to a question about a picture, each with its probability."""
    image, question = images.read(picture), inputs.text(question, "question")

    def answer(vlm: VLM) -> dict:
        (found,), *taken = _timed(vlm, "vqa", image, lambda im: vlm.top_answers(im, [question], ENDS))
        cost = _cost(vlm, "vqa", "vqa", *taken, text_tokens=vlm.texts([question])[0].shape[1], beams=ENDS)
        return {"answers": found, "cost": cost, "note": parts.unread(vlm, "the question", [question])}

    return _both(teacher, student, answer, {"answers": []})


@inputs.checked
def rankings(picture: str, teacher: str, student: str, candidates: str) -> Rankings:
    """How well each caption, one a line, describes the picture: ITM probability and ITC similarity by both models."""
    image = images.read(picture)
    lines = [line for line in (candidates or "").splitlines() if line.strip()]
    if not 1 <= len(lines) <= MOST:
        raise UserError(f"{len(lines)} captions cannot be ranked; type 1 to {MOST}, each on a line of its own")
    texts = [inputs.text(line, "caption") for line in lines]

    def rank(vlm: VLM) -> dict:
        (itc, itm), *taken = _timed(
            vlm,
            "itm",
            image,
            lambda im: (vlm.similarity(im, texts)[0].tolist(), vlm.match(im * len(texts), texts).tolist()),
        )
        rows = [Ranked(text=t, itm=p, itc=c) for t, p, c in zip(texts, itm, itc, strict=True)]
        longest = vlm.texts(texts)[0].shape[1]
        cost = _cost(vlm, "itm", "retrieval", *taken, looks=2, text_tokens=longest, texts=len(texts))
        note = parts.unread(vlm, "a long caption", texts)
        return {"ranked": sorted(rows, key=lambda row: -row["itm"]), "cost": cost, "note": note}

    return _both(teacher, student, rank, {"ranked": []})


def _both(teacher: str, student: str, work: Callable[[VLM], dict], nothing: dict) -> dict:
    """What both models make of it; a model that lacks the weights says so in its place."""
    found = {}
    for side, vlm in models.pair(teacher, student).items():
        try:
            found[side] = {"note": "", **work(vlm)}
        except MissingAbility as unable:
            found[side] = {**nothing, "cost": None, "note": str(unable)}
    of_each = [found[side]["cost"] for side in ("teacher", "student")]
    return {**found, "summary": parts.saves(*of_each) if all(of_each) else ""}


def _timed(vlm: VLM, task: str, image, work: Callable) -> tuple:
    """What `work` makes of [the picture, made the model's square], its milliseconds, and the decoder's steps."""
    med, steps = vlm.med.model_for(task), []
    squared = resize_square(image, med.config.image_size)
    counter = med.text_decoder.cls.register_forward_hook(lambda *_: steps.append(1))
    try:
        start = time.perf_counter()
        found = work([squared])
        return found, 1000 * (time.perf_counter() - start), len(steps)
    finally:
        counter.remove()


def _cost(vlm: VLM, ability: str, task: str, ms: float, steps: int, looks: int = 1, **sizes) -> parts.Cost:
    """looks: how often the picture is encoded. sizes: as `task_macs` takes them."""
    passes = task_macs(vlm.med.model_for(ability).config, task, new_tokens=steps, **sizes)
    passes["image"] *= looks
    return parts.Cost(
        ms=ms,
        tokens_per_s=1000 * steps / ms if steps else None,
        params_m=sum(needed_params(vlm.med).values()) / 1e6,
        flops_g=sum(macs.flops for macs in passes.values()) / 1e9,
    )


# --- as the page shows it ---------------------------------------------------------------------------------------------


def abroad(image: Image.Image, names: tuple[str, str]) -> str:
    """What to know where a model of scenes is shown another picture; else nothing."""
    if image.size == (SIDE, SIDE) or not set(names) & set(built_in_models()):
        return ""
    return parts.hint("The scenes models know only the drawn scenes: in any other picture they see one of those.")


def show_captions(found: Captions, names: tuple[str, str]) -> str:
    """Both captions, the words that differ marked."""
    said = [found[side]["text"] for side in parts.SIDES]
    marked = [mark_differences(own, other) if own else "…" for own, other in (said, said[::-1])]
    bodies = [f'<p class="said">{text}</p>' for text in marked]
    return _pair(found, names, bodies)


def show_answers(found: Answers, names: tuple[str, str]) -> str:
    """Both answers, each with the alternatives above 0.1% below it; an answer that differs is marked."""
    first = [found[side]["answers"][0][0] if found[side]["answers"] else None for side in parts.SIDES]
    bodies = []
    for side, own, other in zip(parts.SIDES, first, first[::-1], strict=True):
        if own is None:
            bodies.append("")
            continue
        (_, p), *others = found[side]["answers"][:3]
        bars = [parts.bar(p, f'<b class="said">{mark_differences(own, other)}</b>')]
        bars += [parts.bar(p, f'<span title="{escape(words)}">{escape(words)}</span>') for words, p in others
                 if p >= 0.001]  # fmt: skip
        bodies.append("".join(bars))
    return _pair(found, names, bodies)


def show_rankings(found: Rankings, names: tuple[str, str]) -> str:
    bodies = []
    for side in parts.SIDES:
        rows = "".join(
            f'<tr><td title="{escape(row["text"])}">{escape(row["text"])}</td>'
            f"<td>{100 * row['itm']:.1f}%</td><td>{row['itc']:.2f}</td></tr>"
            for row in found[side]["ranked"]
        )
        bodies.append(f"<table><thead><tr><th>Caption</th>{HEADS}</tr></thead><tbody>{rows}</tbody></table>")
    return _pair(found, names, bodies)


def _pair(found: dict, names: tuple[str, str], bodies: list[str]) -> str:
    cards = {}
    for (side, name), body in zip(zip(parts.SIDES, names, strict=True), bodies, strict=True):
        own = found[side]
        note = f'<p class="note">{escape(own["note"])}</p>' if own["note"] else ""
        body = body + note if own["cost"] else note
        cards[side] = parts.card(side, models.role(name, side), name, body, own["cost"])
    return parts.pair(cards, found["summary"])


def tab(names: tuple[gr.Dropdown, gr.Dropdown], picture: gr.Image) -> tuple[gr.Textbox, gr.Textbox]:
    """Returns the question and the captions to rank, which an example fills in."""
    first = images.examples()[0]
    with gr.Row(elem_classes="ask"):
        method = gr.Radio(["beam", "greedy", "nucleus"], value="beam", label="Decoding", scale=3, min_width=240)
        with gr.Accordion("Beams, length and seed", open=False, elem_classes="settings"), gr.Row():
            beams = gr.Slider(*BEAMS, USUAL["beams"], step=1, label="Beams", info="of beam search")
            top_p = gr.Slider(*TOP_P, 0.9, step=0.05, label="Top p", info="of nucleus sampling")
            length = gr.Slider(*LENGTH, USUAL["length"], step=1, label="Length", info="tokens at most")
            seed = gr.Number(0, precision=0, minimum=SEED[0], maximum=SEED[1], label="Seed", info="of nucleus sampling")
        say = gr.Button("Caption", variant="primary", scale=1, min_width=110, elem_id="say")
    captioned = gr.HTML(elem_id="captions")
    with gr.Row(elem_classes="ask"):
        question = gr.Textbox(first.question, label="Question", scale=3, min_width=240, max_lines=1, elem_id="question")
        answer = gr.Button("Answer", variant="primary", scale=1, min_width=110, elem_id="answer")
    answered = gr.HTML(elem_id="answers")
    with gr.Row(elem_classes="ask"):
        candidates = gr.Textbox("\n".join(first.captions), label="Captions", placeholder="one a line", lines=2,
                                max_lines=2, scale=3, min_width=240, elem_id="candidates")  # fmt: skip
        rank = gr.Button("Rank", variant="primary", scale=1, min_width=110, elem_id="rank")
    ranked = gr.HTML(elem_id="rankings")

    actions = [
        (captions, show_captions, [method, beams, top_p, length, seed], captioned, say.click),
        (answers, show_answers, [question], answered, answer.click),
        (rankings, show_rankings, [candidates], ranked, rank.click),
    ]
    places = [captioned, answered, ranked]
    new = [Context.root_block.load, picture.change, *(name.change for name in names)]
    event = dict(api_visibility="private", show_progress="minimal", **QUICK)
    for i, (function, show, options, out, click) in enumerate(actions):
        asked, alone = [picture, *names, *options], isinstance(new, list)
        events.endpoint(function, asked)
        click(events.guarded(_shown(function, show)), asked, out, **event)
        then = events.after(new) if alone else new.then
        instead = _told if alone else events.nothing  # a mistake that all of them meet is told once
        followed = then(events.following(_shown(function, show, quiet=True), instead), asked, out, **event)
        new = events.or_busy(followed, places[i:])
    # other words than those that are shown were asked for
    method.input(events.guarded(_shown(captions, show_captions, quiet=True)),
                 [picture, *names, method, beams, top_p, length, seed], captioned, **event)  # fmt: skip
    question.submit(events.guarded(_shown(answers, show_answers)), [picture, *names, question], answered,
                    api_visibility="private", **QUICK)  # fmt: skip
    return question, candidates


def _told(said: str) -> str:
    """A mistake at the edge of the page, from where it goes, and in the place of what it kept away."""
    events.toast(said)
    return parts.hint(said)


def _shown(function: Callable, show: Callable, quiet: bool = False) -> Callable:
    """The function with its result as the page shows it; `quiet` where nobody asked: nothing without a picture, nor of
    one that cannot be read, which the page itself refuses."""

    def event(picture, teacher, student, *options):
        if quiet and not picture:
            return ""
        try:
            return show(function(picture, teacher, student, *options), (teacher, student))
        except images.Unreadable:
            if quiet:
                return ""
            raise

    return event
