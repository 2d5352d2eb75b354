"""DLIP Workbench: distill BLIP-style vision-language models and measure what the student keeps and saves."""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__version__ = "0.3.0"
__all__ = ["VLM", "distill", "evaluate", "load", "read_records", "train"]

_PUBLIC = {
    "VLM": "dlip.vlm:VLM",
    "load": "dlip.vlm:VLM.load",
    "train": "dlip.experiments.api:train",
    "distill": "dlip.experiments.api:distill",
    "evaluate": "dlip.evaluation.evaluate:evaluate",
    "read_records": "dlip.records.reading:load",
}


def __getattr__(name: str):
    """Import torch only when a name of `_PUBLIC` is first used."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pkgutil import resolve_name

    return resolve_name(_PUBLIC[name])
