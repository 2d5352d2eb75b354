"""The first stage of retrieval on random vectors, up to COCO's size: its time and memory at growing sizes."""

import time
from multiprocessing import get_context
from statistics import median

import torch

from dlip.bench import row
from dlip.cost.memory import peak_bytes
from dlip.evaluation.tasks.ranking import nearest

WIDTH, PICTURES, CAPTIONS, K = 256, 5000, 5, 128
SHARES = (8, 4, 2, 1)


def run(rounds: int = 3) -> tuple[dict, list[dict]]:
    """Both directions, 5 captions a picture, 128 candidates a query, each size in a process of its own.

    growth_gb: how much more memory the process held at its most than with the vectors alone; pairs_per_s: pictures x
    captions, of each direction; ratio: of the pairs a second to those at the smallest size, 1 where time is linear.
    """
    found = []
    for share in SHARES:
        with get_context("spawn").Pool(1) as pool:
            found.append(pool.apply(_measure, (PICTURES // share, rounds, torch.get_num_threads())))
    rows = [
        row(f"{pictures:,} x {CAPTIONS * pictures:,}", speeds, found[0][1], "pairs_per_s",
            s=round(2 * CAPTIONS * pictures**2 / median(speeds), 3), growth_gb=round(grown / 1e9, 3))
        for pictures, speeds, grown in found
    ]  # fmt: skip
    settings = {"width": WIDTH, "candidates": K, "rounds": rounds, "threads": torch.get_num_threads()}
    return settings, rows


@torch.inference_mode()
def _measure(pictures: int, rounds: int, threads: int) -> tuple[int, list[float], int]:
    torch.set_num_threads(threads)
    images, texts = torch.randn(pictures, WIDTH), torch.randn(CAPTIONS * pictures, WIDTH)
    image_of, text_of = torch.arange(pictures), torch.arange(CAPTIONS * pictures) // CAPTIONS
    before, speeds = peak_bytes(torch.device("cpu")), []
    for _ in range(rounds):
        began = time.perf_counter()
        nearest(images, texts, image_of, text_of, K)
        nearest(texts, images, text_of, image_of, K)
        speeds.append(2 * len(images) * len(texts) / (time.perf_counter() - began))
    return pictures, speeds, peak_bytes(torch.device("cpu")) - before
