"""Helpers that several test modules share."""

import asyncio
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import torch
from accelerate import Accelerator
from PIL import Image

import dlip
from app.served import served
from dlip.data.scenes.dataset import Scenes
from dlip.experiments.ablation import identity
from dlip.experiments.grids import FULL, GRIDS, WHOLE, Row
from dlip.models.med import Med
from dlip.records.write import new_record
from dlip.training.config import TrainConfig

ROOT = Path(__file__).parents[1]


def make_record(
    name="student", role="distilled", *, seed=0, data="scenes", pictures=4000, width=64, params=1.0, latency=20.0,
    tr1=70.0, vqa=80.0, retrieval=None, losses=None, weights=None, samples=(), command="dlip train", notes=None,
    items=None,
) -> dict:  # fmt: skip
    """A record of a run that never was."""
    sizes = {"image_width": width, "image_layers": 4, "text_width": width, "text_layers": 3, "fusion_layers": (1, 2)}
    metrics = {
        "model": name, "data": data, "split": "test", "notes": notes or {},
        "retrieval": retrieval or {"tr@1": tr1, "ir@1": tr1 - 2},
        "captioning": {"cider": 1.5 * tr1, "spice": None},
        "vqa": None if vqa is None else {"accuracy": vqa, "by_type": {"count": vqa - 20}},
        "efficiency": {"params_m": params, "flops_g": params / 10, "latency": {
            "task": "captioning", "batch": 1, "beams": 3, "tokens": 20, "threads": 2, "device": "cpu",
            "p50_ms": latency, "p95_ms": latency + 1, "share": 2 * latency,
        }},
    }  # fmt: skip
    return new_record(
        name, role, command=command, seed=seed, train_images=pictures, metrics=metrics, wall_s=60.0, samples=samples,
        items=items,
        losses=losses or {"step": [1, 2], "lm": [2.0, 1.0]},
        config={"model": sizes, "train": {"seed": seed, "weights": weights or {"lm": 1.0}}},
    )  # fmt: skip


SMALL = dict(
    image_size=16, patch_size=8, image_width=16, image_heads=2, image_layers=2, text_width=16, text_heads=4,
    text_layers=2, embed_dim=8, vocab_size=40, max_positions=32, max_text=12, cls_id=2, sep_id=3, dec_id=5, enc_id=6,
)  # fmt: skip


def scattered(med: Med, seed: int, spread: float = 0.2) -> Med:
    """The model, its weights far from the start, so that no difference hides in small numbers: the same in every
    release of torch, whose ways to initialise differ."""
    torch.manual_seed(seed)
    for name, parameter in med.named_parameters():
        if name != "temp":
            first = parameter.data if parameter.dim() < 2 else 0  # ones and zeros
            parameter.data = first + spread * torch.randn_like(parameter)
    return med


def random_texts(n: int, length: int, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and mask [n, length]: `first`, words, [SEP], pads; the first text is the longest, the second has one word."""
    ends = torch.randint(2, length, (n, 1))
    ends[0], ends[1] = length - 1, 2
    at = torch.arange(length)
    ids = torch.randint(7, 40, (n, length)).masked_fill(at == ends, 3).masked_fill(at > ends, 0)
    ids[:, 0] = first
    return ids, at <= ends


@contextmanager
def running_app(*words: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """The app started as `dlip app WORDS` in a process of its own, and where it listens: http://127.0.0.1:7860/."""
    with served(*words) as (address, app):
        yield address, app
    assert app.returncode == 130


def alone(asked) -> None:
    """In a thread of its own, as this one may have a loop that runs."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, asked).result()


def jpeg(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 10, 200)).save(out, "JPEG")
    return out.getvalue()


def write_tar(path: Path, members: dict[str, bytes | str | dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            content = json.dumps(content) if isinstance(content, dict) else content
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


TRAIN_SCENES = Scenes("train-small", size=24)


SHORT = TrainConfig(steps=6, batch_size=8, lr=1e-3, warmup=2, log_every=1, save_every=2)


class Interrupted:
    """A data set during whose `last` item the user presses Ctrl-C."""

    def __init__(self, dataset, last: int):
        self.dataset, self.left, self.name, self.split = dataset, last, dataset.name, dataset.split
        self.counts = dataset.counts

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return self.dataset[i]


def log(run) -> list[dict]:
    """The log without what depends on the clock."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in run.rows()]


def scaled(monkeypatch, scale: float, backoff: float) -> None:
    """accelerate has no fp16 on a CPU, so it is put in."""

    class Scaled(Accelerator):
        def __init__(self, **options):
            super().__init__(**options)
            self.native_amp = True
            self.scaler = torch.amp.GradScaler("cpu", scale, backoff_factor=backoff, growth_interval=2)

    monkeypatch.setattr("dlip.training.loop.Accelerator", Scaled)


def wait_for(page, where: str, wanted: list[str]) -> None:
    """Until both models' cards say what is wanted; "…" stands where one has none of the other's words."""
    page.wait_for_function(
        """([where, wanted]) => wanted === [...document.querySelectorAll(`#${where} .said`)]
            .map(e => e.innerText.replaceAll("…", "").split(/\\s+/).filter(Boolean).join(" ")).join("|")""",
        arg=[where, "|".join(wanted)],
    )


def write(field, text: str) -> None:
    """Types as a person does: a field that was just opened sets its first value a moment later, over what was typed."""
    field.wait_for()
    field.page.wait_for_timeout(1000)
    field.fill(text)
    field.page.wait_for_timeout(500)  # until the page has taken the text over
    assert field.input_value() == text


def slowed(page, way: str, *ms: int) -> None:
    """Requests of this way are made so many milliseconds later: the first one, the second one, and so on."""
    page.evaluate(
        """([way, ms]) => {
            const now = window.fetch
            window.fetch = async (...asked) => {
                if (String(asked[0]).includes(way)) await new Promise(done => setTimeout(done, ms.shift() ?? 0))
                return now(...asked)
            }
        }""",
        [way, ms],
    )


def captions(picture, *names, **options) -> list[str]:
    return [dlip.load(name).caption([picture], **{"max_new_tokens": 30, **options})[0] for name in names]


PICTURES, CAPTIONS, QUESTIONS = 400, 5, 6
TEACHER = {"tr1": 0.8, "ir1": 0.6, "cider": 200.0, "vqa": 0.7}


@cache
def luck(score: str) -> np.ndarray:
    """How hard each item is, the same for all who are measured on it."""
    items = {"ir1": CAPTIONS, "vqa": QUESTIONS}.get(score, 1) * PICTURES
    return np.random.default_rng(len(score)).permutation((np.arange(items) + 0.5) / items)


def made(row: Row, kept: float | dict[str, float], seed: int = 0) -> dict:
    """A record of a student that keeps this percent of the teacher's scores, of one alone where they are named."""
    kept = kept if isinstance(kept, dict) else dict.fromkeys(TEACHER, kept)
    share = {score: kept[score] / 100 * whole for score, whole in TEACHER.items()}
    hits = {score: luck(score) < share[score] for score in ("tr1", "ir1", "vqa")}
    cider = share["cider"] * (0.5 + luck("cider"))
    items = {
        "tr": [{"image_id": i, "rank": 0 if hit else 3} for i, hit in enumerate(hits["tr1"])],
        "ir": [{"image_id": i // CAPTIONS, "rank": 0 if hit else 3} for i, hit in enumerate(hits["ir1"])],
        "captioning": [{"image_id": i, "cider": value} for i, value in enumerate(cider)],
        "vqa": [{"image_id": i // QUESTIONS, "accuracy": float(hit)} for i, hit in enumerate(hits["vqa"])],
    }
    return make_record(row.name, row.role, seed=seed, items=items) | {"ablation": {"hash": identity(row, FULL)}}


def grid(name: str, levels: dict, spread: float = 0.1, seeds: int = 3) -> list[dict]:
    """The teacher and rows of a grid -> percent kept, with a spread over seeds that differs from row to row."""
    rng, found = np.random.default_rng(1), [made(WHOLE, 100.0)]
    for row in GRIDS[name].rows:
        if row.name in levels:
            noise = rng.permutation(np.linspace(-spread, spread, seeds))
            level = levels[row.name]
            for seed in range(seeds):
                kept = (
                    {k: v + noise[seed] for k, v in level.items()} if isinstance(level, dict) else level + noise[seed]
                )
                found.append(made(row, kept, seed))
    return found


def by_name(fig: go.Figure) -> dict[str, go.Scatter]:
    return {trace.name: trace for trace in fig.data}


def plain_rank(scores: list[float], own: list[bool]) -> int:
    """The place of the first own answer, as a stable sort puts them."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return [own[i] for i in order].index(True)
