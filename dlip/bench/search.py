"""First stage of retrieval (ITC) on random embeddings: time and memory up to the size of COCO's test split."""

import time
from multiprocessing import get_context
from statistics import median

import torch

from dlip.bench import row
from dlip.cost.memory import peak_bytes
from dlip.evaluation.tasks.ranking import nearest

WIDTH, IMAGES, CAPTIONS, K = 256, 5000, 5, 128
SHARES = (8, 4, 2, 1)


def run(rounds: int = 3) -> tuple[dict, list[dict]]:
    """Both directions, 5 captions per image, 128 candidates per query, each size in a process of its own.

    growth_gb: peak memory beyond that of the embeddings, on Linux. pairs_per_s: image-caption pairs per second,
    counted in each direction. ratio: pairs per second relative to the smallest size; 1 if time is linear in the
    number of pairs.
    """
    measured = []
    for share in SHARES:
        with get_context("spawn").Pool(1) as pool:
            measured.append(pool.apply(_measure, (IMAGES // share, rounds, torch.get_num_threads())))
    rows = [
        row(f"{images:,} x {CAPTIONS * images:,}", speeds, measured[0][1], "pairs_per_s",
            s=round(2 * CAPTIONS * images**2 / median(speeds), 3), growth_gb=grown and round(grown / 1e9, 3))
        for images, speeds, grown in measured
    ]  # fmt: skip
    settings = {"width": WIDTH, "candidates": K, "rounds": rounds, "threads": torch.get_num_threads()}
    return settings, rows


@torch.inference_mode()
def _measure(count: int, rounds: int, threads: int) -> tuple[int, list[float], int | None]:
    torch.set_num_threads(threads)
    images, texts = torch.randn(count, WIDTH), torch.randn(CAPTIONS * count, WIDTH)
    image_of, text_of = torch.arange(count), torch.arange(CAPTIONS * count) // CAPTIONS
    before, speeds = peak_bytes(torch.device("cpu")), []
    for _ in range(rounds):
        start = time.perf_counter()
        nearest(images, texts, image_of, text_of, K)
        nearest(texts, images, text_of, image_of, K)
        speeds.append(2 * len(images) * len(texts) / (time.perf_counter() - start))
    return count, speeds, None if before is None else peak_bytes(torch.device("cpu")) - before
