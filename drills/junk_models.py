"""Models whose files can be read and whose content is wrong: sizes, words, tensors that no model of theirs can have."""

import contextlib
import io
import json
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from dlip.checkpoints.load import BUILT_IN
from dlip.export.transformers import to_transformers
from drills import junk

SHIPPED = BUILT_IN / "scenes" / "student"
SIZES = (*junk.NUMBERS, [], [-1], [10**400], [True], ["a"], [[]], "", "8", None, {}, 2, 3, 7, 48, 127, 128, 129)
RULES = (
    ("normalizer", {"type": "Replace", "pattern": {"Regex": "."}, "content": "a" * 50_000}),
    ("normalizer", {"type": "Prepend", "prepend": "a " * 100_000}),
    ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a*)*b"}, "behavior": "Isolated", "invert": False}),
    ("decoder", {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 100_000}),
    ("normalizer", None), ("pre_tokenizer", None), ("decoder", None), ("post_processor", None),
    ("truncation", {"direction": "Left", "max_length": 1, "strategy": "LongestFirst", "stride": 0}),
    ("model", {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}),
    ("model", {"type": "BPE", "vocab": {"a": 0}, "merges": []}),
)  # fmt: skip
"""Place of a tokenizer.json -> what is put there."""


keeps: list[tempfile.TemporaryDirectory] = []
"""Of this process."""


def model(rng: random.Random, folder: Path) -> str:
    """Writes a model into the new folder `folder`, and returns the name to load it by."""
    return rng.choice((configured, configured, tensored, tensored, worded, stock, original))(rng, folder)


def configured(rng: random.Random, folder: Path) -> str:
    shutil.copytree(SHIPPED, folder)
    _spoil(rng, folder / "config.json", "model")
    return str(folder) + rng.choice(("", "", "@96", "@99999999"))


def tensored(rng: random.Random, folder: Path) -> str:
    shutil.copytree(SHIPPED, folder)
    tensors = load_file(folder / "model.safetensors")
    name = rng.choice((*sorted(tensors), *["vision_model.embeddings.position_embedding"] * 20))
    tensors[name] = spoilt(rng, tensors[name], kept=True)
    save_file(tensors, folder / "model.safetensors")  # without a checksum, as others write it
    return str(folder) + rng.choice(("", "@96"))


def worded(rng: random.Random, folder: Path) -> str:
    """Words at other ids, and other rules by which texts become words."""
    shutil.copytree(SHIPPED, folder)
    path = folder / "tokenizer.json"
    words = json.loads(path.read_text())
    if rng.random() < 0.7:
        place, rule = rng.choice(RULES)
        words[place] = rule
    else:
        vocabulary = words["model"]["vocab"]
        word = rng.choice(list(vocabulary))
        vocabulary[word] = rng.choice((0, 127, 128, 10_000, 2**32 - 1))
    path.write_text(json.dumps(words))
    return str(folder)


def stock(rng: random.Random, folder: Path) -> str:
    """As stock transformers writes one."""
    task = folder / rng.choice(("retrieval", "captioning", "vqa"))
    shutil.copytree(_exported() / task.name, task)
    if rng.random() < 0.7:
        _spoil(rng, task / "config.json", rng.choice(("text_config", "vision_config", None)))
    else:
        tensors = load_file(task / "model.safetensors")
        name = rng.choice(sorted(tensors))
        tensors[name] = spoilt(rng, tensors[name], kept=True)
        save_file(tensors, task / "model.safetensors", {"format": "pt"})
    return str(task) + rng.choice(("", "@96"))


@cache
def _exported() -> Path:
    keeps.append(tempfile.TemporaryDirectory())
    with contextlib.redirect_stderr(io.StringIO()):  # a bar
        to_transformers(str(SHIPPED), keeps[-1].name)
    return Path(keeps[-1].name)


def original(rng: random.Random, folder: Path) -> str:
    """A file that torch reads, of a BLIP's names."""
    folder.mkdir()
    shutil.copy(SHIPPED / "tokenizer.json", folder)
    wide, layer, block = 64, "text_encoder.encoder.layer.0.", "visual_encoder.blocks.0."
    tensors = {
        "visual_encoder.cls_token": torch.zeros(1, 1, wide), "visual_encoder.pos_embed": torch.zeros(1, 10, wide),
        "visual_encoder.patch_embed.proj.weight": torch.zeros(wide, 3, 8, 8), f"{block}mlp.fc1.bias": torch.zeros(256),
        "text_encoder.embeddings.word_embeddings.weight": torch.zeros(128, wide),
        "itm_head.weight": torch.zeros(2, wide), "vision_proj.bias": torch.zeros(64),
        "text_encoder.embeddings.position_embeddings.weight": torch.zeros(48, wide),
        f"{layer}intermediate.dense.bias": torch.zeros(256), "vision_proj.weight": torch.zeros(64, wide),
        f"{layer}crossattention.self.key.weight": torch.zeros(wide, wide),
    }  # fmt: skip
    name = rng.choice(list(tensors))
    tensors[name] = spoilt(rng, tensors[name], kept=False)
    if rng.random() < 0.2:
        more = (f"{layer[:-2]}{10**30}.x", f"{block[:-2]}x.y", "visual_encoder.blocks.99999999.x")
        tensors[rng.choice(more)] = torch.zeros(1)
    torch.save({"model": tensors}, folder / "blip.pth")
    return str(folder / "blip.pth") + rng.choice(("", "@96"))


def spoilt(rng: random.Random, tensor: torch.Tensor, kept: bool) -> torch.Tensor:
    """A tensor in its place that no layer can have. kept: of those that safetensors holds."""
    shape = list(tensor.shape) or [1]
    ways = [
        lambda: torch.zeros(0), lambda: torch.zeros(()), lambda: torch.zeros(*shape, 1), lambda: torch.zeros(1, 3, 80),
        lambda: torch.zeros([side + 1 for side in shape]), lambda: torch.zeros(1, 1, 80), lambda: torch.zeros(1, 0, 80),
        lambda: torch.full(shape, float("nan")), lambda: torch.full(shape, 3e38),
        lambda: torch.full(shape, 1e308, dtype=torch.float64),
    ]  # fmt: skip
    kinds = (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)
    ways += [lambda kind=kind: torch.zeros(shape, dtype=kind) for kind in kinds]
    if not kept:
        ways += [
            lambda: torch.zeros(shape).to_sparse(), lambda: torch.zeros(shape, device="meta"),
            lambda: torch.zeros(1).expand(10**9), lambda: torch.zeros(1).expand(*[10**5] * 3),
        ]  # fmt: skip
    return rng.choice(ways)()


def _spoil(rng: random.Random, path: Path, table: str | None) -> None:
    values = json.loads(path.read_text())
    inner = values[table] if table else values
    inner[rng.choice(list(inner))] = rng.choice(SIZES)
    path.write_text(json.dumps(values))
