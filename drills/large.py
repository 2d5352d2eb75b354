"""Packs, indexes, searches (ITC only) and trains on 100,000 scenes with a million captions, in flat memory.

Each stage runs in a process of its own, so that its peak memory is known.
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
TRAIN_STEPS = 600
MAX_GROWTH_MB = 150
"""Growth of memory in the second half of training."""
MAX_GB = {"pack": 2.0, "index": 2.0, "search": 6.0}
"""Peak memory of a stage."""


class DoubledCaptions:
    """Scenes with each caption a second time, slightly changed."""

    def __init__(self, size: int):
        self.scenes, self.split = Scenes("train-large", size=size), "train"

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, i: int):
        item = self.scenes[i]
        item.captions = item.captions + [f"{caption} ." for caption in item.captions]
        return item


class MemoryProbe:
    """A data set that notes the process's memory in MB at each read."""

    def __init__(self, dataset):
        self.dataset, self.mb = dataset, []

    def __getattr__(self, name: str):
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int):
        self.mb.append(resident_mb())
        return self.dataset[i]


def run(times: int = 100_000) -> tuple[dict, dict, list[str]]:
    """Return settings, seconds and memory of each stage, and faults. times: number of images."""
    counts, faults = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for stage in (pack, index, search, learn):
            with get_context("spawn").Pool(1) as pool:
                start = time.perf_counter()
                figures = pool.apply(stage, (folder, times, torch.get_num_threads()))
                counts[stage.__name__] = {"s": round(time.perf_counter() - start, 1), **figures}
    for stage, limit in MAX_GB.items():
        if (gb := counts[stage]["peak_gb"]) > limit:
            faults.append(f"{stage} took {gb} GB, more than {limit}")
    if (mb := counts["learn"]["grown_mb"]) > MAX_GROWTH_MB:
        faults.append(f"memory grew by {mb} MB in training, more than {MAX_GROWTH_MB}")
    size = {"images": times, "captions": CAPTIONS * times}
    if (indexed := counts["index"].pop("counts")) != size:
        faults.append(f"{indexed} were indexed, not {size}")
    return {**size, "steps": TRAIN_STEPS}, counts, faults


def pack(folder: str, images: int, threads: int) -> dict:
    write_shards(Path(folder) / "shards", {"train": DoubledCaptions(images)}, 5000)
    return peak_memory()


def index(folder: str, images: int, threads: int) -> dict:
    counts = data.open(f"{folder}/shards", "train").counts()
    return {"counts": {noun: counts[noun] for noun in ("images", "captions")}, **peak_memory()}


def search(folder: str, images: int, threads: int) -> dict:
    torch.set_num_threads(threads)
    shards = data.open(f"{folder}/shards", "train")
    metrics = dlip.evaluate(dlip.load("scenes/student"), shards, tasks=("retrieval",), k=0, progress=False)
    return {name: metrics["retrieval"][name] for name in ("itc_tr@10", "itc_ir@10")} | peak_memory()


def learn(folder: str, images: int, threads: int) -> dict:
    torch.set_num_threads(threads)
    config = TrainConfig(steps=TRAIN_STEPS, batch_size=32, warmup=10, save_every=TRAIN_STEPS // 6, workers=0)
    shards = MemoryProbe(data.open(f"{folder}/shards", "train"))
    student = new_student("scenes-student", VLM.load("scenes/teacher"), 0)
    train(student, shards, config, Path(folder) / "run", progress=False)
    second_half = shards.mb[len(shards.mb) // 2 :]
    return {"grown_mb": round(max(second_half) - second_half[0]), **peak_memory()}


def peak_memory() -> dict:
    return {"peak_gb": round(peak_bytes(torch.device("cpu")) / 1e9, 2)}
