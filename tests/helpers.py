"""What tests of several packages share."""

import asyncio
import signal
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from dlip.data.batch import Batch
from dlip.data.dataset import Examples
from dlip.models.med import Med
from dlip.records.migration import NEW_OPTIONS
from dlip.records.write import new_record

ROOT = Path(__file__).parents[1]
TINY_BACKBONE = "scenes-student:image_backbone=tf_efficientnet_lite0,image_size=72,image_layers=1,text_layers=1"
"""A small size with an image backbone."""


class ListDataset(Examples):
    """A data set of these examples."""

    def __init__(self, examples=(), name: str = "mine", split: str = "test"):
        super().__init__(examples, name, split)


ONE_PAIR = {"tr": [{"rank": 0}], "ir": [{"rank": 0, "joint_rank": 0, "image": 0}], "captioning": [], "vqa": []}
"""Items of an evaluation of one image and one caption, for outcomes of joint ranks."""


def make_record(
    name="student", role="distilled", *, seed=0, data="scenes", images=4000, width=64, params=1.0, latency=20.0,
    tr1=70.0, vqa=80.0, retrieval=None, losses=None, weights=None, samples=(), command="dlip train", notes=None,
    items=None, evaluations=None,
) -> dict:  # fmt: skip
    """A made-up record."""
    sizes = {"image_width": width, "image_layers": 4, "text_width": width, "text_layers": 3, "fusion_layers": (1, 2)}
    metrics = {
        "model": name, "data": data, "split": "test", "notes": notes or {},
        "retrieval": retrieval or {"tr@1": tr1, "ir@1": tr1 - 2},
        "captioning": {"cider": 1.5 * tr1, "spice": None, "facts_f1": tr1},
        "vqa": None if vqa is None else {
            "accuracy": vqa, "mean_by_type": vqa, "by_type": {"count": vqa - 20, "color": vqa + 20}
        },
        "efficiency": {"params_m": params, "flops_g": params / 10, "latency": {
            "task": "captioning", "batch": 1, "beams": 3, "tokens": 20, "threads": 2, "device": "cpu",
            "p50_ms": latency, "p95_ms": latency + 1, "share": 2 * latency,
        }},
    }  # fmt: skip
    return new_record(
        name, role, command=command, seed=seed, train_images=images, metrics=metrics, wall_s=60.0, samples=samples,
        items=items, evaluations=evaluations,
        losses=losses or {"step": [1, 2], "lm": [2.0, 1.0]},
        config={
            "model": NEW_OPTIONS["model"] | sizes,
            "train": NEW_OPTIONS["train"] | {"seed": seed, "weights": weights or {"lm": 1.0}},
        },
    )  # fmt: skip


def make_evaluations(steps: list[int], teacher: dict[str, float] | None = None, images=100, **scores) -> dict:
    """Made-up evaluations during training, as a record keeps them. scores: column -> values."""
    return {
        "data": "scenes", "split": "val", "images": images, "scores": {"step": steps, **scores},
        "teacher": teacher or {},
    }  # fmt: skip


SMALL_CONFIG = dict(
    image_size=16, patch_size=8, image_width=16, image_heads=2, image_layers=2, text_width=16, text_heads=4,
    text_layers=2, embed_dim=8, vocab_size=40, max_positions=32, max_text=12, cls_id=2, sep_id=3, dec_id=5, enc_id=6,
)  # fmt: skip


def randomize_weights(med: Med, seed: int, spread: float = 0.2) -> Med:
    """Move all weights far from their initial values, so that differences are not lost in small numbers.

    The result does not depend on torch's own initialization, which changes between releases.
    """
    torch.manual_seed(seed)
    for name, parameter in med.named_parameters():
        if name != "temp":
            center = parameter.data if parameter.dim() < 2 else 0  # ones and zeros
            parameter.data = center + spread * torch.randn_like(parameter)
    return med


@torch.no_grad()
def shaken(model: torch.nn.Module, spread: float = 0.1) -> torch.nn.Module:
    """The model, with normal noise from torch's generator added to every parameter."""
    for parameter in model.parameters():
        parameter.add_(spread * torch.randn_like(parameter))
    return model


def random_texts(n: int, length: int, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both [n, length]: `first`, random tokens, [SEP], padding. The first text is the longest, the
    second has one token."""
    ends = torch.randint(2, length, (n, 1))
    ends[0], ends[1] = length - 1, 2
    at = torch.arange(length)
    ids = torch.randint(7, 40, (n, length)).masked_fill(at == ends, 3).masked_fill(at > ends, 0)
    ids[:, 0] = first
    return ids, at <= ends


def reuse_graphs(folder: Path) -> Callable:
    """A replacement of `dlip.export.onnx_export.trace`, which takes long: writes the graphs of an earlier export."""
    import onnx

    from dlip.export import onnx_export

    def trace(graph, path: Path) -> None:
        (name,) = (name for name, of in onnx_export.GRAPHS.items() if type(graph) is of)
        onnx.save(onnx.load(folder / f"{name}.onnx"), path)  # with its weights

    return trace


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims this size, without pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = b"\0\0\0\0IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + end


def differences(actual: Batch, expected: Batch) -> list[str]:
    """Names of the fields in which two batches differ."""
    pairs = {name: (getattr(actual, name), value) for name, value in vars(expected).items()}
    return [name for name, (a, b) in pairs.items() if not (torch.equal(a, b) if torch.is_tensor(b) else a == b)]


def reference_rank(scores: list[float], relevant: list[bool]) -> int:
    """Rank of the first relevant candidate after a stable sort by descending score; 0 is the best."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return [relevant[i] for i in order].index(True)


@contextmanager
def running_app(
    *arguments: str, stderr: Path | None = None, exit_code: int = 130
) -> Iterator[tuple[str, subprocess.Popen]]:
    """Address and process of `dlip app ARGUMENTS` on a free port; interrupted at the end, it has to exit so."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "dlip", "app", "--port", str(port), *arguments]
    # a background job of a shell ignores Ctrl-C, and its children inherit that
    accept_ctrl_c = dict(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    with (
        open(stderr, "w") if stderr else nullcontext() as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, **accept_ctrl_c) as app,
    ):
        try:
            assert app.stdout.readline().startswith(f"The app is at http://127.0.0.1:{port}/")
            yield f"http://127.0.0.1:{port}/", app
            app.send_signal(signal.SIGINT)
            assert app.wait(30) == exit_code
        finally:
            app.kill()


def run_in_thread(coroutine: Coroutine) -> None:
    """Run a coroutine in a thread of its own, as this one may have a running event loop."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, coroutine).result()
