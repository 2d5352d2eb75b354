"""Where a record's numbers stand, and what a line has to have to be a record (dlip/records/read.py says what they
mean)."""

import re

from dlip.records.outcomes import outcomes

SCHEMA = 2
ROLES = ("teacher", "undistilled", "distilled")
SCORES = {
    **{f"{way}{k}": ("metrics", "retrieval", f"{way}@{k}") for way in ("tr", "ir") for k in (1, 5, 10)},
    **{name: ("metrics", "captioning", name) for name in ("bleu4", "meteor", "rougeL", "cider", "spice")},
    "vqa": ("metrics", "vqa", "accuracy"),
    **{name: ("metrics", "attention", "fusion", name) for name in ("pointing", "mass")},
    **{f"{name}_decoder": ("metrics", "attention", "decoder", name) for name in ("pointing", "mass")},
}
COSTS = {
    "params_m": ("efficiency", "params_m"),
    "flops_g": ("efficiency", "flops_g"),
    "latency_ms": ("efficiency", "latency", "p50_ms"),
    "latency_p95_ms": ("efficiency", "latency", "p95_ms"),
    "latency_share": ("efficiency", "latency", "share"),
    "params_m_paper": ("efficiency", "params_m_paper"),
    "macs_g_paper": ("efficiency", "macs_g_paper"),
}
"""Column -> its place in a record. Of scores more is better, of costs less."""
HEADLINE_SCORES = {"tr1": "TR@1", "ir1": "IR@1", "cider": "CIDEr", "vqa": "VQA"}
"""Column of each headline score -> its printed name."""
OTHER_FIGURES = {
    **{name: ("metrics", "attention", "fusion", name) for name in ("pointing_other", "mass_other", "divergence")},
    **{f"{n}_decoder": ("metrics", "attention", "decoder", n) for n in ("pointing_other", "mass_other", "divergence")},
}
"""Column -> its place, of figures that are neither."""
NUMBERS = [*SCORES, *COSTS, *OTHER_FIGURES]
REQUIRED_KEYS = {
    **dict.fromkeys(("id", "created", "name", "role", "data", "split", "command", "config_hash"), str),
    **dict.fromkeys(("config", "losses", "metrics", "efficiency"), dict), "seed": int, "samples": list,
    "train_images": int, "wall_s": (int, float),
}  # fmt: skip
FAILURE_KEYS = {"failed": str, "created": str, "name": str, "role": str, "seed": int, "ablation": dict}
"""What a line has to have, and of which kind, for a record or for a failed run."""
MAX_THREADS = 4096
"""More cannot be started to make a record again."""


def upgrade(record: dict) -> dict:
    """A record or failed run of schema 1 in the form of schema 2; one of another schema unchanged.

    Renamed keys: "train_pictures" -> "train_images", the task "caption" -> "captioning" in "metrics" and "notes",
    "pictures" -> "images" in the metrics "attention" and in "inputs".
    """
    if record.get("schema") != 1:
        return record
    record = _renamed(record, {"train_pictures": "train_images"}) | {"schema": 2}
    if isinstance(metrics := record.get("metrics"), dict):
        record["metrics"] = metrics = _renamed(metrics, {"caption": "captioning"})
        if isinstance(attention := metrics.get("attention"), dict):
            metrics["attention"] = _renamed(attention, {"pictures": "images"})
    if isinstance(inputs := record.get("inputs"), dict):
        record["inputs"] = _renamed(inputs, {"pictures": "images"})
    if isinstance(notes := record.get("notes"), dict):
        record["notes"] = {re.sub(r"^caption\b", "captioning", name): note for name, note in notes.items()}
    return record


def _renamed(table: dict, names: dict[str, str]) -> dict:
    return {names.get(key, key): value for key, value in table.items()}


def find(record: dict, *place: str):
    """What stands at a place; None where there is nothing. Raises AttributeError where a table is none."""
    value = record
    for key in place:
        value = (value or {}).get(key)
    return value


def numbers(record: dict) -> dict:
    """Column -> number or None, also vqa.<type> and w.<term>. Raises AttributeError as `find`."""
    found = {column: find(record, *place) for column, place in (SCORES | COSTS | OTHER_FIGURES).items()}
    found |= {f"vqa.{kind}": value for kind, value in (find(record, "metrics", "vqa", "by_type") or {}).items()}
    return found | {f"w.{term}": value for term, value in (find(record, "config", "train", "weights") or {}).items()}


def sizes(model: dict | None) -> str:
    """A model configuration in a few words."""
    if not model:
        return ""
    image, text = (f"{part} {model[f'{part}_width']} x {model[f'{part}_layers']}" for part in ("image", "text"))
    return f"{image}, {text}, fusion in {len(model['fusion_layers'])}"


def _tells(before: dict) -> bool:
    """Whether a run of a record's history tells where it was and how it was made."""
    return isinstance(before.get("folder"), str) and isinstance(before.get("command"), str | None)


def is_record(line: dict) -> bool:
    """Whether a line has what a record, or a failed run, has, each of its kind."""
    failed = "failed" in line
    has_all = all(isinstance(line.get(key), kind) for key, kind in (FAILURE_KEYS if failed else REQUIRED_KEYS).items())
    if failed or not has_all:
        return has_all
    try:
        "".join(value for value in line.values() if isinstance(value, str)).encode()  # no halves of characters
        sizes(line["config"].get("model"))
        values = numbers(line).values()
        outcomes(line)
    except (AttributeError, KeyError, TypeError, ValueError):  # halves of characters are a ValueError too
        return False
    threads, history = line.get("threads", 1), line.get("history", [])
    return (
        line["role"] in ROLES
        and type(threads) is int
        and 0 < threads <= MAX_THREADS
        and all(isinstance(line.get(key), dict | None) for key in ("machine", "inputs", "releases"))
        and isinstance(history, list)
        and all(isinstance(before, dict) and _tells(before) for before in history)
        and all(value is None or (isinstance(value, int | float) and type(value) is not bool) for value in values)
    )
