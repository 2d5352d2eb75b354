"""Attributions: which pixels a word, or the match of a text, depends on, by Captum and Grad-CAM."""

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dlip.evaluation.attribution import METHODS, Score
from dlip.evaluation.tasks.base import subrange
from dlip.vlm import VLM

from .. import images, models
from ..endpoints import Text, Words, checked
from ..view import attention_view, parts

HINT = parts.hint(
    "Choose a word of a caption and press Explain: which pixels raise the word’s probability? "
    "For a word of a question or an answer, pixels that raise the match of that text and the image are shown."
)


@checked
def attribution(
    image: images.Upload,
    teacher: Text,
    student: Text,
    text: Words,
    word: Annotated[int, Field(ge=-1)] | None,
    method: Literal[*METHODS],
    progress: models.Progress | None = None,
) -> attention_view.Maps:
    """Pixels that raise (above 0) or lower a score of both models, and how far the two maps differ.

    The score: the log-probability that the decoder writes `word`, an index in the text's words from 0, after the words
    before it; for word -1, or null, the log-odds that the whole text matches the image. method: integrated gradients,
    occlusion or Grad-CAM.
    """
    index = None if word == -1 else word
    about = text if index is None else attention_view.word_at(index, text)

    def explain(side: str, vlm: VLM) -> Tensor:
        start = 0.5 * (side == "student")
        grid = METHODS[method](Score(vlm, text, index), image, progress=subrange(step, start, start + 0.5))
        return F.pad(grid.flatten(), (1, 0))

    with models.in_turns(progress) as step:
        pair = models.pair(teacher, student)
        maps, scene = attention_view.for_each_model(pair, explain), attention_view.scene_of(image)
        named = None if index is None else attention_view.named_object(index, text, scene)
        return attention_view.compare_maps(about, method, models.names(pair), maps, scene, named)
