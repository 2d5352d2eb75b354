"""A million captions and 100,000 pictures: packed, indexed, searched (first stage) and learnt from, in flat memory.

The pictures are generated scenes, ten captions each; every stage is a process of its own, whose memory is told.
"""

import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import torch

import dlip
from dlip import data
from dlip.cost.memory import peak_bytes, resident_mb
from dlip.data.scenes.dataset import Scenes
from dlip.data.shards.write import write_shards
from dlip.experiments.run import new_student
from dlip.training.config import TrainConfig
from dlip.training.loop import train
from dlip.vlm import VLM

CAPTIONS = 10
STEPS, FLAT_MB = 600, 150
"""Of training, and what memory may grow by in its second half."""
GB = {"pack": 2.0, "index": 2.0, "search": 6.0}
"""Most memory of a stage."""


class Twice:
    """Scenes with twice their captions."""

    def __init__(self, pictures: int):
        self.scenes, self.split = Scenes("train-large", size=pictures), "train"

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, i: int):
        item = self.scenes[i]
        item.captions = item.captions + [f"{caption} ." for caption in item.captions]
        return item


def run(times: int = 100_000) -> tuple[dict, dict, list[str]]:
    """Settings, seconds and memory of each stage, and what was wrong. times: pictures."""
    counts, faults = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for stage in (pack, index, search, learn):
            with get_context("spawn").Pool(1) as pool:
                began = time.perf_counter()
                found = pool.apply(stage, (folder, times, torch.get_num_threads()))
                counts[stage.__name__] = {"s": round(time.perf_counter() - began, 1), **found}
    for stage, most in GB.items():
        faults += [f"{stage} took {counts[stage]['peak_gb']} GB"] * (counts[stage]["peak_gb"] > most)
    faults += [f"training's memory grew by {counts['learn']['grown_mb']} MB"] * (counts["learn"]["grown_mb"] > FLAT_MB)
    wanted = {"images": times, "captions": CAPTIONS * times}
    faults += [f"{found} were indexed"] * ((found := counts["index"].pop("counts")) != wanted)
    return {"pictures": times, "captions": CAPTIONS * times, "steps": STEPS}, counts, faults


def pack(folder: str, pictures: int, threads: int) -> dict:
    write_shards(Path(folder) / "shards", {"train": Twice(pictures)}, 5000)
    return peak()


def index(folder: str, pictures: int, threads: int) -> dict:
    found = data.open(f"{folder}/shards", "train").counts()
    return {"counts": {noun: found[noun] for noun in ("images", "captions")}, **peak()}


def search(folder: str, pictures: int, threads: int) -> dict:
    torch.set_num_threads(threads)
    shards = data.open(f"{folder}/shards", "train")
    found = dlip.evaluate(dlip.load("scenes/student"), shards, tasks=("retrieval",), k=0, progress=False)["retrieval"]
    return {name: found[name] for name in ("itc_tr@10", "itc_ir@10")} | peak()


def learn(folder: str, pictures: int, threads: int) -> dict:
    torch.set_num_threads(threads)
    teacher = VLM.load("scenes/teacher")
    config = TrainConfig(steps=STEPS, batch_size=32, warmup=10, save_every=STEPS // 6, workers=0)
    shards, seen = data.open(f"{folder}/shards", "train"), []

    class Watched:
        """The shards, and how much memory there was at each picture."""

        def __getattr__(self, name: str):
            return getattr(shards, name)

        def __len__(self) -> int:
            return len(shards)

        def __getitem__(self, i: int):
            seen.append(resident_mb())
            return shards[i]

    train(new_student("scenes-student", teacher, 0), Watched(), config, Path(folder) / "run", progress=False)
    half = seen[len(seen) // 2 :]
    return {"grown_mb": round(max(half) - half[0]), **peak()}


def peak() -> dict:
    return {"peak_gb": round(peak_bytes(torch.device("cpu")) / 1e9, 2)}
