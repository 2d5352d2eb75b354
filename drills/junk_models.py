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
EXPORTS = tempfile.TemporaryDirectory()


def write_model(rng: random.Random, folder: Path) -> str:
    """Copy a real model into a new folder with one impossible value; return the name to load it by."""
    if rng.random() < 1 / 7:
        return bad_original(rng, folder)
    shutil.copytree(rng.choice((STUDENT, STUDENT, *_exported())), folder)
    rng.choice((corrupt_config, corrupt_config, corrupt_tensors, corrupt_tensors, corrupt_tokenizer))(rng, folder)
    return str(folder) + rng.choice(("", "", "@96", "@99999999"))


def corrupt_config(rng: random.Random, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    fields = rng.choice([config, *(value for value in config.values() if isinstance(value, dict) and value)])
    fields[rng.choice(list(fields))] = rng.choice(VALUES)
    (folder / "config.json").write_text(json.dumps(config))


def corrupt_tensors(rng: random.Random, folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = rng.choice([*sorted(tensors), *(20 * [name for name in tensors if name.endswith("position_embedding")])])
    tensors[name] = rng.choice(bad_tensors(list(tensors[name].shape)))
    save_file(tensors, path, {"format": "pt"})  # without the checksum that dlip writes


def corrupt_tokenizer(rng: random.Random, folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    if rng.random() < 0.7:
        key, rule = rng.choice(TOKENIZER_RULES)
        tokenizer[key] = rule
    else:
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary[rng.choice(list(vocabulary))] = rng.choice((0, 127, 128, 10_000, 2**32 - 1))
    path.write_text(json.dumps(tokenizer))


@cache
def _exported() -> list[Path]:
    """Models in the layout of transformers."""
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        return list(to_transformers(str(STUDENT), EXPORTS.name)[0].values())


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
    shape = list(tensors[name].shape)
    unsafe = [
        torch.zeros(shape).to_sparse(), torch.zeros(shape, device="meta"), torch.zeros(1).expand(10**9),
        torch.zeros(1).expand(*[10**5] * 3),
    ]  # fmt: skip
    tensors[name] = rng.choice([*bad_tensors(shape), *unsafe])
    if rng.random() < 0.2:
        extra = (f"{layer[:-2]}{10**30}.x", f"{block[:-2]}x.y", "visual_encoder.blocks.99999999.x")
        tensors[rng.choice(extra)] = torch.zeros(1)
    torch.save({"model": tensors}, folder / "blip.pth")
    return str(folder / "blip.pth") + rng.choice(("", "@96"))


def bad_tensors(shape: list[int]) -> list[torch.Tensor]:
    """Tensors that no layer can have in the place of one of this shape."""
    shape = shape or [1]
    shapes = [0], [], [*shape, 1], [1, 3, 80], [side + 1 for side in shape], [1, 1, 80], [1, 0, 80]
    types = torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn
    tensors = [torch.zeros(other) for other in shapes] + [torch.zeros(shape, dtype=dtype) for dtype in types]
    tensors += [torch.full(shape, fill) for fill in (float("nan"), 3e38)]
    return [*tensors, torch.full(shape, 1e308, dtype=torch.float64)]
