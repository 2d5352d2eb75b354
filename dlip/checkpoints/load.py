"""Models and training states on disk: safetensors and JSON, written whole or not at all, nothing ever unpickled."""

import os
import re
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


def save_model(med: Med, tokenizer: Tokenizer, folder: str | Path, about: dict | None = None) -> None:
    """A folder that `load_model` reads: tokenizer.json, model.safetensors and config.json, which also holds `about`.

    Raises UserError as `weights`.
    """
    tensors, folder = weights(med), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    write_tensors(folder / "model.safetensors", tensors)
    kind = {} if med.abilities == frozenset(ABILITIES) else {"abilities": sorted(med.abilities)}
    kind |= {} if precision(med) == "fp32" else {"precision": precision(med)}
    write_json(folder / "config.json", {"model": med.config.to_dict(), **kind, **(about or {})})


def load_model(name: str | Path) -> tuple[Med | Composite, Tokenizer]:
    """A model by name, in eval mode, on the CPU; with "@384" behind it, at that picture size, positions interpolated.

    A built-in (`scenes/teacher`), a folder that dlip or stock `transformers` has written, a hub id
    (`Salesforce/blip-itm-base-coco`), or an original BLIP `.pth`. Several joined by "+" are one teacher, each doing
    what it can (dlip/models/composite.py). Raises UserError where there is none of that name, or where its files or the
    several models do not fit each other.
    """
    names = together(name)
    found = [read_model(one) for one in names]
    for one, other in zip(names[1:], found[1:], strict=True):
        if other.tokenizer.fast.get_vocab() != found[0].tokenizer.fast.get_vocab():
            raise UserError(
                f"{names[0]} and {one} have different vocabularies; compose a teacher of models that share it"
            )
    meds = []
    for one, checkpoint in zip(names, found, strict=True):
        with checkpoint_errors(Path(one)):
            meds.append(checkpoint.build(one))
    return (meds[0] if len(meds) == 1 else Composite(meds)), found[0].tokenizer


def together(name: str | Path) -> list[str]:
    """The names of a model's several; what is there under the whole name is one."""
    return [str(name)] if os.path.exists(name) else str(name).split("+")  # Path.exists fails on a long one


def read_model(name: str) -> Checkpoint:
    """What is on disk of one model of `load_model`'s names. Raises UserError as it does."""
    name, size = sized(name)
    path = locate(name)
    with checkpoint_errors(path):
        if path.is_file():
            checkpoint = blip.original(path)
        elif "model" in (values := read_json(path / "config.json")):
            tensors, able = read_tensors(path / "model.safetensors")[0], frozenset(values.get("abilities", ABILITIES))
            if not able or able - set(ABILITIES):
                raise ValueError(f"abilities {sorted(able)}")
            config, stored = ModelConfig.from_dict(values["model"]), values.get("precision", "fp32")
            checkpoint = Checkpoint(tensors, config, Tokenizer.load(path), able, stored)
            _check_words(checkpoint, path)
        elif values.get("model_type") == "blip":
            checkpoint = blip.hugging_face(path)
        else:
            raise UserError(
                f"{path / 'config.json'} describes no dlip model and no BLIP; name a run folder or a BLIP's"
            )
        return checkpoint.at(size) if size else checkpoint


def sized(name: str) -> tuple[str, int | None]:
    """A model's name without the picture size in px behind its @, and that; what is there under the whole name has
    none."""
    found = None if os.path.exists(name) else re.fullmatch(r"(.+)@([1-9]\d{0,7})", name, re.DOTALL)
    return (found[1], int(found[2])) if found else (name, None)


def _check_words(checkpoint: Checkpoint, path: Path) -> None:
    """Raises UserError where the tokenizer is not the one that the model reads."""
    config, words = checkpoint.config, checkpoint.tokenizer
    for what, theirs, ours in (
        ("words", len(words), config.vocab_size), ("[PAD]", words.pad_id, config.pad_id),
        ("[CLS]", words.cls_id, config.cls_id), ("[SEP]", words.sep_id, config.sep_id),
        ("[DEC]", words.dec_id, config.dec_id),
    ):  # fmt: skip
        if theirs != ours:
            raise UserError(f"the tokenizer of {path} is not its model's: {what} is {theirs} there and {ours} here")
    if config.max_text > config.max_positions:
        raise UserError(f"the model of {path} reads {config.max_text} tokens at {config.max_positions} positions")
    if wrong := [i for i in (config.enc_id, *config.prompt_ids) if not 0 <= i < config.vocab_size]:
        raise UserError(f"the model of {path} begins texts with the word {wrong[0]} of {config.vocab_size}")


def locate(name: str) -> Path:
    """The folder or file of a name; a hub id is downloaded where no folder has its name or its owner's, and never one
    that is called as runs are.

    Raises UserError where there is none.
    """
    path = BUILT_IN / name if name in built_in_models() else Path(name)
    if os.path.isfile(path) or os.path.isfile(path / "config.json"):
        return path
    owner = name.split("/")[0]
    if (
        re.fullmatch(r"(?!runs/)[\w-][\w.-]*/[\w.-]+", name)
        and not os.path.exists(owner)
        and not os.path.exists(BUILT_IN / owner)
    ):
        return hub_model(name)
    raise UserError(
        f"there is no model {name!r}; name a run folder, a BLIP's folder or .pth, or one of "
        f"{', '.join(built_in_models())}"
    )


def built_in_models() -> list[str]:
    """The names of the models that are shipped."""
    return sorted(str(path.parent.relative_to(BUILT_IN)) for path in BUILT_IN.glob("*/*/config.json"))


def model_folder(name: str | Path) -> Path:
    """The folder of a model that dlip has written. Raises UserError where there is none."""
    folder = BUILT_IN / name if str(name) in built_in_models() else Path(name)
    if not os.path.isfile(folder / "config.json"):
        raise UserError(f"there is no model {str(name)!r}; name a run folder or one of {', '.join(built_in_models())}")
    return folder


# --- what others have written -----------------------------------------------------------------------------------------
