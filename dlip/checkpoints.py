"""Models and training states on disk: safetensors and JSON, written whole or not at all, nothing ever unpickled."""

import json
import os
import uuid
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dlip.config import ModelConfig
from dlip.data.tokenizer import Tokenizer
from dlip.errors import UserError
from dlip.model import Med

BUILT_IN = Path(__file__).parent / "weights"


def write_atomically(path: Path, write) -> None:
    """`write(temporary path)` in the same folder, then one rename; a crash leaves the old file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(value, indent=1) + "\n"))


def read_json(path: Path) -> dict:
    """Raises UserError where the file is missing or is no JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; name a folder that dlip has written") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); write it again or take another folder") from None


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], meta: dict | None = None) -> None:
    """One safetensors file; `meta` goes with it as JSON."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, {"meta": json.dumps(meta or {})}))


def read_tensors(path: Path, device: str = "cpu") -> tuple[dict[str, torch.Tensor], dict]:
    """What `write_tensors` wrote. Raises UserError where the file is missing or broken."""
    try:
        with safe_open(path, "pt", device=device) as file:
            meta = json.loads((file.metadata() or {}).get("meta", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, meta
    except FileNotFoundError:
        raise UserError(f"{path} is missing; name a folder that dlip has written") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is no complete safetensors file ({error}); copy it again") from None


def weights(med: Med) -> dict[str, torch.Tensor]:
    """Every stored tensor once, under its first name: tied ones are not repeated."""
    return dict(med.named_parameters())


def load_weights(med: Med, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Copies `tensors` into the model. Raises UserError naming the first tensors that are missing or do not fit."""
    wanted = weights(med)
    wrong = [name for name in wanted if name not in tensors] + [name for name in tensors if name not in wanted]
    wrong += [name for name in wanted if name in tensors and tensors[name].shape != wanted[name].shape]
    if wrong:
        raise UserError(f"{source} does not fit its config.json: {', '.join(wrong[:3])} missing, unknown or misshapen")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(tensors[name])


def save_model(med: Med, tokenizer: Tokenizer, folder: str | Path, about: dict | None = None) -> None:
    """A folder that `load_model` reads: tokenizer.json, model.safetensors and config.json, which also holds `about`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    write_tensors(folder / "model.safetensors", weights(med))
    write_json(folder / "config.json", {"model": med.config.to_dict(), **(about or {})})


def load_model(name: str | Path) -> tuple[Med, Tokenizer]:
    """A model by name: a built-in (`scenes/teacher`) or a folder that dlip has written; in eval mode, on the CPU.

    Raises UserError where there is none of that name, or where its files do not fit each other.
    """
    folder = model_folder(name)
    values = read_json(folder / "config.json")
    if "model" not in values:
        raise UserError(f"{folder / 'config.json'} describes no dlip model; name a run folder or a built-in model")
    med = Med(ModelConfig.from_dict(values["model"]))
    load_weights(med, read_tensors(folder / "model.safetensors")[0], str(folder / "model.safetensors"))
    return med.eval(), Tokenizer.load(folder)


def built_in_models() -> list[str]:
    return sorted(str(path.parent.relative_to(BUILT_IN)) for path in BUILT_IN.glob("*/*/config.json"))


def model_folder(name: str | Path) -> Path:
    if str(name) in built_in_models():
        return BUILT_IN / name
    folder = Path(name)
    if not (folder / "config.json").is_file():
        raise UserError(f"there is no model {str(name)!r}; name a run folder or one of {', '.join(built_in_models())}")
    return folder
