"""Models and training states on disk: safetensors and JSON, written whole or not at all, nothing ever unpickled."""

import hashlib
import json
import os
import pickle
import re
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dlip.composite import Composite
from dlip.config import ModelConfig
from dlip.data.tokenizer import Tokenizer
from dlip.errors import UserError, no_memory
from dlip.features import TASKS
from dlip.files import check_file, read_json, write_atomically, write_json
from dlip.linear import refuse_packed
from dlip.model import Med
from dlip.precision import precision

if TYPE_CHECKING:
    from dlip.published import Checkpoint

BUILT_IN = Path(__file__).parent / "weights"
HEAD = 16 << 20
"""Bytes, at most, of what a safetensors file tells of its tensors: 36,216 in the shipped teacher, while a million empty
ones would be read for long."""


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], meta: dict | None = None) -> None:
    """One safetensors file; `meta` goes with it as JSON, and a checksum of all tensors."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = json.dumps({**(meta or {}), "sha256": checksum(tensors)})  # under one key, as their order is not kept
    write_atomically(path, lambda temporary: save_file(tensors, temporary, {"meta": about}))


def checksum(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, in whatever order they come."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_tensors(path: Path, device: str = "cpu", checked: bool = False) -> tuple[dict[str, torch.Tensor], dict]:
    """What `write_tensors` wrote. Raises UserError where the file is missing, broken or not what was written.

    checked: whether a file without a checksum, as others write them, is broken too.
    """
    check_file(path)
    try:
        with open(path, "rb") as file:
            if (head := int.from_bytes(file.read(8), "little")) > HEAD:
                raise ValueError(f"what it tells of its tensors has {head:,} bytes, of {HEAD:,} at most")
        with safe_open(path, "pt", device=device) as file:
            meta = json.loads((file.metadata() or {}).get("meta", "{}"))
            if not isinstance(meta, dict):
                raise ValueError("what is written beside the weights is no table")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no complete safetensors file ({error}); copy it again") from None
    known = meta.pop("sha256", None)  # older files have none
    if (known or checked) and checksum({name: tensor.cpu() for name, tensor in tensors.items()}) != known:
        raise UserError(f"{path} is damaged: its weights are not those of its checksum; copy it again")
    return tensors, meta


def weights(med: Med) -> dict[str, torch.Tensor]:
    """Every stored tensor once, under its first name: tied ones are not repeated. Raises UserError for a packed model,
    which no longer has them."""
    refuse_packed(med)
    return dict(med.named_parameters())


def fitting(med: Med, tensors: dict[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """The tensors. Raises UserError naming the first that are missing or do not fit the model."""
    wanted = weights(med)
    wrong = [name for name in wanted if name not in tensors] + [name for name in tensors if name not in wanted]
    wrong += [name for name in wanted if name in tensors and tensors[name].shape != wanted[name].shape]
    if wrong:
        raise UserError(
            f"{source} does not fit its configuration: {', '.join(wrong[:3])} missing, unknown or misshapen"
        )
    return tensors


def load_weights(med: Med, tensors: dict[str, torch.Tensor]) -> None:
    """Copies tensors that are `fitting` into the model."""
    with torch.no_grad():
        for name, parameter in weights(med).items():
            parameter.copy_(tensors[name])


def save_model(med: Med, tokenizer: Tokenizer, folder: str | Path, about: dict | None = None) -> None:
    """A folder that `load_model` reads: tokenizer.json, model.safetensors and config.json, which also holds `about`.

    Raises UserError as `weights`.
    """
    tensors, folder = weights(med), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    write_tensors(folder / "model.safetensors", tensors)
    kind = {} if med.abilities == frozenset(TASKS) else {"abilities": sorted(med.abilities)}
    kind |= {} if precision(med) == "fp32" else {"precision": precision(med)}
    write_json(folder / "config.json", {"model": med.config.to_dict(), **kind, **(about or {})})


def load_model(name: str | Path) -> tuple[Med | Composite, Tokenizer]:
    """A model by name, in eval mode, on the CPU; with "@384" behind it, at that picture size, positions interpolated.

    A built-in (`scenes/teacher`), a folder that dlip or stock `transformers` has written, a hub id
    (`Salesforce/blip-itm-base-coco`), or an original BLIP `.pth`. Several joined by "+" are one teacher, each doing
    what it can (dlip/composite.py). Raises UserError where there is none of that name, or where its files or the
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
        with whole(Path(one)):
            meds.append(checkpoint.build(one))
    return (meds[0] if len(meds) == 1 else Composite(meds)), found[0].tokenizer


def together(name: str | Path) -> list[str]:
    """The names of a model's several; what is there under the whole name is one."""
    return [str(name)] if os.path.exists(name) else str(name).split("+")  # Path.exists fails on a long one


def read_model(name: str) -> "Checkpoint":
    """What is on disk of one model of `load_model`'s names. Raises UserError as it does."""
    from dlip import published  # which reads its files with the functions above

    name, size = sized(name)
    path = locate(name)
    with whole(path):
        if path.is_file():
            checkpoint = published.original(path)
        elif "model" in (values := read_json(path / "config.json")):
            tensors, able = read_tensors(path / "model.safetensors")[0], frozenset(values.get("abilities", TASKS))
            if not able or able - set(TASKS):
                raise ValueError(f"abilities {sorted(able)}")
            config, stored = ModelConfig.from_dict(values["model"]), values.get("precision", "fp32")
            checkpoint = published.Checkpoint(tensors, config, Tokenizer.load(path), able, stored)
            _check_words(checkpoint, path)
        elif values.get("model_type") == "blip":
            checkpoint = published.hugging_face(path)
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


@contextmanager
def whole(path: Path):
    """Within it, what a checkpoint is found to lack or to hold in another form is a UserError; but not where
    memory is short."""
    try:
        yield
    except (LookupError, ArithmeticError, ValueError, TypeError, AttributeError, RuntimeError) as fault:
        if no_memory(fault):
            raise
        raise UserError(
            f"{path} is not whole, or no model of its kind ({type(fault).__name__}: {str(fault)[:300]}); take another "
            f"copy of it"
        ) from fault


def _check_words(checkpoint: "Checkpoint", path: Path) -> None:
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

FILES = ("*.json", "vocab.txt", "model.safetensors")


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, or of a folder's model.safetensors or pytorch_model.bin; a file's "model", if it has one.

    No code in a file is ever run. Raises UserError where there are none or where reading would need code.
    """
    if path.is_dir():
        found = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
        if not found:
            raise UserError(f"{path} has neither model.safetensors nor pytorch_model.bin; copy the weights there")
        path = found[0]
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped and any(entry.compress_type for entry in zipfile.ZipFile(path).infolist()):
            raise RuntimeError("its tensors are compressed, as torch never writes them")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is broken, or holds more than tensors, which could run code; take a file of tensors alone"
        ) from None
    except Exception as error:  # a broken file raises nearly anything
        reason = str(error).splitlines()[0] if isinstance(error, RuntimeError) and str(error) else type(error).__name__
        raise UserError(
            f"{path} cannot be read as weights ({reason}); name a checkpoint, or get this one again"
        ) from None
    state = state.get("model", state) if isinstance(state, dict) else {}
    if not state or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(f"{path} holds no table of tensors; take a checkpoint's state dict")
    if odd := [name for name, tensor in state.items() if not _dense(tensor)]:
        raise UserError(f"{path} does not hold all numbers of {odd[0]} one by one; save its tensors dense")
    return state


def _dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor's numbers lie in the memory that it has, each its own and not repeated."""
    dense = tensor.layout is torch.strided and tensor.device.type == "cpu"
    return dense and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def from_hub(name: str, patterns: tuple[str, ...]) -> Path:
    """The folder of a hub repository's files, downloaded where they are new. Raises UserError where it cannot be."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except GatedRepoError:
        reason = "keeps it for those who were admitted"
    except RepositoryNotFoundError:
        reason = "has none of that name"
    except LocalEntryNotFoundError:
        reason = "cannot be reached"
    except Exception as error:  # network, hub and disk raise many kinds
        reason = f"does not give it ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    raise UserError(f"there is no folder {name!r}, and the hub {reason}; check the name and the connection")


def hub_model(name: str) -> Path:
    """A model's folder from the hub; older ones keep their weights in pytorch_model.bin alone."""
    folder = from_hub(name, FILES)
    return folder if (folder / "model.safetensors").is_file() else from_hub(name, (*FILES, "pytorch_model.bin"))
