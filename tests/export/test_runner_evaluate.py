"""The evaluation of exported graphs equals that of the model."""

from dataclasses import replace

import pytest

from dlip.common.errors import UserError
from dlip.data.scenes.dataset import Scenes
from dlip.evaluation.evaluate import evaluate
from dlip.export.onnx_runner import Runner
from dlip.export.runner_evaluate import MeasuredRunner
from dlip.vlm import VLM
from tests.helpers import ListDataset


@pytest.mark.parametrize("options", [{}, {"k": 0}, {"k": 2, "generate_limit": 3}])
def test_equals_the_models_evaluation(options, exported_student):
    """The last images have no captions, the first no questions."""
    scenes = Scenes("test", size=12)
    data = ListDataset(replace(scenes[i], **{"questions" if i < 4 else "captions": []}) for i in range(12))
    vlm = VLM.load("scenes/student")
    runner = MeasuredRunner(Runner(exported_student), vlm.name)
    expected, actual = (evaluate(model, data, batch_size=4, progress=False, **options) for model in (vlm, runner))
    assert actual == expected


def test_the_decoder_cannot_rank(exported_student):
    with pytest.raises(UserError, match="decoder"):
        evaluate(MeasuredRunner(Runner(exported_student), "student"), Scenes("test", size=1), rerank="decoder")
