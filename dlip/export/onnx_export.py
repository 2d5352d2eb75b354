"""Export to ONNX graphs, with a runner that needs neither torch nor this package (dlip/export/onnx_runner.py).

The graphs of a model share one file of weights, as three of them have the text layers. Each graph is compared with
torch before the folder is put in place, and before quantization.
"""

import hashlib
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dlip import __version__
from dlip.common import errors, text
from dlip.common.errors import UserError, first_line
from dlip.common.files import write_json
from dlip.data import transforms
from dlip.export import onnx_runner
from dlip.export.card import TITLES, card
from dlip.export.transformers import record_of, replace_folder
from dlip.models import beam_search
from dlip.models.fast.precision import require_fp32_blip
from dlip.models.features import ABILITIES
from dlip.models.med import KeysValues, Med
from dlip.vlm import MAX_ANSWER_TOKENS, VLM

TOLERANCE = 1e-4
"""Largest difference of a graph's output from torch's, absolute and relative."""
RUNNER_IMPORTS = (transforms, errors, text, beam_search)
"""Modules without torch that the runner imports; they are copied beside it."""


class Graph(nn.Module):
    """A part of a model that becomes one graph; its docstring stands in the card.

    Subclasses have `example(n, t)`, random inputs by name for n images or texts and t tokens. An input that is a list
    becomes one input for each tensor, named with its index (`feed`).
    """

    users: frozenset[str]
    """Abilities that need the graph."""
    axes: dict[str, dict[int, str] | list[dict[int, str]]]
    """Input -> its dynamic dimensions and their names."""
    outputs: list[str]

    def __init__(self, med: Med, abilities: frozenset[str]):
        super().__init__()
        self.med, self.abilities = med, abilities & self.users


class ImageGraph(Graph):
    """`pixels` uint8 [B, S, S, 3] as Pillow has them -> `states` [B, P+1, Di]; ITC's `vector` [B, E]"""

    users, axes = frozenset(ABILITIES), {"pixels": {0: "batch"}}

    @property
    def outputs(self):
        return ["states", "vector"] if "itc" in self.abilities else ["states"]

    def forward(self, pixels: Tensor):
        states = self.med.encode_image(self.med.normalize(pixels.permute(0, 3, 1, 2)))
        return (states, self.med.project_image(states)) if "itc" in self.abilities else (states,)

    def example(self, n: int, t: int):
        side = self.med.config.image_size
        return {"pixels": torch.randint(256, (n, side, side, 3), dtype=torch.uint8)}


class TextGraph(Graph):
    """`ids` int64, `mask` bool [N, T], from [CLS] on -> ITC's `vector` [N, E]"""

    users, outputs = frozenset({"itc"}), ["vector"]
    axes = {"ids": {0: "batch", 1: "tokens"}, "mask": {0: "batch", 1: "tokens"}}

    def forward(self, ids: Tensor, mask: Tensor):
        return (self.med.project_text(self.med.encode_text(ids, mask)),)

    def example(self, n: int, t: int):
        ends = torch.randint(1, t + 1, (n, 1))
        ends[0] = t
        return {"ids": torch.randint(self.med.config.vocab_size, (n, t)), "mask": torch.arange(t) < ends}


class FusionGraph(TextGraph):
    """`ids`, `mask` [N, T], `states` of each text's image [N, P+1, Di] -> ITM's logits `match` [N, 2], index 1 is a
    match; states `question` [N, T, Di] that the decoder answers from"""

    users, axes = frozenset({"itm", "vqa"}), {**TextGraph.axes, "states": {0: "batch"}}

    @property
    def outputs(self):
        return [name for name, ability in (("match", "itm"), ("question", "vqa")) if ability in self.abilities]

    def forward(self, ids: Tensor, mask: Tensor, states: Tensor):
        fused = self.med.fuse(ids, mask, states)
        match = (self.med.match_logits(fused),) if "itm" in self.abilities else ()
        return *match, *((self.med.question_states(fused),) if "vqa" in self.abilities else ())

    def example(self, n: int, t: int):
        c = self.med.config
        return {**super().example(n, t), "states": torch.randn(n, c.grid**2 + 1, c.image_width)}


class ContextGraph(Graph):
    """`context` [B, S, Di] of an image or a question -> the decoder's cross-attention keys and values, 2 F tensors
    [B, H, S, d]: `cross0` and `cross1` of the first fusion layer, and so on"""

    users, axes = frozenset({"lm", "vqa"}), {"context": {0: "batch", 1: "positions"}}

    @property
    def outputs(self):
        return [f"cross{i}" for i in range(2 * len(self.med.config.fusion_layers))]

    def forward(self, context: Tensor):
        return tuple(values for kv in self.med.text_decoder.bert.cross(context) if kv for values in kv)

    def example(self, n: int, t: int):
        return {"context": torch.randn(n, t, self.med.config.image_width)}


class DecoderGraph(Graph):
    """`token` int64 [B, K] of each beam, `past` [L, 2, B, K, H, t, d], `mask` of the context bool [B, S], `cross0`...
    -> the N most probable next `tokens` of each beam, int64 [B, K, N], and their log-probabilities `scores`;
    `present` [L, 2, B, K, H, t+1, d]. N is 2K, and more where repetitions are forbidden."""

    users, outputs = frozenset({"lm", "vqa"}), ["scores", "tokens", "present"]

    @property
    def axes(self):
        return {
            "token": {0: "batch", 1: "beams"}, "past": {2: "batch", 3: "beams", 5: "past"},
            "mask": {0: "batch", 1: "positions"},
            "cross": [{0: "batch", 2: "positions"}] * 2 * len(self.med.config.fusion_layers),
        }  # fmt: skip

    def forward(self, token: Tensor, past: Tensor, mask: Tensor, cross: list[Tensor]):
        cache = Past(past.flatten(2, 3))
        scores, tokens = self.step(token, mask, cross, cache)
        present = torch.stack([torch.stack(kv) for kv in cache.present])
        return scores, tokens, present.reshape(*past.shape[:5], -1, past.shape[-1])

    def step(self, token: Tensor, mask: Tensor | None, cross: list[Tensor], cache) -> tuple[Tensor, Tensor]:
        """Scores and tokens; keys and values are read from the cache and added to it."""
        c, tensors = self.med.config, iter(cross)
        pairs = [(next(tensors), next(tensors)) if i in c.fusion_layers else None for i in range(c.text_layers)]
        states = self.med.text_decoder.bert(token.reshape(-1, 1), cache.mask, pairs, mask, cache=cache)
        scores = self.med.text_decoder.cls(states[:, 0]).float().log_softmax(-1)  # [N, V]
        spare = c.max_text if c.no_repeat_ngram_size else 0  # any earlier token may be forbidden
        return scores.unflatten(0, token.shape).topk(2 * token.shape[1] + spare)

    def example(self, n: int, t: int):
        c, k = self.med.config, 2 * n - 1
        heads, width = c.text_heads, c.text_width // c.text_heads
        return {
            "token": torch.randint(c.vocab_size, (n, k)),
            "past": torch.randn(c.text_layers, 2, n, k, heads, t - 3, width),
            "mask": (torch.arange(t) < t - 1).repeat(n, 1),
            "cross": list(torch.randn(2 * len(c.fusion_layers), n, heads, t, width)),
        }


class Past:
    """The decoder's cache in a graph: takes each layer's keys and values [N, H, t, d], and collects the longer ones."""

    mask = None
    """All of them are valid."""

    def __init__(self, past: Tensor | list[KeysValues]):  # [L, 2, N, H, t, d], or a pair for each layer
        self.past, self.length, self.present = past, past[0][0].shape[2], list[KeysValues]()

    def extend(self, layer: int, kv: KeysValues) -> KeysValues:
        self.present.append(tuple(torch.cat(pair, 2) for pair in zip(self.past[layer], kv, strict=True)))
        return self.present[layer]


GRAPHS = {"image": ImageGraph, "text": TextGraph, "fusion": FusionGraph, "context": ContextGraph,
          "decoder": DecoderGraph}  # fmt: skip


def feed(inputs: dict[str, Tensor | list[Tensor]]) -> dict[str, np.ndarray]:
    """Inputs of a graph's module as inputs of the graph."""
    flat = {}
    for name, value in inputs.items():
        flat |= {f"{name}{i}": one for i, one in enumerate(value)} if isinstance(value, list) else {name: value}
    return {name: tensor.numpy() for name, tensor in flat.items()}


def to_onnx(
    name: str, out: str | Path, int8: bool = False, license: str | None = None
) -> tuple[dict[str, Path], dict[str, str]]:
    """Write `out`/onnx, whole or not at all; each member of a composite gets a folder of its own there.

    int8: write `out`/onnx-int8 instead, with quantized weights (`quantize`). Returns the folder by its name, and the
    reason for each ability that is skipped. Raises UserError if onnx is not installed, if a graph differs from torch,
    or if something else is in the way.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as missing:
        raise UserError(f"ONNX needs {missing.name}, which is not installed; run pip install 'dlip[onnx]'") from None
    kind = "onnx-int8" if int8 else "onnx"
    vlm, record, folder = VLM.load(name), record_of(name), Path(out) / kind
    parts, skipped = parts_of(vlm)
    if not parts:
        raise UserError(f"{name} cannot be exported to ONNX: {'; '.join(dict.fromkeys(skipped.values()))}")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)  # for the inputs that graphs are checked with
        replace_folder(folder, lambda new: write(new, vlm, parts, skipped, record, int8, license))
    return {kind: folder}, skipped


def parts_of(vlm: VLM) -> tuple[dict[str, tuple[Med, set]], dict[str, str]]:
    """The models that have graphs, with their abilities, by subfolder, and the reason for each ability without one."""
    members: dict[int, tuple[Med, set]] = {}
    skipped = {}
    for ability in ABILITIES:
        try:
            med = require_fp32_blip(vlm.med.model_for(ability).eval(), "export")
            if not med.reads(vlm.tokenizer.vocabulary):
                raise UserError("this model has another vocabulary than those exported with it; export it by itself")
            members.setdefault(id(med), (med, set()))[1].add(ability)
        except UserError as reason:
            skipped[ability] = str(reason)
    return {"" if len(members) == 1 else str(i): member for i, member in enumerate(members.values(), 1)}, skipped


@torch.no_grad()
def write(
    folder: Path,
    vlm: VLM,
    parts: dict[str, tuple[Med, set]],
    skipped: dict[str, str],
    record: dict,
    int8: bool,
    license: str | None,
) -> None:
    """Write and check graphs, tokenizer, configuration, runner and card. parts: subfolder -> model and abilities."""
    graphs = {}
    for part, (med, abilities) in parts.items():
        (folder / part).mkdir(exist_ok=True)
        offsets: dict[bytes, int] = {}
        for name, graph_class in GRAPHS.items():
            if graph_class.users & abilities:
                graph = graphs[part, name] = graph_class(med, frozenset(abilities)).eval()
                try:
                    trace(graph, folder / part / f"{name}.onnx")
                except torch.onnx.OnnxExporterError as error:
                    raise UserError(
                        f"torch {torch.__version__} cannot write {name}.onnx of {vlm.name} "
                        f"({first_line(error)}); try another version of torch or onnxscript"
                    ) from error
                share_weights(folder / part / f"{name}.onnx", folder / part / "weights.bin", offsets)
    write_config(folder, vlm, parts, skipped)
    sources = {"runner": onnx_runner, **{module.__name__.split(".")[-1]: module for module in RUNNER_IMPORTS}}
    for name, module in sources.items():
        code = Path(module.__file__).read_text()
        code = re.sub(r"^from dlip\.(?:\w+\.)*(\w+) import", r"from \1 import", code, flags=re.M)
        (folder / f"{name}.py").write_text(code)
    files = [(f"{Path(part) / name}.onnx", " ".join(graph.__doc__.split())) for (part, name), graph in graphs.items()]
    about = dict(graphs=files, int8=int8, abilities=set().union(*(abilities for _, abilities in parts.values())))
    (folder / "README.md").write_text(card("onnx.md", vlm, record, "onnx", TITLES, license, **about))
    check(vlm, onnx_runner.Runner(folder, torch.get_num_threads()), graphs)
    for part in parts if int8 else ():
        quantize(folder / part)


def write_config(folder: Path, vlm: VLM, parts: dict[str, tuple[Med, set]], skipped: dict[str, str]) -> None:
    """Write what `Runner` reads beside graphs: tokenizer.json and config.json."""
    c = vlm.med.config
    vlm.tokenizer.save(folder)
    write_json(folder / "config.json", {
        "dlip": __version__, "max_text": c.max_text, "pad_id": c.pad_id, "answer_tokens": MAX_ANSWER_TOKENS,
        "skipped": skipped,
        "parts": [{"folder": part, "abilities": sorted(abilities), **sizes(med)}
                  for part, (med, abilities) in parts.items()],
    })  # fmt: skip


def sizes(med: Med) -> dict:
    c = med.config
    names = (
        "image_size", "max_text", "dec_id", "sep_id", "prompt_ids", "max_positions", "vocab_size", "embed_dim",
        "no_repeat_ngram_size",
    )  # fmt: skip
    return {
        **{name: getattr(c, name) for name in names}, "temperature": med.temp.item(),
        "layers": c.text_layers, "cross": 2 * len(c.fusion_layers),
        "heads": c.text_heads, "head_width": c.text_width // c.text_heads,
    }  # fmt: skip


def trace(graph: Graph, path: Path) -> None:
    """Write one graph with its weights."""
    inputs = graph.example(2, 7)
    with without_warnings("torch.onnx"):  # they do not concern these graphs
        torch.onnx.export(
            graph, (), path, kwargs=inputs, input_names=list(feed(inputs)), output_names=graph.outputs,
            dynamic_shapes=graph.axes, dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip


@contextmanager
def without_warnings(logger: str | None = None) -> Iterator[None]:
    """Silence Python's warnings and those of a logger, by default the root."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        log.setLevel(level)


def share_weights(path: Path, store: Path, offsets: dict[bytes, int]) -> None:
    """Move a graph's weights to the end of `store`, equal ones only once. offsets: their place in it by hash."""
    import onnx

    model = onnx.load(path)
    del model.graph.value_info[:]
    for part in (model.graph, *model.graph.node, *model.graph.initializer):
        del part.metadata_props[:]  # places in the source code, with paths of this machine
    with open(store, "ab") as file:
        for tensor in model.graph.initializer:
            raw = tensor.raw_data
            if len(raw) < 1024:
                continue
            key = hashlib.sha256(raw).digest()
            if key not in offsets:
                file.write(bytes(-file.tell() % 64))  # aligned, as onnxruntime maps the file into memory
                offsets[key] = file.tell()
                file.write(raw)
            onnx.external_data_helper.set_external_data(tensor, store.name, offsets[key], len(raw))
            tensor.ClearField("raw_data")
    onnx.save(model, path)


def quantize(folder: Path) -> None:
    """Quantize the weights of a folder's matrix products and embeddings to int8, with a scale per output or embedding;
    activations are quantized at run time, with one scale per tensor."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    store, offsets = folder / "weights.bin", {}
    models = {path: onnx.load(path) for path in sorted(folder.glob("*.onnx"))}
    store.unlink()
    with without_warnings():  # they advise to simplify graphs first, which happens when they are opened
        for path, model in models.items():
            quantize_dynamic(
                model, path, op_types_to_quantize=["MatMul", "Gather"], per_channel=True, weight_type=QuantType.QInt8
            )
            share_weights(path, store, offsets)


def check(vlm: VLM, runner: onnx_runner.Runner, graphs: dict[tuple[str, str], Graph]) -> None:
    """Raise UserError if a graph's outputs differ from torch's by more than `TOLERANCE`, or its texts differ."""
    parts = {part.config["folder"]: part for part in runner.parts}
    refused = f"the ONNX export of {vlm.name} was not written: with this torch and onnxruntime its"
    for (part, name), graph in graphs.items():
        for n, t in ((1, 3), (3, 6)):
            inputs = graph.example(n, t)
            try:
                results = parts[part].run(name, graph.outputs, **feed(inputs))
            except Exception as error:  # onnxruntime raises types of its own
                raise UserError(f"{refused} {name}.onnx does not run ({first_line(error)})") from error
            expected, actual = (
                _by_token(dict(zip(graph.outputs, outputs, strict=True)), graph.med.config.vocab_size)
                for outputs in (graph(**inputs), map(torch.from_numpy, results))
            )
            for output in expected:
                if not torch.allclose(expected[output], actual[output], TOLERANCE, TOLERANCE):
                    raise UserError(f"{refused} {name}.onnx gives other {output} than the model")
    pixels = torch.randint(256, (2, 40, 50, 3), dtype=torch.uint8)
    images, texts = [Image.fromarray(one.numpy()) for one in pixels], ["what is it?", "a red one above"]
    for k in (1, 3):
        if "lm" in runner.abilities and runner.caption(images, k) != vlm.caption(images, k):
            raise UserError(f"{refused} captions differ from the model's")
        if "vqa" in runner.abilities and runner.answer(images, texts, k) != vlm.answer(images, texts, k):
            raise UserError(f"{refused} answers differ from the model's")


def _by_token(outputs: dict[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """Replace the `scores` of the best `tokens` [..., N] by those of all tokens [..., V]: the least for the others.

    Tokens with nearly equal scores may change places among the best.
    """
    if "tokens" in outputs:
        scores = outputs["scores"]
        least = scores[..., -1:].expand(*scores.shape[:-1], vocab_size)
        outputs["scores"] = least.scatter(-1, outputs.pop("tokens"), scores)
    return outputs
