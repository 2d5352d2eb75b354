"""The evaluation of a runner equals that of the model, whatever the data and the model lack."""

from dataclasses import replace

import numpy as np
import pytest

from dlip.common.errors import UserError
from dlip.data.dataset import FirstN
from dlip.data.scenes.dataset import Scenes
from dlip.evaluation.tasks import evaluate
from dlip.export.runner_evaluate import EVALUATORS
from dlip.vlm import VLM


class Served:
    """A runner whose graphs are the model itself."""

    evaluators = EVALUATORS

    def __init__(self, vlm: VLM):
        self.vlm, self.name, self.abilities = vlm, vlm.name, vlm.med.abilities
        self.config = {"max_text": vlm.med.config.max_text}
        self.caption, self.temperature = vlm.caption, vlm.med.temp.item()

    def embed_images(self, images):
        return self.vlm.embed_images(images).numpy()

    def embed_texts(self, texts):
        return self.vlm.embed_texts(texts).numpy()

    def answer(self, images, questions, num_beams):
        return self.vlm.answer(images * len(questions), questions, num_beams)

    def match_logits(self, images, texts):
        p = np.array(self.vlm.match(images * len(texts), texts).tolist())
        return np.stack([np.zeros(len(p)), np.log(p / (1 - p))], 1)


class Partly(FirstN):
    """The last images have no captions, the first no questions."""

    def __getitem__(self, i):
        item = super().__getitem__(i)
        return replace(item, questions=[]) if i < 4 else replace(item, captions=[])

    def without_image(self, i):
        return replace(self[i], image=None)


@pytest.fixture
def vlm() -> VLM:
    return VLM.load("scenes/student")


@pytest.mark.parametrize("options", [{}, {"k": 0}, {"k": 2, "generate_limit": 3}])
def test_equals_the_models_evaluation(options, vlm):
    data = Partly(Scenes("test", size=12), 12)
    expected, actual = (
        evaluate(model, data, batch_size=4, return_items=True, progress=False, **options)
        for model in (vlm, Served(vlm))
    )
    assert actual == expected


def test_without_itm_retrieval_is_by_itc(vlm):
    vlm.med.abilities = frozenset({"itc"})
    data = Scenes("test", size=4)
    expected, actual = (evaluate(model, data, tasks=("retrieval",), progress=False) for model in (vlm, Served(vlm)))
    assert actual == expected and "not trained with ITM" in actual["notes"]["retrieval.tr@1"]


def test_answers_cannot_be_ranked(vlm):
    with pytest.raises(UserError, match="cannot rank answers"):
        evaluate(Served(vlm), Scenes("test", size=1), answers=["yes"], progress=False)
