"""Files of a hub repository."""

from pathlib import Path
from typing import TYPE_CHECKING

from dlip.common.errors import UserError

if TYPE_CHECKING:
    pass


FILES = ("*.json", "vocab.txt", "model.safetensors")


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
