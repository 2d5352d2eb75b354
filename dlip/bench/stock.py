"""Captioning, image states and ITM scores here and in stock transformers, with the same random weights."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from dlip.bench import alternate, row
from dlip.bench.precision import export_graphs
from dlip.bench.step import random_model
from dlip.common.errors import UserError
from dlip.export.onnx_runner import Part, Runner
from dlip.export.transformers import to_stock
from dlip.models.fast.precision import PRECISIONS, convert_precision, pack
from dlip.models.generate import generate, until_sep
from dlip.models.med import Med
from dlip.models.token_ids import first_token
from dlip.vlm import VLM

SIZES, BATCHES = ("blip-base", "dlip-small"), (1, 8)
BEAMS, TOKENS, TEXT, TOLERANCE = 3, 20, 12, 1e-3
Calls = dict[str, Callable[[], object]]


def run(rounds: int = 5) -> tuple[dict, list[dict]]:
    """224 px, fp32 unless stated; captions with 3 beams and 20 tokens, end to end; pairs of an image and 12 tokens.

    ratio: relative to stock with the same weights. base_ratio: a caption relative to stock BLIP-Base. packed:
    `dlip.models.fast.precision.pack`, which bf16 and int8 include. onnx, onnx-int8: graphs of
    `dlip.export.onnx_export.to_onnx`. Outputs in fp32 are compared before anything is timed: tokens must be equal,
    numbers within 1e-3. Raises UserError if they differ.
    """
    groups = {}
    with TemporaryDirectory() as folder:
        for size in SIZES:
            vlm = random_model(size)
            parts = graphs(vlm, Path(folder) / size)
            for batch in BATCHES:
                calls = implementations(vlm.med.eval(), parts, batch)
                groups |= {f"{size}, {output} of {batch}": by_name for output, by_name in calls.items()}
        for output, by_name in groups.items():
            expected = by_name["stock"]()
            for name in ("here", "here, packed", "onnx"):
                if name in by_name and not same(expected, by_name[name]()):
                    raise UserError(f"nothing was timed: the {output} by {name} differs from stock transformers")
        calls = {f"{output}: {name}": call for output, by_name in groups.items() for name, call in by_name.items()}
        times, rows = alternate(calls, rounds), []
    for output, by_name in groups.items():
        base = times.get(f"{output.replace(SIZES[1], SIZES[0])}: stock")
        for name in by_name:
            seconds = times[f"{output}: {name}"]
            more = {"base_ratio": row("", seconds, base, "s")["ratio"]} if "caption" in output else {}
            rows.append(row(f"{output}: {name}", seconds, times[f"{output}: stock"], "s", **more))
    settings = {"image_size": 224, "beams": BEAMS, "tokens": TOKENS, "text_tokens": TEXT, "rounds": rounds}
    return settings | {"threads": torch.get_num_threads()}, rows


def graphs(vlm: VLM, folder: Path) -> dict[str, Part]:
    """The loaded graphs of a model, in fp32 and int8."""
    vlm.save(folder / "model")
    folders = export_graphs(str(folder / "model"), folder)
    return {name: Runner(path, torch.get_num_threads()).part("lm") for name, path in folders.items()}


def implementations(med: Med, parts: dict[str, Part], batch: int) -> dict[str, Calls]:
    """Output for `batch` images -> the implementations that compute it."""
    c = med.config
    captioner, matcher = to_stock(med, "captioning"), to_stock(med, "retrieval")
    names = {"packed": "fp32"} | {name: name for name in PRECISIONS[1:]}
    served = {name: pack(convert_precision(copy.deepcopy(med), precision)) for name, precision in names.items()}
    images = torch.randint(256, (batch, c.image_size, c.image_size, 3), dtype=torch.uint8)
    pixels = med.normalize(images.permute(0, 3, 1, 2))
    prompt = torch.full((batch, 1), c.dec_id)
    ids = first_token(torch.randint(10, c.vocab_size, (batch, TEXT)), c.enc_id)
    mask = torch.ones_like(ids, dtype=torch.bool)
    length = dict(num_beams=BEAMS, max_new_tokens=TOKENS, min_new_tokens=TOKENS)

    @torch.inference_mode()
    def caption(model: Med):
        return generate(model, model.encode_image(pixels.to(model.temp.dtype)), None, prompt, **length)

    def stock_caption():
        rows = captioner.generate(pixel_values=pixels, do_sample=False, **length)
        return [until_sep(row, med.config.sep_id, 1) for row in rows.tolist()]

    def graph_states(part: Part):
        return torch.from_numpy(part.run("image", ["states"], pixels=images.numpy())[0])

    def graph_caption(part: Part):
        context = graph_states(part).numpy()
        rows = part.search(context, np.ones(context.shape[:2], bool), [c.dec_id], BEAMS, TOKENS)
        return [[c.dec_id, *row] for row in rows]

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


def same(expected, actual) -> bool:
    return actual == expected if isinstance(actual, list) else torch.allclose(actual, expected, TOLERANCE, TOLERANCE)
