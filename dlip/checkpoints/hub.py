"""Download of model folders from the Hugging Face hub."""

from pathlib import Path

from dlip.checkpoints.tensors import INDEX
from dlip.common.errors import UserError, first_line

MODEL_FILES = ("*.json", "vocab.txt", "merges.txt", "spiece.model", "model.safetensors", "model-*-of-*.safetensors")


def from_hub(name: str, patterns: tuple[str, ...]) -> Path:
    """Download files of a hub repository, or take them from its cache. Raises UserError if that fails."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except GatedRepoError:
        reason = "the hub grants access to it only on request"
    except RepositoryNotFoundError:
        reason = "the hub has no such repository"
    except LocalEntryNotFoundError:
        reason = "the hub cannot be reached"
    except Exception as error:  # network, hub and disk raise many types
        reason = f"its download failed: {first_line(error)}"
    raise UserError(f"there is no folder {name!r}, and {reason}; check the name and the connection")


def hub_model(name: str) -> Path:
    """A model's folder from the hub; old ones have their weights only in pytorch_model.bin."""
    folder = from_hub(name, MODEL_FILES)
    found = any((folder / file).is_file() for file in ("model.safetensors", INDEX))
    return folder if found else from_hub(name, (*MODEL_FILES, "pytorch_model.bin"))
