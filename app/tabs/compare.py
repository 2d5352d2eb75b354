"""Compare: both models' caption of an image, answer to a question, and ranking of typed captions, side by side."""

import time
from collections.abc import Callable
from typing import Annotated, Literal, NotRequired, TypedDict, get_args

import gradio as gr
import torch
from PIL import Image
from pydantic import Field

from dlip.checkpoints.load import built_in_models
from dlip.common.errors import MissingAbility, UserError
from dlip.cost.count import Macs, needed_params, retrieval_macs, task_macs
from dlip.data.transforms import resize_square
from dlip.export.optimize import Optimized
from dlip.vlm import VLM

from .. import images, models
from ..endpoints import MAX_CHARACTERS, Text, Words, checked, offer, one_line
from ..view import parts

MAX_CAPTIONS = 20
"""Captions to rank."""
ANSWER_BEAMS = 5
"""Beams of the search whose results are an answer's alternatives."""
Method = Literal["beam", "greedy", "nucleus"]
BEAMS, TOP_P, LENGTH, MAX_SEED = (2, 8), (0.1, 1), (3, 40), 2**31
"""Ranges of the decoding settings."""
DEFAULTS = dict(beams=3, length=30)
"""Decoding settings of a caption, here and in the Attention tab."""


class Caption(TypedDict):
    text: str | None
    """None if the model cannot write captions; `note` says why."""
    note: str
    cost: parts.Cost | None


class Captions(TypedDict):
    teacher: Caption
    student: Caption
    undistilled: NotRequired[Caption]
    """Of the model NAME-undistilled, if it is shipped with a student NAME; so in the results below."""
    summary: str


class Answer(TypedDict):
    answers: list[tuple[str, float]]
    """The likeliest answers, the model's own first, each with its probability from 0 to 1."""
    note: str
    """Why there is none, or how much of a long text was read."""
    cost: parts.Cost | None


class Answers(TypedDict):
    teacher: Answer
    student: Answer
    undistilled: NotRequired[Answer]
    summary: str


class Ranked(TypedDict):
    text: str
    itm: float | None
    """Probability from 0 to 1 that the text describes the image; None for a model without matching."""
    itc: float
    """Cosine similarity of text and image, -1 to 1."""


class Ranking(TypedDict):
    ranked: list[Ranked]
    """By ITM, else by ITC, the best first."""
    note: str
    """Why there is none, or how much of a long text was read."""
    cost: parts.Cost | None


class Rankings(TypedDict):
    teacher: Ranking
    student: Ranking
    undistilled: NotRequired[Ranking]
    summary: str


@checked
def captions(
    image: images.Upload,
    teacher: Text,
    student: Text,
    method: Method = "beam",
    beams: Annotated[int, Field(ge=1, le=BEAMS[1])] = DEFAULTS["beams"],
    top_p: Annotated[float, Field(ge=TOP_P[0], le=TOP_P[1])] = 0.9,
    length: Annotated[int, Field(ge=LENGTH[0], le=LENGTH[1])] = DEFAULTS["length"],
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0,
) -> Captions:
    """Both models' captions of an image: by beam search, greedily, or sampled from the tokens that make up `top_p`.

    length: maximum number of tokens. seed: of nucleus sampling.
    """
    beams = beams if method == "beam" else 1
    sampling = {"top_p": top_p} if method == "nucleus" else {}

    def caption(vlm: VLM) -> dict:
        torch.manual_seed(seed)
        (text,), *measured = _timed(
            vlm, "lm", image, lambda model, batch: model.caption(batch, beams, length, **sampling), not sampling
        )
        passes = task_macs(vlm.med.model_for("lm").config, "captioning", new_tokens=measured[1], beams=beams)
        return {"text": text, "cost": _cost(vlm, passes, *measured)}

    return _results(teacher, student, caption, {"text": None})


@checked
def answers(image: images.Upload, teacher: Text, student: Text, question: Words) -> Answers:
    """Both models' likeliest answers to a question about an image, each with its probability."""

    def answer(vlm: VLM) -> dict:
        (likeliest,), *measured = _timed(
            vlm, "vqa", image, lambda model, batch: model.top_answers(batch, [question], ANSWER_BEAMS), False
        )
        med = vlm.med.model_for("vqa")
        tokens = vlm.tokenize([question], med)[0].shape[1]
        cost = _cost(vlm, task_macs(med.config, "vqa", tokens, measured[1], ANSWER_BEAMS), *measured)
        return {"answers": likeliest, "cost": cost, "note": parts.reading_note(vlm, med, "the question", [question])}

    return _results(teacher, student, answer, {"answers": []})


@checked
def rankings(image: images.Upload, teacher: Text, student: Text, candidates: str) -> Rankings:
    """How well each caption, one per line, describes the image: both models' ITM probability and ITC similarity.

    A model without matching, such as a CLIP, has no ITM probability.
    """
    texts = [text for line in candidates.splitlines() if (text := one_line(line))]
    if not 1 <= len(texts) <= MAX_CAPTIONS:
        raise UserError(f"{len(texts)} captions cannot be ranked; type 1 to {MAX_CAPTIONS}, one per line")
    if (longest := max(map(len, texts))) > MAX_CHARACTERS:
        raise UserError(f"a caption has {longest:,} characters; shorten it to {MAX_CHARACTERS:,}")

    def rank(vlm: VLM) -> dict:
        ability = "itm" if "itm" in vlm.med.abilities else "itc"

        def score(model: VLM | Optimized, batch: list) -> tuple[list[float], list[float | None]]:
            itm = model.match(batch * len(texts), texts).tolist() if ability == "itm" else [None] * len(texts)
            return model.similarity(batch, texts)[0].tolist(), itm

        (itc, itm), *measured = _timed(vlm, ability, image, score, True)
        rows = [Ranked(text=t, itm=p, itc=c) for t, p, c in zip(texts, itm, itc, strict=True)]
        med = vlm.med.model_for(ability)
        tokens = vlm.tokenize(texts, med)[0].shape[1]
        passes = retrieval_macs(med, ability == "itm", text_tokens=tokens, texts=len(texts))
        cost = _cost(vlm, passes, *measured, image_passes=2 if ability == "itm" else 1)
        note = parts.reading_note(vlm, med, "a long caption", texts)
        return {"ranked": sorted(rows, key=lambda row: -row[ability]), "cost": cost, "note": note}

    results = _results(teacher, student, rank, {"ranked": []})
    if len({row["itm"] is None for side in parts.SIDES for row in results[side]["ranked"]}) > 1:
        results["summary"] = "One model ranks by ITC alone, so the costs are not comparable."
    return results


def _results(teacher: str, student: str, compute: Callable[[VLM], dict], empty: dict) -> dict:
    """Results of both models and of the undistilled student; for a model that lacks the weights, an empty one with the
    reason."""
    vlms, results = models.pair(teacher, student), {}
    if alone := models.undistilled(student):
        vlms["undistilled"] = models.load(alone)
    for side, vlm in vlms.items():
        try:
            results[side] = {"note": "", **compute(vlm)}
        except MissingAbility as unable:
            results[side] = {**empty, "cost": None, "note": str(unable)}
    costs = [results[side]["cost"] for side in parts.SIDES]
    return {**results, "summary": parts.savings(*costs) if all(costs) else ""}


def _timed(
    vlm: VLM, ability: str, image: Image.Image, compute: Callable[[object, list], object], optimized: bool
) -> tuple:
    """Result of `compute(model, [image])`, its milliseconds, and the number of decoder steps. The image is resized
    before, unless each of several models, or a CLIP, has its own way.

    optimized: whether what `models.fastest` gives has what `compute` calls.
    """
    model, med = models.fastest(vlm) if optimized else vlm, vlm.med.model_for(ability)
    if not med.stock and len(vlm.med.members) == 1:  # others resize for themselves
        image = resize_square(image, med.config.image_size)
    before, start = model.steps, time.perf_counter()
    result = compute(model, [image])
    return result, 1000 * (time.perf_counter() - start), model.steps - before


def _cost(vlm: VLM, passes: dict[str, Macs], ms: float, steps: int, image_passes: int = 1) -> parts.Cost:
    """passes: as `task_macs` counts them. image_passes: how often the image is encoded."""
    passes["image"] *= image_passes
    return parts.Cost(
        ms=ms,
        tokens_per_s=1000 * steps / ms if steps else None,
        params_m=sum(needed_params(vlm.med).values()) / 1e6,
        flops_g=sum(macs.flops for macs in passes.values()) / 1e9,
    )


HINTS = {
    "scenes": "The photo models know only photographs, not drawn scenes.",
    "photos": "The models of scenes know only the drawn scenes: in any other image they see one of those.",
}
"""Kind of images -> what to say of a shipped model that does not know it."""
FEW_PHOTOGRAPHS = (
    "The photo models learned mostly from people and dogs; their captions of other photographs are mostly wrong."
)
MARKS = "Underlined words differ from the teacher’s; an empty mark stands where the teacher has more words."


def out_of_domain_hint(image: Image.Image, names: tuple[str, str]) -> str:
    """A hint if a built-in model is shown a kind of image that it never saw, or a photograph; else empty."""
    kind = images.kind(image)
    if models.out_of_domain(kind, names):
        return parts.hint(HINTS[kind])
    return parts.hint(FEW_PHOTOGRAPHS) if kind == "photos" and {*names} & {*built_in_models("photos")} else ""


def show_captions(results: Captions, names: tuple[str, str]) -> str:
    """All captions, with the words that differ marked."""
    return _cards("captions.html", {**results, "summary": f"{results['summary']} {MARKS}"}, names)


def show_answers(results: Answers, names: tuple[str, str]) -> str:
    """All answers, each with its alternatives above 0.1%; a different answer is marked."""
    return _cards("answers.html", results, names)


def show_rankings(results: Rankings, names: tuple[str, str]) -> str:
    """All rankings as tables."""
    return _cards("rankings.html", results, names)


def _cards(template: str, results: dict, names: tuple[str, str]) -> str:
    teacher, *students = (results[side] for side in parts.CARDS if side in results)
    cards = [{**side, "other": teacher} for side in (teacher, *students)]  # so that no word of the teacher is marked
    return parts.pair(template, [*names, models.undistilled(names[1])], cards, results["summary"])


def tab(image: gr.Image, names: tuple[gr.Dropdown, gr.Dropdown], subject: gr.Textbox) -> list[gr.Textbox]:
    """Return the question and the captions to rank, which an example fills in."""
    first, row = images.examples()[0], dict(scale=3, min_width=240)
    with gr.Row(elem_classes="ask"):
        method = gr.Radio(list(get_args(Method)), value="beam", label="Decoding", **row)
        with gr.Accordion("Beams, length and seed", open=False, elem_classes="settings"), gr.Row():
            beams = gr.Slider(*BEAMS, DEFAULTS["beams"], step=1, label="Beams", info="of beam search")
            top_p = gr.Slider(*TOP_P, 0.9, step=0.05, label="Top p", info="of nucleus sampling")
            length = gr.Slider(*LENGTH, DEFAULTS["length"], step=1, label="Length", info="tokens at most")
            seed = gr.Number(0, precision=0, minimum=0, maximum=MAX_SEED, label="Seed", info="of nucleus sampling")
        caption = parts.action("Caption", "caption-button")
    captioned = gr.HTML(elem_id="captions")
    with gr.Row(elem_classes="ask"):
        question = gr.Textbox(first.question, label="Question", max_lines=1, elem_id="question", **row)
        answer = parts.action("Answer", "answer")
    answered = gr.HTML(elem_id="answers")
    with gr.Row(elem_classes="ask"):
        text = "\n".join(first.captions)
        places = dict(placeholder="one per line", lines=2, max_lines=2)
        candidates = gr.Textbox(text, label="Captions", elem_id="candidates", **places, **row)
        rank = parts.action("Rank", "rank")
    ranked = gr.HTML(elem_id="rankings")

    asked, decoding = [image, *names], [method, beams, top_p, length, seed]
    offer(captions, show_captions, [subject.change, caption.click, method.input], [*asked, *decoding], captioned)
    offer(answers, show_answers, [subject.change, answer.click, question.submit], [*asked, question], answered)
    offer(rankings, show_rankings, [subject.change, rank.click], [*asked, candidates], ranked)
    return [question, candidates]
