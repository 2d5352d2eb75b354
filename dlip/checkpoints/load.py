"""Models by name: built-in ones, run folders, Hugging Face and original BLIP checkpoints."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import dlip
from dlip.checkpoints import blip
from dlip.checkpoints.blip import Checkpoint
from dlip.checkpoints.hub import hub_model
from dlip.checkpoints.tensors import checkpoint_errors, read_tensors, weights, write_tensors
from dlip.common.errors import UserError
from dlip.common.files import read_json, write_json
from dlip.data.tokenizer import Tokenizer
from dlip.models.composite import Composite
from dlip.models.config import ModelConfig
from dlip.models.fast.precision import precision
from dlip.models.features import ABILITIES
from dlip.models.med import Med

BUILT_IN = Path(dlip.__file__).parent / "weights"


def save_model(med: Med, tokenizer: Tokenizer, folder: str | Path, extra: dict | None = None) -> None:
    """Writes a folder that `load_model` reads: tokenizer.json, model.safetensors and config.json.

    extra: further entries of config.json. Raises UserError for a packed model.
    """
    tensors, folder = weights(med), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    write_tensors(folder / "model.safetensors", tensors)
    config = {"model": med.config.to_dict()}
    config |= {} if med.abilities == frozenset(ABILITIES) else {"abilities": sorted(med.abilities)}
    config |= {} if precision(med) == "fp32" else {"precision": precision(med)}
    write_json(folder / "config.json", {**config, **(extra or {})})


def load_model(name: str | Path) -> tuple[Med | Composite, Tokenizer]:
    """Loads a model by name, in eval mode, on the CPU.

    A name is a built-in (`scenes/teacher`), a folder that dlip or stock `transformers` has written, a hub id
    (`Salesforce/blip-itm-base-coco`), or an original BLIP `.pth`. "@384" behind it sets the image size, with positions
    interpolated; ":image_heads=12,text_heads=12" states what a `.pth` does not. Several names joined by "+" are one
    teacher (dlip/models/composite.py).
    Raises UserError if there is no such model, or if its files or the several models do not fit each other.
    """
    names = split_names(name)
    checkpoints = [read_model(one) for one in names]
    tokenizer = checkpoints[0].tokenizer
    for other, checkpoint in zip(names, checkpoints, strict=True):
        if checkpoint.tokenizer.fast.get_vocab() != tokenizer.fast.get_vocab():
            raise UserError(f"{names[0]} and {other} have different vocabularies; combine models that share one")
    meds = []
    for one, checkpoint in zip(names, checkpoints, strict=True):
        with checkpoint_errors(Path(one)):
            meds.append(checkpoint.build(one))
    return (meds[0] if len(meds) == 1 else Composite(meds)), tokenizer


def split_names(name: str | Path) -> list[str]:
    """The names that "+" joins; an existing path with a + in it is one name."""
    return [str(name)] if os.path.exists(name) else str(name).split("+")  # Path.exists raises for a very long name


@dataclass(frozen=True)
class ModelName:
    """The name of a model and what may follow it: `model.pth@384:image_heads=4,text_heads=4`."""

    name: str
    size: int | None = None
    """Image size in px."""
    heads: dict[str, int] = field(default_factory=dict)
    """image_heads and text_heads, where they are stated."""


def parse_name(name: str) -> ModelName:
    """The parts of a model's name; an existing path is a name as a whole."""
    heads, size = {}, None
    one = r"(?:image|text)_heads=[1-9]\d{0,2}"
    if not os.path.exists(name) and (match := re.fullmatch(rf"(.+?):({one}(?:,{one})?)", name, re.S)):
        name = match[1]
        heads = {field: int(number) for field, number in (part.split("=") for part in match[2].split(","))}
    if not os.path.exists(name) and (match := re.fullmatch(r"(.+)@([1-9]\d{0,3})", name, re.S)):
        name, size = match[1], int(match[2])
    return ModelName(name, size, heads)


def read_model(name: str) -> Checkpoint:
    """Reads the files of one model without building it. Raises UserError as `load_model`."""
    parsed = parse_name(name)
    path = locate(parsed.name)
    with checkpoint_errors(path):
        if path.is_file():
            checkpoint = blip.read_original(path, parsed.heads)
        elif parsed.heads:
            raise UserError(f"{parsed.name} says how many heads it has; leave out what follows its name")
        elif "model" in (values := read_json(path / "config.json")):
            checkpoint = _read_own(path, values)
        elif values.get("model_type") == "blip":
            checkpoint = blip.read_hugging_face(path)
        else:
            raise UserError(
                f"{path / 'config.json'} is neither of dlip nor of BLIP; name a run folder or a BLIP folder"
            )
        return checkpoint.at(parsed.size) if parsed.size else checkpoint


def _read_own(path: Path, values: dict) -> Checkpoint:
    """A folder of `save_model`. Raises UserError if the tokenizer is not the model's."""
    tensors, abilities = read_tensors(path / "model.safetensors")[0], frozenset(values.get("abilities", ABILITIES))
    if not abilities or abilities - set(ABILITIES):
        raise ValueError(f"abilities {sorted(abilities)}")
    config, tokenizer = ModelConfig.from_dict(values["model"]), Tokenizer.load(path)
    expected = (config.vocab_size, config.pad_id, config.cls_id, config.sep_id, config.dec_id)
    if (ids := (len(tokenizer), tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.dec_id)) != expected:
        raise UserError(
            f"the tokenizer of {path} is not its model's: its vocabulary size and ids of [PAD], [CLS], [SEP] and [DEC] "
            f"are {ids}, not {expected}"
        )
    if wrong := [i for i in (config.enc_id, *config.prompt_ids) if not 0 <= i < config.vocab_size]:
        raise UserError(f"the model of {path} starts texts with token {wrong[0]}, but has {config.vocab_size} tokens")
    return Checkpoint(tensors, config, tokenizer, abilities, values.get("precision", "fp32"))


def locate(name: str) -> Path:
    """The folder or file of a name; a hub id is downloaded unless a local folder has its name or its owner's.

    Names below `runs/` are never looked up on the hub. Raises UserError if there is no such model.
    """
    path = BUILT_IN / name if name in built_in_models() else Path(name)
    if os.path.isfile(path) or os.path.isfile(path / "config.json"):
        return path
    owner = name.split("/")[0]
    is_hub_id = re.fullmatch(r"(?!runs/)[\w-][\w.-]*/[\w.-]+", name)
    if is_hub_id and not os.path.exists(owner) and not os.path.exists(BUILT_IN / owner):
        return hub_model(name)
    raise UserError(
        f"there is no model {name!r}; name a run folder, a BLIP folder or .pth, or one of "
        f"{', '.join(built_in_models())}"
    )


def built_in_models() -> list[str]:
    """The names of the shipped models."""
    return sorted(str(path.parent.relative_to(BUILT_IN)) for path in BUILT_IN.glob("*/*/config.json"))


def model_folder(name: str | Path) -> Path:
    """The folder of a model that dlip has written. Raises UserError if there is none."""
    folder = BUILT_IN / name if str(name) in built_in_models() else Path(name)
    if not os.path.isfile(folder / "config.json"):
        raise UserError(f"there is no model {str(name)!r}; name a run folder or one of {', '.join(built_in_models())}")
    return folder
