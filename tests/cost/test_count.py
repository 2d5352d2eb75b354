"""Counts against hand-made ones, against a real model, and against the paper's table of sizes."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import dlip
from dlip.checkpoints.tensors import weights
from dlip.cost.count import (
    image_macs,
    needed_params,
    params,
    retrieval_macs,
    summary,
    task_macs,
    task_params,
)
from dlip.cost.latency import Workload
from dlip.cost.sizes import PRINTED, models_table
from dlip.models.composite import Composite
from dlip.models.config import PRESETS, ModelConfig, scenes_size
from dlip.models.med import Med
from dlip.models.tasks import TASKS
from tests.checkpoints.dual_helpers import FAMILIES, SIZES, dual_folder

TINY = ModelConfig(
    image_size=8, patch_size=4, image_width=6, image_heads=2, image_layers=1, image_mlp=5,
    text_width=4, text_heads=2, text_layers=2, text_mlp=3, fusion_layers=(1,), embed_dim=2,
    vocab_size=11, max_positions=16, max_text=16, cls_id=1, sep_id=2, dec_id=3, enc_id=4,
)  # fmt: skip
ODD = [
    TINY,
    ModelConfig(**{**TINY.to_dict(), "tie_decoder": False}),
    ModelConfig(**{**TINY.to_dict(), "text_width": 6, "text_heads": 3, "prompt_ids": (5, 6), "tie_head": False}),
    ModelConfig(**{**TINY.to_dict(), "image_layers": 3, "text_layers": 3, "fusion_layers": None}),
]


NAMES = (
    ("vision_model.", "image"), ("text_encoder.embeddings.", "embeddings"), ("text_decoder.bert.", "decoder"),
    ("text_decoder.cls.", "lm_head"), (".crossattention.", "fusion"), (".attention.", "text_self"),
    ("text_encoder.", "text_ffn"), ("_proj.", "itc"), ("temp", "itc"), ("itm_head.", "itm"),
    ("question_bridge.", "bridge"),
)  # fmt: skip
"""Part of a parameter's name -> its module; the first that fits."""


def stored_params(med: Med) -> dict[str, int]:
    """Parameters by module as in `params`, counted in a model; a shared tensor once, where it is first."""
    out = dict.fromkeys(params(med.config), 0)
    for name, tensor in weights(med).items():
        out[next(module for part, module in NAMES if part in name)] += tensor.numel()
    return out


def test_parameters_by_hand():
    assert params(TINY) == {
        # patches 48x6+6, four positions and the class token's and itself, then qkv, projection, MLP, three norms
        "image": 294 + 36 + (6 * 18 + 18) + (36 + 6) + (6 * 5 + 5) + (5 * 6 + 6) + 36,
        "embeddings": 11 * 4 + 16 * 4 + 8,
        "text_self": 2 * (4 * (16 + 4) + 8),
        "text_ffn": 2 * ((4 * 3 + 3) + (3 * 4 + 4) + 8),
        "fusion": 2 * (16 + 4) + 2 * (6 * 4 + 4) + 8,  # of one layer; keys and values come from width 6
        "decoder": 2 * (4 * (16 + 4) + 8),
        "lm_head": (16 + 4) + 8 + 11,  # the matrix to the words is the embeddings'
        "itc": (6 * 2 + 2) + (4 * 2 + 2) + 1,
        "itm": 4 * 2 + 2,
        "bridge": 4 * 6 + 6,
    }


@pytest.mark.parametrize("config", [*ODD, *PRESETS.values()])
def test_formula_equals_the_model(config):
    with torch.device("meta"):
        med = Med(config)
    assert stored_params(med) == params(config)
    assert sum(params(config).values()) == sum(t.numel() for t in weights(med).values()) == task_params(config)["all"]


def test_published_parameters_of_blip():
    assert round(task_params(PRESETS["blip-base"])["retrieval"] / 1e6, 1) == 223.5


def test_image_flops_by_hand():
    macs = image_macs(TINY)
    assert macs.linear == 4 * 48 * 6 + 5 * (4 * 36 + 2 * 6 * 5)  # four patches, five tokens
    assert macs.attention == 2 * 5 * 5 * 6
    assert macs.flops == 2 * (macs.linear + macs.attention)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("config", ODD)
def test_flops_equal_those_of_torch(config, task, beams):
    work = Workload(Med(config), task, batch=1, beams=beams, tokens=4, text_tokens=7)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    formula = task_macs(config, task, text_tokens=7, new_tokens=4, beams=beams)
    assert sum(macs.flops for macs in formula.values()) == counter.get_total_flops()


CONSISTENT = {
    "params": {*PRINTED} - {"text-tiny", "blip-base"},  # width not published; not the sum of its printed parts
    "macs": {f"image-{size}" for size in ("base", "middle", "small", "tiny")} | {"text-small", "dlip-mid"},
}


def test_the_papers_table():
    table = models_table()
    assert (table.loc[sorted(CONSISTENT["params"]), "params_dev"].abs() < 1.5).all()
    assert (table.loc[sorted(CONSISTENT["macs"]), "macs_dev"].abs() < 1.5).all()
    assert table.loc["text-base", "paper_macs_g"] == pytest.approx(2.55, rel=0.015)  # printed as 2.25
    assert table.loc["text-middle", "paper_params_m"] == pytest.approx(60.4, abs=0.05)  # feed-forward 4x


def test_summaries_add_up():
    figures = summary(Med(TINY))
    assert figures["params_by_module"] == params(TINY) and figures["params_by_task"] == task_params(TINY)
    assert figures["params_m"] * 1e6 == pytest.approx(sum(figures["params_by_module"].values()))
    assert figures["flops_g"] * 1e9 == pytest.approx(sum(figures["flops_by_module"].values()))


def test_parameters_of_single_task_checkpoints():
    ranks, writes = Med(TINY), Med(TINY)
    ranks.abilities, writes.abilities = frozenset({"itc", "itm"}), frozenset({"lm"})
    alone = task_params(TINY)
    assert summary(ranks)["params_m"] * 1e6 == pytest.approx(alone["retrieval"])
    assert summary(writes)["params_m"] * 1e6 == pytest.approx(alone["captioning"])
    both = summary(Composite([ranks, writes]))["params_m"] * 1e6
    assert both == pytest.approx(alone["retrieval"] + alone["captioning"])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_dual_encoders_against_torchs_counter(family, size, tmp_path):
    """Every matrix product of an image and a text, as torch sees them executed; every parameter once."""
    vlm = dlip.load(dual_folder(tmp_path, family, size))
    med, c = vlm.med, vlm.med.config
    images = torch.zeros(1, 3, c.image_size, c.image_size, dtype=torch.uint8)
    ids, mask = vlm.tokenize(["a" * 9 if family == "clip" else "a"])
    macs = retrieval_macs(med, text_tokens=ids.shape[1])
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for name, compute in {
            "image": lambda: med.encode_image(med.normalize(images)),
            "text": lambda: med.encode_text(ids, mask),
        }.items():
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                compute()
            head = 2 * c.text_width * c.embed_dim if (name, c.class_token) == ("text", False) else 0
            assert counter.get_total_flops() == macs[name].flops + head  # SigLIP's text encoder ends with its head
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    figures = summary(med)
    assert figures["params_m"] * 1e6 == pytest.approx(sum(p.numel() for p in med.parameters()))
    assert figures["flops_g"] > 0 and needed_params(med) == figures["params_by_module"]
    both = Composite([med, Med(scenes_size(16, 1, 1))])
    assert sum(needed_params(both).values()) > sum(needed_params(med).values())
