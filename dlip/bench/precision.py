"""The shipped student in fp32, bf16 and int8: its scores on the scenes test split, and how long a caption takes."""

import copy
import tempfile
from functools import reduce
from pathlib import Path

import torch

from dlip.bench import by_turns, row
from dlip.checkpoints import save_model
from dlip.data.scenes import Scenes
from dlip.latency import Workload
from dlip.precision import PRECISIONS, lower
from dlip.schema import SCORES
from dlip.tasks import evaluate
from dlip.vlm import VLM

MODEL = "scenes/student"


def run(rounds: int = 50, pictures: int = 1000) -> tuple[dict, list[dict]]:
    """Of `pictures` of the test split; captions of batch 1, 3 beams, 20 tokens; mb: of the weights on the disk.

    kept: the least of TR@1, IR@1, CIDEr and VQA, in % of fp32's.
    """
    scenes, whole, rows = Scenes("test", size=pictures), VLM.load(MODEL), []
    models = {name: VLM(lower(copy.deepcopy(whole.med), name), whole.tokenizer, name) for name in PRECISIONS}
    times = by_turns({name: Workload(vlm, "captioning") for name, vlm in models.items()}, rounds)
    scores = {name: _scores(vlm, scenes) for name, vlm in models.items()}
    for name, vlm in models.items():
        kept = min(100 * score / scores["fp32"][task] for task, score in scores[name].items())
        ms = [1000 * seconds for seconds in times[name]]
        figures = {task: round(score, 2) for task, score in scores[name].items()}
        first = [1000 * seconds for seconds in times["fp32"]]
        rows.append(row(name, ms, first, "ms", **figures, kept=round(kept, 2), mb=_megabytes(vlm)))
    return {"model": MODEL, "pictures": pictures, "rounds": rounds, "threads": torch.get_num_threads()}, rows


def _scores(vlm: VLM, scenes: Scenes) -> dict[str, float]:
    found = {"metrics": evaluate(vlm, scenes, progress=False)}
    return {name: reduce(dict.get, SCORES[name], found) for name in ("tr1", "ir1", "cider", "vqa")}


def _megabytes(vlm: VLM) -> float:
    with tempfile.TemporaryDirectory() as place:
        save_model(vlm.med, vlm.tokenizer, place)
        return round((Path(place) / "model.safetensors").stat().st_size / 1e6, 3)
