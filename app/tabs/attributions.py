"""Attributions: which pixels a word, or the match of a question, comes from, by Captum and Grad-CAM."""

from collections.abc import Callable

import gradio as gr
import torch.nn.functional as F
from torch import Tensor

from dlip.common.errors import UserError
from dlip.evaluation.attribution import Score, grad_cam, integrated_gradients, occlusion
from dlip.evaluation.tasks.base import within
from dlip.vlm import VLM

from .. import images, inputs, jobs, models
from ..view import attention_view

GRADIENTS, OCCLUSION, CAM = METHODS = ("integrated gradients", "occlusion", "Grad-CAM")
_RUN: dict[str, Callable] = {GRADIENTS: integrated_gradients, OCCLUSION: occlusion, CAM: grad_cam}
ASK = (
    '<p class="hint">Choose a word of a caption and press Explain: which pixels raise the probability that it is said? '
    "Of a question’s words and of answers, those that raise the match of that text and the picture are shown.</p>"
)


@inputs.checked
def attribution(
    picture: str,
    teacher: str,
    student: str,
    text: str,
    word: int | None,
    method: str,
    progress: jobs.Progress | None = None,
) -> attention_view.Look:
    """Which pixels raise (above 0) or lower a score of both models, and how far the two maps differ.

    The score: the log-probability that the decoder says `word`, its place in the text's words from 0, after the words
    before it; of word -1, or null, the log-odds that the whole text matches the picture. method: integrated gradients,
    occlusion or Grad-CAM.
    """
    if method not in METHODS:
        raise UserError(f"there is no method {method!r}; choose {', '.join(METHODS)}")
    image, text = images.read(picture), inputs.text(text, "text")
    said = None if word is None else inputs.whole(word, "word", -1, inputs.LONGEST)
    said = None if said == -1 else said
    about = text if said is None else attention_view.spoken(said, text)

    def explained(who: str, vlm: VLM) -> Tensor:
        start = 0.5 * (who == "student")
        found = _RUN[method](Score(vlm, text, said), image, progress=within(step, start, start + 0.5))
        return F.pad(found.flatten(), (1, 0))

    with jobs.turns(progress) as step:
        pair = models.pair(teacher, student)
        maps, scene = attention_view.of_each(pair, explained), attention_view.scene_of(image)
        thing = None if said is None else attention_view.thing_of(said, text, scene)
        return attention_view.compare(about, method, models.names(pair), maps, scene, thing)


def events(asked, texts, chosen, view, outline, explain, cancel, seen) -> None:
    """What the buttons do: `explain` fills `seen`, a look and its HTML, `cancel` stops it."""

    def start(picture, teacher, student, texts, chosen, method, outline, bar=gr.Progress()):  # noqa: B008
        if not texts or not chosen:
            raise UserError("there is no word to explain; give a picture, and choose one of its words")
        text = texts[chosen["text"]]
        word = chosen["word"] if text["kind"] == "caption" else None
        report = lambda share: bar(share, desc=method.capitalize())  # noqa: E731
        step = jobs.stoppable(report)
        step(0.0)
        found = attribution(picture, teacher, student, text["text"], word, method, step)
        return found, attention_view.show(found, picture, outline)

    given = [*asked, texts, chosen, view, outline]
    jobs.started(explain, cancel, start, given, seen, voids=[*asked, texts, chosen, view], show_progress_on=seen[1])
