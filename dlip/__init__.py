"""DLIP Workbench: distil BLIP-style vision-language models, and see what the student keeps and saves."""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # nobody is told what is done here

__version__ = "0.2.0"
__all__ = ["distill", "evaluate", "load"]

_HOMES = {
    "load": "dlip.vlm:VLM.load",
    "distill": "dlip.experiments.run:distill",
    "evaluate": "dlip.evaluation.tasks:evaluate",
}


def __getattr__(name: str):
    """Imports torch only when one of `_HOMES` is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pkgutil import resolve_name

    return resolve_name(_HOMES[name])
