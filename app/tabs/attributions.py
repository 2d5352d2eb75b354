"""Attributions: which pixels a word, or the match of a text, depends on, by Captum and Grad-CAM."""

import gradio as gr
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dlip.common.errors import UserError
from dlip.evaluation.attribution import METHODS, Score
from dlip.evaluation.tasks.base import subrange
from dlip.vlm import VLM

from .. import images, inputs, jobs, models
from ..view import attention_view, parts

HINT = parts.hint(
    "Choose a word of a caption and press Explain: which pixels raise the word’s probability? "
    "For a word of a question or an answer, pixels that raise the match of that text and the image are shown."
)


@inputs.checked
def attribution(
    image: str | Image.Image, teacher: str, student: str, text: str, word: int | None, method: str,
    progress: jobs.Progress | None = None,
) -> attention_view.Maps:  # fmt: skip
    """Pixels that raise (above 0) or lower a score of both models, and how far the two maps differ.

    The score: the log-probability that the decoder writes `word`, an index in the text's words from 0, after the words
    before it; for word -1, or null, the log-odds that the whole text matches the image. method: integrated gradients,
    occlusion or Grad-CAM.
    """
    if method not in METHODS:
        raise UserError(f"there is no method {method!r}; choose {', '.join(METHODS)}")
    loaded, text = images.read(image), inputs.text(text, "text")
    index = None if word is None else inputs.integer(word, "word", -1, inputs.MAX_CHARACTERS)
    index = None if index == -1 else index
    about = text if index is None else attention_view.word_at(index, text)

    def explain(side: str, vlm: VLM) -> Tensor:
        start = 0.5 * (side == "student")
        grid = METHODS[method](Score(vlm, text, index), loaded, progress=subrange(step, start, start + 0.5))
        return F.pad(grid.flatten(), (1, 0))

    with jobs.turns(progress) as step:
        pair = models.pair(teacher, student)
        maps, scene = attention_view.for_each_model(pair, explain), attention_view.scene_of(loaded)
        named = None if index is None else attention_view.named_object(index, text, scene)
        return attention_view.compare_maps(about, method, models.names(pair), maps, scene, named)


def add_events(models_and_image, texts, chosen, view, outline, explain, stop, outputs, redrawn_by) -> None:
    """Let the button `explain` fill `outputs`, maps and their HTML; `stop` and the events `redrawn_by` cancel it."""

    def explain_word(image, teacher, student, texts, chosen, method, outline, bar=gr.Progress()):  # noqa: B008
        if not texts or not chosen:
            raise UserError("there is no word to explain; upload an image, and choose one of its words")
        text = texts[chosen["text"]]
        word = chosen["word"] if text["kind"] == "caption" else None
        step = jobs.stoppable(lambda share: bar(share, desc=method.capitalize()))
        step(0.0)
        image = images.read(image)
        maps = attribution(image, teacher, student, text["text"], word, method, step)
        return maps, attention_view.show(maps, image, outline)

    arguments = [*models_and_image, texts, chosen, view]
    jobs.on_start(
        explain, stop, explain_word, [*arguments, outline], outputs, cancel_on=arguments, cancel_events=redrawn_by,
        show_progress_on=outputs[1],
    )  # fmt: skip
