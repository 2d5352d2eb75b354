"""The table of `dlip models`: parameters and FLOPs of the named sizes, beside the paper's printed figures."""

import pandas as pd

from dlip.cost.count import NEW_TOKENS, TEXT_TOKENS, paper_count, params, task_macs, task_params
from dlip.models.config import IMAGE_SIZES, PRESETS, TEXT_SIZES, ModelConfig, paper_size
from dlip.models.tasks import TASKS

PRINTED = {
    "image-base": (85.6, 16.9), "image-middle": (48.3, 9.51),
    "image-small": (21.6, 4.25), "image-tiny": (5.48, 1.08),
    "text-base": (137.3, 2.25), "text-middle": (59.6, 0.88),
    "text-small": (26.1, 0.32), "text-tiny": (9.61, 0.10),
    "blip-base": (213.6, 17.8), "dlip-mid": (107.9, 10.4), "dlip-small": (47.7, 4.4),
}  # fmt: skip
"""Millions of parameters and "FLOPs" in G as the paper prints them (arXiv 2308.12956, table of sizes)."""

NOTES = f"""\
Params: stored tensors, tied ones once. GFLOPs: 2 per multiply-accumulate, attention products too.
A pair: an image and a text of {TEXT_TOKENS} tokens, encoded alone (text) and with its image (fusion).
A caption: {NEW_TOKENS["captioning"]} tokens; an answer: {NEW_TOKENS["vqa"]}; greedy, keys and values cached.
The paper's count: image encoder without positions, text encoder with cross-attention, no heads,
no decoder; GMACs of linear layers and patch embedding, the text read alone. dev: from the printed.
The feed-forward width of text-middle and -tiny is not published: 4x is used, and none gives both of
their printed figures. text-base's 2.25 reads like 2.55; blip-base's are not the sums of its parts."""


def models_table() -> pd.DataFrame:
    """One row for each of the paper's encoders (`part` image or text) and each preset (`part` both), by name.

    Columns: params_m (and params_<module>_m, params_<task>_m for a model of one task), flops_g of a pair (and
    flops_<pass>_g, flops_<task>_g); in the paper's count paper_params_m and paper_macs_g (and
    paper_image_params_m and so on) beside printed_params_m and printed_macs_g, with params_dev and macs_dev
    in %. Missing values are NaN.
    """
    rows = [_row(f"image-{size}", paper_size(size, size), "image") for size in IMAGE_SIZES]
    rows += [_row(f"text-{size}", paper_size(size, size), "text") for size in TEXT_SIZES]
    rows += [_row(name, config, "both") for name, config in PRESETS.items()]
    return pd.DataFrame(rows).set_index("model")


def _row(name: str, c: ModelConfig, part: str) -> dict:
    count, paper = params(c), paper_count(c)
    modules = {name: count[name] for name in ("image", "fusion", "decoder", "lm_head")}
    modules["text"] = count["embeddings"] + count["text_self"] + count["text_ffn"]
    modules["heads"] = count["itc"] + count["itm"] + count["bridge"]
    flops = {name: macs.flops for name, macs in task_macs(c, "retrieval").items()}
    own = {"image": ("image",), "text": ("text", "fusion"), "both": tuple(modules)}[part]
    row = {"model": name, "part": part, "params_m": sum(modules[m] for m in own) / 1e6}
    row |= {f"params_{m}_m": modules[m] / 1e6 for m in own}
    row["flops_g"] = sum(flops[m] for m in own if m in flops) / 1e9
    row |= {f"flops_{m}_g": flops[m] / 1e9 for m in own if m in flops}
    if part == "both":
        row |= {f"params_{task}_m": count / 1e6 for task, count in task_params(c).items() if task != "all"}
        row |= {f"flops_{task}_g": sum(m.flops for m in task_macs(c, task).values()) / 1e9 for task in TASKS}
    for figure, unit in (("params_m", 1e6), ("macs_g", 1e9)):
        sides = ("image", "text") if part == "both" else (part,)
        by_side = {side: paper[f"{side}_{figure[:-2]}"] / unit for side in sides}
        row[f"paper_{figure}"] = sum(by_side.values())
        row |= {f"paper_{side}_{figure}": value for side, value in by_side.items()}
    if name in PRINTED:
        row["printed_params_m"], row["printed_macs_g"] = PRINTED[name]
        row["params_dev"] = 100 * (row["paper_params_m"] / row["printed_params_m"] - 1)
        row["macs_dev"] = 100 * (row["paper_macs_g"] / row["printed_macs_g"] - 1)
    return row


BLOCKS = {
    "Parameters, M: by module, and of the model of one task": {
        "params_m": "total", "params_image_m": "image", "params_text_m": "text", "params_fusion_m": "fusion",
        "params_decoder_m": "decoder", "params_lm_head_m": "LM head", "params_heads_m": "ITC, ITM",
        **{f"params_{task}_m": task for task in TASKS},
    },
    "GFLOPs: of a pair, by pass, and of the other tasks": {
        "flops_g": "pair", "flops_image_g": "image", "flops_text_g": "text", "flops_fusion_g": "fusion",
        "flops_heads_g": "ITC, ITM", "flops_captioning_g": "caption", "flops_vqa_g": "answer",
    },
    "In the paper's count, beside its printed figures": {
        "paper_params_m": "params M", "paper_image_params_m": "image", "paper_text_params_m": "text",
        "printed_params_m": "printed", "params_dev": "dev %",
        "paper_macs_g": "GMACs", "paper_image_macs_g": "image", "paper_text_macs_g": "text",
        "printed_macs_g": "printed", "macs_dev": "dev %",
    },
}  # fmt: skip


def models_text(table: pd.DataFrame) -> str:
    """`models_table()` for the terminal, at most 120 columns wide."""
    out, formats = [], {"dev %": "{:+.1f}".format}
    for title, columns in BLOCKS.items():
        cells = table[list(columns)].rename(columns=columns).rename_axis(None)
        out.append(f"{title}\n{cells.to_string(formatters=formats, float_format=_figure, na_rep='')}")
    return "\n\n".join([*out, NOTES])


def _figure(x: float) -> str:
    return "<0.001" if x < 0.001 else f"{x:.1f}" if x >= 100 else f"{x:#.3g}"
