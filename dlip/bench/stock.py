"""A caption, a picture's states and a pair's score, here and in stock transformers, on the same random weights."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from dlip.bench import by_turns, row
from dlip.bench.precision import written
from dlip.bench.step import words
from dlip.common.errors import UserError
from dlip.data.scenes.dataset import Scenes
from dlip.experiments.run import new_model
from dlip.export.onnx_runner import Part, Runner
from dlip.export.transformers import to_stock
from dlip.models.fast.precision import PRECISIONS, lower, pack
from dlip.models.generate import generate, until_sep
from dlip.models.med import Med
from dlip.models.token_ids import first_token
from dlip.vlm import VLM

SIZES, BATCHES = ("blip-base", "dlip-small"), (1, 8)
BEAMS, TOKENS, TEXT, TOLERANCE = 3, 20, 12, 1e-3
Calls = dict[str, Callable[[], object]]


def run(rounds: int = 5) -> tuple[dict, list[dict]]:
    """224 px, fp32 unless said; captions of 3 beams and 20 tokens, end to end; pairs of a picture and 12 tokens.

    ratio: against stock on the same weights; base_ratio: a caption against that of stock BLIP-Base. packed:
    `dlip.models.fast.precision.pack`, as bf16 and int8 are always; onnx, onnx-int8: as
    `dlip.export.onnx_export.to_onnx` writes them.
    Outputs in fp32 are compared before anything is timed: tokens are the same, numbers within 1e-3. Raises UserError
    where they are not.
    """
    vocabulary, groups = words(Scenes("train-small", size=16)), {}
    with TemporaryDirectory() as place:
        for size in SIZES:
            torch.manual_seed(0)
            vlm = new_model(size, vocabulary, 0)
            parts = graphs(vlm, Path(place) / size)
            for batch in BATCHES:
                calls = compared(vlm.med.eval(), parts, batch)
                groups |= {f"{size}, {what} of {batch}": some for what, some in calls.items()}
        for name, some in groups.items():
            wanted = some["stock"]()
            for who in ("here", "here, packed", "onnx"):
                if who in some and not same(wanted, some[who]()):
                    raise UserError(f"nothing is timed: {name} has another result {who} than in stock transformers")
        calls = {f"{name}: {who}": call for name, some in groups.items() for who, call in some.items()}
        times, rows = by_turns(calls, rounds), []
    for name, some in groups.items():
        base = times.get(f"{name.replace(SIZES[1], SIZES[0])}: stock")
        for who in some:
            mine = times[f"{name}: {who}"]
            more = {"base_ratio": row("", mine, base, "s")["ratio"]} if "caption" in name else {}
            rows.append(row(f"{name}: {who}", mine, times[f"{name}: stock"], "s", **more))
    settings = {"image_size": 224, "beams": BEAMS, "tokens": TOKENS, "text_tokens": TEXT, "rounds": rounds}
    return settings | {"threads": torch.get_num_threads()}, rows


def graphs(vlm: VLM, place: Path) -> dict[str, Part]:
    """Those of `dlip.bench.precision.written`, opened."""
    vlm.save(place / "model")
    folders = written(str(place / "model"), place)
    return {name: Runner(path, torch.get_num_threads()).part("lm") for name, path in folders.items()}


def compared(med: Med, parts: dict[str, Part], batch: int) -> dict[str, Calls]:
    """What is done with `batch` pictures -> by whom."""
    c = med.config
    captioner, matcher = to_stock(med, "captioning"), to_stock(med, "retrieval")
    names = {"packed": "fp32"} | {name: name for name in PRECISIONS[1:]}
    served = {name: pack(lower(copy.deepcopy(med), precision)) for name, precision in names.items()}
    seen = torch.randint(256, (batch, c.image_size, c.image_size, 3), dtype=torch.uint8)
    pixels = med.normalize(seen.permute(0, 3, 1, 2))
    prompt = torch.full((batch, 1), c.dec_id)
    ids = first_token(torch.randint(10, c.vocab_size, (batch, TEXT)), c.enc_id)
    mask = torch.ones_like(ids, dtype=torch.bool)
    length = dict(num_beams=BEAMS, max_new_tokens=TOKENS, min_new_tokens=TOKENS)

    @torch.inference_mode()
    def caption(model: Med):
        return generate(model, model.encode_image(pixels.to(model.temp.dtype)), None, prompt, **length)

    def stock_caption():
        found = captioner.generate(pixel_values=pixels, do_sample=False, **length)
        return [until_sep(row, med.config.sep_id, 1) for row in found.tolist()]

    def graph_states(part: Part):
        return torch.from_numpy(part.run("image", ["states"], pixels=seen.numpy())[0])

    def graph_caption(part: Part):
        context = graph_states(part).numpy()
        found = part.search(context, np.ones(context.shape[:2], bool), [c.dec_id], BEAMS, TOKENS)
        return [[c.dec_id, *row] for row in found]

    @torch.inference_mode()
    def states(model: Med):
        return model.encode_image(pixels)

    @torch.inference_mode()
    def pair(model: Med):
        return model.match_logits(model.fuse(ids, mask, model.encode_image(pixels)))

    @torch.inference_mode()
    def stock_pair():
        return matcher(ids, pixels, attention_mask=mask).itm_score

    return {
        "caption": {
            "stock": stock_caption, "here": partial(caption, med),
            **{f"here, {name}": partial(caption, other) for name, other in served.items()},
            **{name: partial(graph_caption, part) for name, part in parts.items()},
        },
        "states": {
            "stock": torch.inference_mode()(lambda: matcher.vision_model(pixels).last_hidden_state),
            "here": partial(states, med), "here, packed": partial(states, served["packed"]),
            **{name: partial(graph_states, part) for name, part in parts.items()},
        },
        "pair": {"stock": stock_pair, "here": partial(pair, med), "here, packed": partial(pair, served["packed"])},
    }  # fmt: skip


def same(theirs, ours) -> bool:
    return ours == theirs if isinstance(ours, list) else torch.allclose(ours, theirs, TOLERANCE, TOLERANCE)
