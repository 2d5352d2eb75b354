"""Tensors on disk: safetensors with a checksum, written whole or not at all. Nothing is ever unpickled."""

import hashlib
import json
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dlip.common.errors import UserError, first_line, is_out_of_memory
from dlip.common.files import check_file, read_json, write_atomically, write_json
from dlip.models.fast.linear import refuse_packed
from dlip.models.med import Med

INDEX = "model.safetensors.index.json"
"""File that says which shard holds which tensor."""


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], meta: dict | None = None) -> None:
    """Write one safetensors file, with `meta` as JSON and a checksum of all tensors in its metadata."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = json.dumps({**(meta or {}), "sha256": checksum(tensors)})  # one key, as the order of keys is not kept
    write_atomically(path, lambda temporary: save_file(tensors, temporary, {"meta": metadata}))


def checksum(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, independent of the order of the tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_tensors(path: Path, checked: bool = False) -> tuple[dict[str, torch.Tensor], dict]:
    """The tensors and `meta` of a file of `write_tensors`.

    checked: refuse a file without a checksum, as other programs write it. Raises UserError if the file is missing,
    incomplete or damaged.
    """
    check_file(path)
    try:
        with safe_open(path, "pt") as file:
            meta = json.loads((file.metadata() or {}).get("meta", "{}"))
            if not isinstance(meta, dict):
                raise ValueError("its metadata is not a table")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a complete safetensors file ({error}); copy it again") from None
    expected = meta.pop("sha256", None)
    if (expected or checked) and checksum(tensors) != expected:
        raise UserError(f"{path} is damaged: its weights do not match their checksum; copy it again")
    return tensors, meta


def write_weights(folder: Path, tensors: dict[str, torch.Tensor], shard_mb: float | None = None) -> None:
    """Write model.safetensors, or files of at most `shard_mb` MB with an index of them, as the hub has them."""
    from huggingface_hub import split_torch_state_dict_into_shards

    size = sum(tensor.nbytes for tensor in tensors.values())
    if shard_mb:
        header = sum(len(name) + 100 for name in tensors)  # names, shapes and offsets, in JSON
        size = max(1, int(shard_mb * 1e6) - header)
    shards = split_torch_state_dict_into_shards(tensors, max_shard_size=size)
    for file, names in shards.filename_to_tensors.items():
        write_tensors(folder / file, {name: tensors[name] for name in names})
    if shards.is_sharded:
        write_json(folder / INDEX, {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename})
    else:
        (folder / INDEX).unlink(missing_ok=True)
    for old in {*folder.glob("model.safetensors"), *folder.glob("model-*-of-*.safetensors")}:
        if old.name not in shards.filename_to_tensors:
            old.unlink()


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder of `write_weights`. Raises UserError as `read_tensors` does."""
    if not (folder / INDEX).is_file():
        return read_tensors(folder / "model.safetensors")[0]
    files = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
    return {name: tensor for file in files for name, tensor in read_tensors(folder / Path(file).name)[0].items()}


def weights(med: Med) -> dict[str, torch.Tensor]:
    """Every stored tensor once, tied ones under their first name. Raises UserError for a packed model.

    Statistics of a backbone's batch norms are among them.
    """
    refuse_packed(med)
    stored = med.state_dict()
    statistics = {name: b for name, b in med.named_buffers() if name in stored and b.is_floating_point()}
    return dict(med.named_parameters()) | statistics


def check_weights(med: Med, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Raise UserError that names the first tensors that are missing, unknown or of another shape than the model's."""
    own = weights(med)
    wrong = [name for name in own if name not in tensors] + [name for name in tensors if name not in own]
    wrong += [name for name in own if name in tensors and tensors[name].shape != own[name].shape]
    if wrong:
        raise UserError(
            f"{source} does not fit its configuration: {', '.join(wrong[:3])} missing, unknown or of the wrong shape"
        )


def load_weights(med: Med, tensors: dict[str, torch.Tensor]) -> None:
    """Copy tensors that passed `check_weights` into the model."""
    with torch.no_grad():
        for name, parameter in weights(med).items():
            parameter.copy_(tensors[name])


@contextmanager
def checkpoint_errors(path: Path) -> Iterator[None]:
    """Turn errors that a damaged or foreign checkpoint causes into a UserError; lack of memory is not one of them."""
    try:
        yield
    except (LookupError, ArithmeticError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"{path} is damaged, or not a model of its kind ({type(error).__name__}: {str(error)[:300]}); use another "
            f"copy of it"
        ) from error


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of a file, or of a folder's model.safetensors (or its shards) or pytorch_model.bin.

    Only tensors are read, never code. Raises UserError if there are none or if reading them would need code.
    """
    if (path / INDEX).is_file():
        return read_weights(path)
    if path.is_dir():
        files = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
        if not files:
            raise UserError(f"{path} has neither model.safetensors nor pytorch_model.bin; copy the weights there")
        path = files[0]
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped and any(entry.compress_type for entry in zipfile.ZipFile(path).infolist()):
            raise RuntimeError("its tensors are compressed, unlike those that torch writes")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is damaged, or holds objects other than tensors, which could run code; use a file of tensors only"
        ) from None
    except Exception as error:  # a damaged file raises nearly anything
        reason = first_line(error) if isinstance(error, RuntimeError) else type(error).__name__
        raise UserError(f"{path} cannot be read as weights ({reason}); name a checkpoint, or copy it again") from None
    state = state.get("model", state) if isinstance(state, dict) else {}
    if not state or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(f"{path} is not a table of tensors; use a checkpoint's state dict")
    return state
