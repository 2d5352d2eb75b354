"""Models by name: built-in ones, run folders, Hugging Face and original BLIP checkpoints."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import dlip
from dlip.checkpoints import blip
from dlip.checkpoints.blip import Checkpoint
from dlip.checkpoints.dual_encoders import read_dual_encoder
from dlip.checkpoints.hub import hub_model
from dlip.checkpoints.tensors import checkpoint_errors, read_weights, weights, write_weights
from dlip.common.errors import UserError
from dlip.common.files import read_json, write_json
from dlip.data.stock_tokenizer import StockTokenizer
from dlip.data.tokenizer import Tokenizer
from dlip.models.composite import Composite
from dlip.models.config import ModelConfig
from dlip.models.dual_encoder import FAMILIES, DualEncoder
from dlip.models.fast.precision import precision
from dlip.models.features import ABILITIES
from dlip.models.med import Med

BUILT_IN = Path(dlip.__file__).parent / "weights"


def save_model(
    med: Med,
    tokenizer: Tokenizer,
    folder: str | Path,
    extra: dict | None = None,
    half: bool = False,
    shard_mb: float | None = None,
) -> None:
    """Write a folder that `load_model` reads: tokenizer.json, model.safetensors and config.json.

    extra: further entries of config.json. half: store fp32 weights in fp16. shard_mb: size of a file in MB above which
    weights are split over several. Raises UserError for a packed model, a dual encoder and a composite.
    """
    if med.stock:
        raise UserError("a CLIP or SigLIP cannot be saved as a model of dlip; copy its own folder")
    if len(med.members) > 1:
        raise UserError("a model made of several cannot be saved as one; save each by itself")
    tensors, folder = weights(med), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    if half:
        tensors = {name: tensor.half() for name, tensor in tensors.items()}
        if large := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
            raise UserError(f"{large[0]} has values beyond fp16's limit of 65,504; store the model in fp32 or bf16")
    write_weights(folder, tensors, shard_mb)
    config = {"model": med.config.to_dict()}
    config |= {} if med.abilities == frozenset(ABILITIES) else {"abilities": sorted(med.abilities)}
    config |= {} if precision(med) == "fp32" else {"precision": precision(med)}
    write_json(folder / "config.json", {**config, **(extra or {})})


def load_model(name: str | Path) -> tuple[Med | DualEncoder | Composite, Tokenizer | StockTokenizer]:
    """Load a model by name, in eval mode, on the CPU.

    A name is a built-in (`scenes/teacher`), a folder that dlip or stock `transformers` has written, a hub id
    (`Salesforce/blip-itm-base-coco`), an original BLIP `.pth`, or a CLIP or SigLIP. "@384" behind it sets the image
    size of a BLIP, with positions interpolated; ":image_heads=12,text_heads=12" states what a `.pth` does not. Several
    names joined by "+" are one teacher (dlip/models/composite.py), whose tokenizer is that of the first BLIP.
    Raises UserError if there is no such model, or if its files do not fit each other.
    """
    models = [_load_one(one) for one in split_names(name)]
    if len(models) > 1 and all(model.stock for model in models):
        raise UserError(f"{name} has no BLIP, and of several CLIPs or SigLIPs only one could rank; name one of them")
    tokenizer = next((model for model in models if not model.stock), models[0]).tokenizer
    return (models[0] if len(models) == 1 else Composite(models)), tokenizer


def _load_one(name: str) -> Med | DualEncoder:
    """One model with its tokenizer. Raises UserError as `load_model`."""
    parsed = parse_name(name)
    path = locate(parsed.name)
    if kind := _dual_encoder_type(path):
        if parsed.size or parsed.heads:
            raise UserError(f"the image size and heads of {parsed.name} are its own; remove what follows its name")
        with checkpoint_errors(path):
            return read_dual_encoder(path, kind)
    checkpoint = _read(parsed, path)
    with checkpoint_errors(Path(name)):
        med = checkpoint.build(name)
    med.tokenizer = checkpoint.tokenizer
    return med


def _dual_encoder_type(path: Path) -> str | None:
    """`model_type` of a CLIP's or SigLIP's folder, else None."""
    kind = None if path.is_file() else read_json(path / "config.json").get("model_type")
    return kind if kind in [*FAMILIES] else None  # JSON may hold what cannot be hashed


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
    """Read the files of one BLIP without building it. Raises UserError as `load_model`, and for another model."""
    parsed = parse_name(name)
    return _read(parsed, locate(parsed.name))


def _read(parsed: ModelName, path: Path) -> Checkpoint:
    with checkpoint_errors(path):
        if path.is_file():
            checkpoint = blip.read_original(path, parsed.heads)
        elif parsed.heads:
            raise UserError(f"{parsed.name} says how many heads it has; remove what follows its name")
        elif "model" in (values := read_json(path / "config.json")):
            checkpoint = _read_own(path, values)
        elif values.get("model_type") == "blip":
            checkpoint = blip.read_hugging_face(path)
        else:
            kind = " but of a CLIP or SigLIP, which can only be a teacher" if _dual_encoder_type(path) else ""
            raise UserError(
                f"{path / 'config.json'} is neither of dlip nor of BLIP{kind}; name a run folder or a BLIP folder"
            )
        return checkpoint.with_image_size(parsed.size) if parsed.size else checkpoint


def _read_own(path: Path, values: dict) -> Checkpoint:
    """A folder of `save_model`. Raises UserError if the tokenizer is not the model's."""
    tensors, abilities = read_weights(path), frozenset(values.get("abilities", ABILITIES))
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


def local_path(name: str | Path) -> Path:
    """The folder of a shipped model, or any other name as a path, which need not exist."""
    shipped = BUILT_IN / name
    return shipped if os.path.isfile(shipped / "config.json") else Path(name)


def locate(name: str) -> Path:
    """The folder or file of a name; a hub id is downloaded unless a local folder has its name or its owner's.

    Names below `runs/` are never looked up on the hub. Raises UserError if there is no such model.
    """
    path = local_path(name)
    if os.path.isfile(path) or os.path.isfile(path / "config.json"):
        return path
    if is_hub_id(name):
        return hub_model(name)
    raise UserError(
        f"there is no model {name!r}; name a run folder, a BLIP folder or .pth, or one of "
        f"{', '.join(built_in_models())}"
    )


def is_hub_id(name: str) -> bool:
    """Whether a name is that of a repository on the hub: neither its owner nor a built-in model's is a local folder."""
    owner = name.split("/")[0]
    written_so = re.fullmatch(r"(?!runs/)[\w-][\w.-]*/[\w.-]+", name)
    return bool(written_so) and not os.path.exists(owner) and not os.path.exists(BUILT_IN / owner)


def built_in_models(data: str = "*") -> list[str]:
    """The names of the shipped models, or of those of one kind of data: "scenes" or "photos"."""
    return sorted(path.parent.relative_to(BUILT_IN).as_posix() for path in BUILT_IN.glob(f"{data}/*/config.json"))


def model_folder(name: str | Path) -> Path:
    """The folder of a model that dlip has written. Raises UserError if there is none."""
    folder = local_path(name)
    if not os.path.isfile(folder / "config.json"):
        raise UserError(f"there is no model {str(name)!r}; name a run folder or one of {', '.join(built_in_models())}")
    return folder
