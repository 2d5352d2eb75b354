"""Random models in well-formed files with impossible sizes, vocabularies or tensors."""

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

STUDENT = BUILT_IN / "scenes" / "student"
VALUES = (*junk.NUMBERS, [], [-1], [10**400], [True], ["a"], [[]], "", "8", None, {}, 2, 3, 7, 48, 127, 128, 129)
"""Values of configuration fields."""
TOKENIZER_RULES = (
    ("normalizer", {"type": "Replace", "pattern": {"Regex": "."}, "content": "a" * 50_000}),
    ("normalizer", {"type": "Prepend", "prepend": "a " * 100_000}),
    ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a*)*b"}, "behavior": "Isolated", "invert": False}),
    ("decoder", {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 100_000}),
    ("normalizer", None), ("pre_tokenizer", None), ("decoder", None), ("post_processor", None),
    ("truncation", {"direction": "Left", "max_length": 1, "strategy": "LongestFirst", "stride": 0}),
    ("model", {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}),
    ("model", {"type": "BPE", "vocab": {"a": 0}, "merges": []}),
)  # fmt: skip
"""Key of tokenizer.json and its new value."""
temporary_folders: list[tempfile.TemporaryDirectory] = []
"""Kept until the process ends."""


def write_model(rng: random.Random, folder: Path) -> str:
    """Writes a model into a new folder; returns the name to load it by."""
    writers = bad_config, bad_config, bad_tensor, bad_tensor, bad_tokenizer, bad_transformers, bad_original
    return rng.choice(writers)(rng, folder)


def bad_config(rng: random.Random, folder: Path) -> str:
    shutil.copytree(STUDENT, folder)
    _corrupt_config(rng, folder / "config.json", "model")
    return str(folder) + rng.choice(("", "", "@96", "@99999999"))


def bad_tensor(rng: random.Random, folder: Path) -> str:
    shutil.copytree(STUDENT, folder)
    _corrupt_tensors(rng, folder / "model.safetensors", ["vision_model.embeddings.position_embedding"] * 20)
    return str(folder) + rng.choice(("", "@96"))


def bad_tokenizer(rng: random.Random, folder: Path) -> str:
    shutil.copytree(STUDENT, folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    if rng.random() < 0.7:
        key, rule = rng.choice(TOKENIZER_RULES)
        tokenizer[key] = rule
    else:
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary[rng.choice(list(vocabulary))] = rng.choice((0, 127, 128, 10_000, 2**32 - 1))
    path.write_text(json.dumps(tokenizer))
    return str(folder)


def bad_transformers(rng: random.Random, folder: Path) -> str:
    """In the layout of transformers."""
    model = folder / "model"
    shutil.copytree(rng.choice(_exported()), model)
    if rng.random() < 0.7:
        _corrupt_config(rng, model / "config.json", rng.choice(("text_config", "vision_config", None)))
    else:
        _corrupt_tensors(rng, model / "model.safetensors")
    return str(model) + rng.choice(("", "@96"))


@cache
def _exported() -> list[Path]:
    temporary_folders.append(tempfile.TemporaryDirectory())
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        folders, _ = to_transformers(str(STUDENT), temporary_folders[-1].name)
    return list(folders.values())


def bad_original(rng: random.Random, folder: Path) -> str:
    """A .pth file with an original BLIP's tensor names."""
    folder.mkdir()
    shutil.copy(STUDENT / "tokenizer.json", folder)
    width, layer, block = 64, "text_encoder.encoder.layer.0.", "visual_encoder.blocks.0."
    tensors = {
        "visual_encoder.cls_token": torch.zeros(1, 1, width), "visual_encoder.pos_embed": torch.zeros(1, 10, width),
        "visual_encoder.patch_embed.proj.weight": torch.zeros(width, 3, 8, 8), f"{block}mlp.fc1.bias": torch.zeros(256),
        "text_encoder.embeddings.word_embeddings.weight": torch.zeros(128, width),
        "itm_head.weight": torch.zeros(2, width), "vision_proj.bias": torch.zeros(64),
        "text_encoder.embeddings.position_embeddings.weight": torch.zeros(48, width),
        f"{layer}intermediate.dense.bias": torch.zeros(256), "vision_proj.weight": torch.zeros(64, width),
        f"{layer}crossattention.self.key.weight": torch.zeros(width, width),
    }  # fmt: skip
    name = rng.choice(list(tensors))
    tensors[name] = bad_shape_or_type(rng, tensors[name], pickled=True)
    if rng.random() < 0.2:
        extra = (f"{layer[:-2]}{10**30}.x", f"{block[:-2]}x.y", "visual_encoder.blocks.99999999.x")
        tensors[rng.choice(extra)] = torch.zeros(1)
    torch.save({"model": tensors}, folder / "blip.pth")
    return str(folder / "blip.pth") + rng.choice(("", "@96"))


def bad_shape_or_type(rng: random.Random, tensor: torch.Tensor, pickled: bool = False) -> torch.Tensor:
    """A tensor that no layer can have in this place. pickled: also of kinds that safetensors cannot hold."""
    shape = list(tensor.shape) or [1]
    shapes = [0], [], [*shape, 1], [1, 3, 80], [side + 1 for side in shape], [1, 1, 80], [1, 0, 80]
    types = torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn
    makers = [lambda other=other: torch.zeros(other) for other in shapes]
    makers += [lambda dtype=dtype: torch.zeros(shape, dtype=dtype) for dtype in types]
    makers += [lambda fill=fill: torch.full(shape, fill) for fill in (float("nan"), 3e38)]
    makers += [lambda: torch.full(shape, 1e308, dtype=torch.float64)]
    if pickled:
        makers += [
            lambda: torch.zeros(shape).to_sparse(), lambda: torch.zeros(shape, device="meta"),
            lambda: torch.zeros(1).expand(10**9), lambda: torch.zeros(1).expand(*[10**5] * 3),
        ]  # fmt: skip
    return rng.choice(makers)()


def _corrupt_config(rng: random.Random, path: Path, table: str | None) -> None:
    config = json.loads(path.read_text())
    fields = config[table] if table else config
    fields[rng.choice(list(fields))] = rng.choice(VALUES)
    path.write_text(json.dumps(config))


def _corrupt_tensors(rng: random.Random, path: Path, likely: list[str] | None = None) -> None:
    tensors = load_file(path)
    name = rng.choice([*sorted(tensors), *(likely or [])])
    tensors[name] = bad_shape_or_type(rng, tensors[name])
    save_file(tensors, path, {"format": "pt"})  # without the checksum that dlip writes
