"""Tensors on disk: safetensors with a checksum, written whole or not at all, nothing ever unpickled."""

import hashlib
import json
import pickle
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dlip.common.errors import UserError, is_out_of_memory
from dlip.common.files import check_file, write_atomically
from dlip.models.fast.linear import refuse_packed
from dlip.models.med import Med

if TYPE_CHECKING:
    pass


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


@contextmanager
def checkpoint_errors(path: Path):
    """Within it, what a checkpoint is found to lack or to hold in another form is a UserError; but not where
    memory is short."""
    try:
        yield
    except (LookupError, ArithmeticError, ValueError, TypeError, AttributeError, RuntimeError) as fault:
        if is_out_of_memory(fault):
            raise
        raise UserError(
            f"{path} is not whole, or no model of its kind ({type(fault).__name__}: {str(fault)[:300]}); take another "
            f"copy of it"
        ) from fault


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
