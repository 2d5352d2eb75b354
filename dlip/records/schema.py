"""Keys of a record: where its figures are, which keys are required, what its hash covers.

`dlip/records/__init__.py` documents what each key and column means.
"""

import hashlib
import json
from collections.abc import Collection

from dlip.records.outcomes import outcomes

SCHEMA = 3
ROLES = ("teacher", "undistilled", "distilled", "quantized")
SCORES = {
    **{f"{recall}{k}": ("metrics", "retrieval", f"{recall}@{k}") for recall in ("tr", "ir") for k in (1, 5, 10)},
    **{name: ("metrics", "retrieval", f"{name[:-1]}@1") for name in ("joint_tr1", "joint_ir1", "itc_tr1", "itc_ir1")},
    **{name: ("metrics", "captioning", name) for name in ("bleu4", "meteor", "rougeL", "cider", "spice")},
    "facts_f1": ("metrics", "captioning", "facts_f1"),
    "vqa": ("metrics", "vqa", "accuracy"),
    "vqa_mean": ("metrics", "vqa", "mean_by_type"),
    **{name: ("metrics", "attention", "fusion", name) for name in ("pointing", "mass")},
    **{f"{name}_decoder": ("metrics", "attention", "decoder", name) for name in ("pointing", "mass")},
}
"""Column -> path in a record, of figures of which more is better."""
COSTS = {
    "params_m": ("efficiency", "params_m"),
    "weights_mb": ("efficiency", "weights_mb"),
    "flops_g": ("efficiency", "flops_g"),
    "latency_ms": ("efficiency", "latency", "p50_ms"),
    "latency_p95_ms": ("efficiency", "latency", "p95_ms"),
    "latency_share": ("efficiency", "latency", "share"),
    "params_m_paper": ("efficiency", "params_m_paper"),
    "macs_g_paper": ("efficiency", "macs_g_paper"),
}
"""Column -> path in a record, of figures of which less is better."""
OTHER_FIGURES = {
    **{name: ("metrics", "attention", "fusion", name) for name in ("pointing_other", "mass_other", "divergence")},
    **{f"{n}_decoder": ("metrics", "attention", "decoder", n) for n in ("pointing_other", "mass_other", "divergence")},
}
"""Column -> path in a record, of figures that are neither a score nor a cost."""
FIGURES = [*SCORES, *COSTS, *OTHER_FIGURES]
HEADLINE_SCORES = {"ir1": "IR@1", "facts_f1": "facts F1", "vqa_mean": "VQA"}
"""Column of each headline score of scenes -> its printed name. One per task, and none that a good model saturates."""
TABLE_SCORES = HEADLINE_SCORES | {"tr1": "TR@1", "cider": "CIDEr"}
"""Columns of scores in tables -> their printed names: the headline scores, then others that papers print."""


def headline_scores(measured: Collection[str]) -> dict[str, str]:
    """The headline scores among measured columns -> their printed names.

    Captions of photographs have no facts: their score is CIDEr.
    """
    columns = ("ir1", "facts_f1" if "facts_f1" in measured else "cider", "vqa_mean")
    return {column: TABLE_SCORES[column] for column in columns if column in measured}


REQUIRED_KEYS = {
    **dict.fromkeys(("id", "created", "name", "role", "data", "split", "command", "config_hash"), str),
    **dict.fromkeys(("python", "torch", "transformers", "device"), str), "seed": int, "train_images": int,
    **dict.fromkeys(("config", "losses", "metrics", "efficiency", "notes", "code"), dict), "samples": list,
    "threads": int, "wall_s": (int, float),
}  # fmt: skip
"""Key of a record -> its type."""
FAILED_RUN_KEYS = {"failed": str, "created": str, "name": str, "role": str, "seed": int, "ablation": dict}
"""Key of a failed run's line -> its type."""
MAX_THREADS = 4096
"""Limit on "threads": `dlip rerun` starts as many."""


def config_hash(config: dict) -> str:
    """SHA-256 of a configuration in canonical JSON, without its name and its seeds (at the top level and in "train").

    Runs that differ only in their seed share a hash, whatever the order of their keys.
    """
    parts = {key: value for key, value in config.items() if key not in ("seed", "name")}
    if "train" in parts:
        parts["train"] = {key: value for key, value in parts["train"].items() if key != "seed"}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def value_at(record: dict, *path: str):
    """The value at a path of keys; None if it is missing. Raises AttributeError if a key leads into a non-table."""
    value = record
    for key in path:
        value = (value or {}).get(key)
    return value


def figures(record: dict) -> dict:
    """Column -> number or None, with facts.<kind>, vqa.<type> and w.<term>. Raises AttributeError as `value_at`."""
    row = {column: value_at(record, *path) for column, path in (SCORES | COSTS | OTHER_FIGURES).items()}
    row |= {f"vqa.{kind}": value for kind, value in (value_at(record, "metrics", "vqa", "by_type") or {}).items()}
    facts = value_at(record, "metrics", "captioning", "facts") or {}
    row |= {f"facts.{kind}": value_at(scores, "f1") for kind, scores in facts.items()}
    return row | {f"w.{term}": value for term, value in (value_at(record, "config", "train", "weights") or {}).items()}


def model_size(model: dict | None) -> str:
    """A model configuration in a few words: `image 80 x 4, text 80 x 2, fusion in 2` (width x layers), with the image
    backbone's name before it."""
    if not model:
        return ""
    image, text = (f"{part} {model[f'{part}_width']} x {model[f'{part}_layers']}" for part in ("image", "text"))
    backbone = f"{name}, " if (name := model.get("image_backbone")) else ""
    return f"{backbone}{image}, {text}, fusion in {len(model['fusion_layers'])}"


def is_record(line: dict) -> bool:
    """Whether a line has every required key of a record, or of a failed run, with a value of the right type."""
    failed = "failed" in line
    required = FAILED_RUN_KEYS if failed else REQUIRED_KEYS
    complete = all(isinstance(line.get(key), kind) for key, kind in required.items())
    if failed or not complete:
        return complete
    try:
        "".join(value for value in line.values() if isinstance(value, str)).encode()  # fails on lone surrogates
        model_size(line["config"].get("model"))
        values = figures(line).values()
        outcomes(line)
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
    threads, history, grid = line["threads"], line.get("history", []), line.get("ablation", {"hash": ""})
    return (
        line["role"] in ROLES
        and type(threads) is int
        and 0 < threads <= MAX_THREADS
        and all(
            isinstance(line.get(key), dict | None) for key in ("machine", "inputs", "releases", "bounds", "evaluations")
        )
        and isinstance(grid, dict)
        and isinstance(grid.get("hash"), str)
        and isinstance(history, list)
        and all(isinstance(run, dict) and _has_origin(run) for run in history)
        and all(value is None or (isinstance(value, int | float) and type(value) is not bool) for value in values)
    )


def _has_origin(run: dict) -> bool:
    """Whether a run of a record's history names its folder and its command."""
    return isinstance(run.get("folder"), str) and isinstance(run.get("command"), str | None)
