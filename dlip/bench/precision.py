"""The shipped student in fp32, bf16 and int8, in torch and in onnxruntime: its scores, and how long a caption takes."""

import copy
import shutil
import tempfile
from functools import partial, reduce
from itertools import cycle
from pathlib import Path

import torch

from dlip.bench import by_turns, row
from dlip.checkpoints.load import save_model
from dlip.data.scenes.dataset import Scenes
from dlip.evaluation.tasks import evaluate
from dlip.export import onnx_evaluate
from dlip.export.onnx_export import quantize, to_onnx
from dlip.export.onnx_runner import Runner
from dlip.models.fast.precision import PRECISIONS, lower
from dlip.records.schema import SCORES
from dlip.vlm import VLM

MODEL = "scenes/student"


def run(rounds: int = 100, pictures: int = 1000) -> tuple[dict, list[dict]]:
    """Of `pictures` of the test split. ms: from one picture to its caption, of 3 beams, another picture each round; mb:
    of the weights on the disk; kept: the least of TR@1, IR@1, CIDEr and VQA, in % of fp32's.
    """
    threads, scenes, whole = torch.get_num_threads(), Scenes("test", size=pictures), VLM.load(MODEL)
    with tempfile.TemporaryDirectory() as place:
        models, mb = {}, {}
        for name in PRECISIONS:
            models[name] = VLM(lower(copy.deepcopy(whole.med), name), whole.tokenizer, name)
            save_model(models[name].med, whole.tokenizer, Path(place) / name)
            mb[name] = _megabytes(Path(place) / name / "model.safetensors")
        for name, folder in written(MODEL, Path(place)).items():
            models[name], mb[name] = Runner(folder, threads), _megabytes(folder / "weights.bin")
        images = [scenes[i].image for i in range(pictures)]
        times = by_turns({name: partial(_caption, model, cycle(images)) for name, model in models.items()}, rounds)
        scores, rows = {name: _scores(model, scenes) for name, model in models.items()}, []
    for name in models:
        kept = min(100 * score / scores["fp32"][task] for task, score in scores[name].items())
        ms, first = ([1000 * seconds for seconds in times[who]] for who in (name, "fp32"))
        figures = {task: round(score, 2) for task, score in scores[name].items()}
        rows.append(row(name, ms, first, "ms", **figures, kept=round(kept, 2), mb=mb[name]))
    return {"model": MODEL, "pictures": pictures, "rounds": rounds, "threads": threads}, rows


def written(name: str, place: Path) -> dict[str, Path]:
    """The folders of a model's graphs in fp32 and in int8, of which the latter are made from the former."""
    folder = to_onnx(name, place)[0]["onnx"]
    quantize(small := Path(shutil.copytree(folder, place / "onnx-int8")))
    return {"onnx": folder, "onnx-int8": small}


def _caption(model: VLM | Runner, images) -> None:
    model.caption([next(images)])


def _scores(model: VLM | Runner, scenes: Scenes) -> dict[str, float]:
    found = (
        onnx_evaluate.evaluate(model, scenes) if isinstance(model, Runner) else evaluate(model, scenes, progress=False)
    )
    return {name: reduce(dict.get, SCORES[name], {"metrics": found}) for name in ("tr1", "ir1", "cider", "vqa")}


def _megabytes(path: Path) -> float:
    return round(path.stat().st_size / 1e6, 3)
