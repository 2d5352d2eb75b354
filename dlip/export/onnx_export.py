"""A model as ONNX graphs in one folder, with a runner that needs neither torch nor this package
(dlip/export/onnx_runner.py).

Each graph is checked against torch before the folder is there, and before its weights are put into 8 bits, if they
are. All graphs of a model share one file of weights, as the text layers are in three of them.
"""

import hashlib
import logging
import re
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dlip import __version__
from dlip.common import errors, text
from dlip.common.errors import UserError
from dlip.common.files import write_json
from dlip.data import transforms
from dlip.export import onnx_runner
from dlip.export.card import cost, figures, making
from dlip.export.transformers import record_of, write_folder
from dlip.models.fast.precision import refuse_lowered
from dlip.models.features import ABILITIES
from dlip.models.med import KeysValues, Med
from dlip.vlm import MAX_ANSWER_TOKENS, VLM

TOLERANCE = 1e-4
"""Most that a graph's output may differ from torch's, absolute and relative."""


class Graph(nn.Module):
    """A part of a model, for the tasks it does. `axes`: the sizes of each input that may vary, and their names.

    Each has `example(n, t)`, random inputs by name of n pictures or texts and t tokens. A list has an input a tensor,
    called as it is with its place behind (`feed`).
    """

    tasks: frozenset[str]
    axes: dict[str, dict[int, str] | list[dict[int, str]]]
    outputs: list[str]

    def __init__(self, med: Med, tasks: frozenset[str]):
        super().__init__()
        self.med, self.does = med, tasks & self.tasks


class ImageGraph(Graph):
    """`pixels` uint8 [B, S, S, 3] as Pillow has them -> `states` [B, P+1, Di]; ITC's `vector` [B, E]"""

    tasks, axes = frozenset(ABILITIES), {"pixels": {0: "batch"}}

    @property
    def outputs(self):
        return ["states", "vector"] if "itc" in self.does else ["states"]

    def forward(self, pixels: Tensor):
        states = self.med.encode_image(self.med.normalize(pixels.permute(0, 3, 1, 2)))
        return (states, self.med.project_image(states)) if "itc" in self.does else (states,)

    def example(self, n: int, t: int):
        side = self.med.config.image_size
        return {"pixels": torch.randint(256, (n, side, side, 3), dtype=torch.uint8)}


class TextGraph(Graph):
    """`ids` int64, `mask` bool [N, T], from [CLS] on -> ITC's `vector` [N, E]"""

    tasks, outputs = frozenset({"itc"}), ["vector"]
    axes = {"ids": {0: "batch", 1: "tokens"}, "mask": {0: "batch", 1: "tokens"}}

    def forward(self, ids: Tensor, mask: Tensor):
        return (self.med.project_text(self.med.encode_text(ids, mask)),)

    def example(self, n: int, t: int):
        ends = torch.randint(1, t + 1, (n, 1))
        ends[0] = t
        return {"ids": torch.randint(self.med.config.vocab_size, (n, t)), "mask": torch.arange(t) < ends}


class FusionGraph(TextGraph):
    """`ids`, `mask` [N, T], `states` of each text's picture [N, P+1, Di] -> ITM's logits `match` [N, 2], those of a
    text that fits second; what the decoder answers a `question` from [N, T, Di]"""

    tasks, axes = frozenset({"itm", "vqa"}), {**TextGraph.axes, "states": {0: "batch"}}

    @property
    def outputs(self):
        return [name for name, task in (("match", "itm"), ("question", "vqa")) if task in self.does]

    def forward(self, ids: Tensor, mask: Tensor, states: Tensor):
        fused = self.med.fuse(ids, mask, states)
        match = (self.med.match_logits(fused),) if "itm" in self.does else ()
        return *match, *((self.med.question_states(fused),) if "vqa" in self.does else ())

    def example(self, n: int, t: int):
        c = self.med.config
        return {**super().example(n, t), "states": torch.randn(n, c.grid**2 + 1, c.image_width)}


class ContextGraph(Graph):
    """`context` [B, S, Di], of a picture or a question -> the keys and values that the decoder reads of it, F times two
    of [B, H, S, d]: `cross0` and `cross1` for the first layer that does"""

    tasks, axes = frozenset({"lm", "vqa"}), {"context": {0: "batch", 1: "places"}}

    @property
    def outputs(self):
        return [f"cross{i}" for i in range(2 * len(self.med.config.fusion_layers))]

    def forward(self, context: Tensor):
        return tuple(values for kv in self.med.text_decoder.bert.cross(context) if kv for values in kv)

    def example(self, n: int, t: int):
        return {"context": torch.randn(n, t, self.med.config.image_width)}


class DecoderGraph(Graph):
    """`token` int64 [B, K], one a beam, `past` [L, 2, B, K, H, t, d], `mask` of the context bool [B, S], `cross0`... ->
    each beam's 2K likeliest next tokens, the likeliest first, as log-probabilities `scores` and `words`, int64, [B, K,
    2K]; `present` [L, 2, B, K, H, t+1, d]"""

    tasks, outputs = frozenset({"lm", "vqa"}), ["scores", "words", "present"]

    @property
    def axes(self):
        return {
            "token": {0: "batch", 1: "beams"}, "past": {2: "batch", 3: "beams", 5: "past"},
            "mask": {0: "batch", 1: "places"},
            "cross": [{0: "batch", 2: "places"}] * 2 * len(self.med.config.fusion_layers),
        }  # fmt: skip

    def forward(self, token: Tensor, past: Tensor, mask: Tensor, cross: list[Tensor]):
        c, each, cache = self.med.config, iter(cross), Past(past.flatten(2, 3))
        kept = [(next(each), next(each)) if i in c.fusion_layers else None for i in range(c.text_layers)]
        states = self.med.text_decoder.bert(token.reshape(-1, 1), None, kept, mask, cache=cache)
        scores = self.med.text_decoder.cls(states[:, 0]).log_softmax(-1).reshape(*token.shape, -1)  # [B, K, V]
        present = torch.stack(cache.present).reshape(*past.shape[:5], -1, past.shape[-1])
        return *scores.topk(2 * token.shape[1]), present

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
    """The decoder's cache as a graph has it: old keys and values [L, 2, N, H, t, d] in, a layer's longer ones out."""

    def __init__(self, past: Tensor):
        self.past, self.length, self.present = past, past.shape[4], []

    def extend(self, layer: int, kv: KeysValues) -> KeysValues:
        kv = tuple(torch.cat([old, new], 2) for old, new in zip(self.past[layer], kv, strict=True))
        self.present.append(torch.stack(kv))
        return kv


GRAPHS = {"image": ImageGraph, "text": TextGraph, "fusion": FusionGraph, "context": ContextGraph,
          "decoder": DecoderGraph}  # fmt: skip


def feed(inputs: dict[str, Tensor | list[Tensor]]) -> dict[str, np.ndarray]:
    """The inputs of a graph's module as the graph itself has them."""
    found = {}
    for name, of in inputs.items():
        found |= {f"{name}{i}": one for i, one in enumerate(of)} if isinstance(of, list) else {name: of}
    return {name: tensor.numpy() for name, tensor in found.items()}


def to_onnx(name: str, out: str | Path, int8: bool = False) -> tuple[dict[str, Path], dict[str, str]]:
    """Writes `out`/onnx, whole or not at all; of a model of several checkpoints each in a folder of its own there.

    int8: `out`/onnx-int8 instead, where products have weights of 8 bits (`quantise`). Returns the folder by its name,
    and the reason for each task that is left out. Raises UserError where onnx is not installed, where a graph differs
    from torch, or where something else is in the way.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as missing:
        raise UserError(f"ONNX needs {missing.name}, which is not installed; run pip install 'dlip[onnx]'") from None
    kind = "onnx-int8" if int8 else "onnx"
    vlm, record, folder, left_out = VLM.load(name), record_of(name), Path(out) / kind, {}
    owners: dict[int, tuple[Med, set]] = {}
    for task in ABILITIES:
        try:
            med = refuse_lowered(vlm.med.model_for(task).eval(), "export")
            owners.setdefault(id(med), (med, set()))[1].add(task)
        except UserError as reason:
            left_out[task] = str(reason)
    if not owners:
        raise UserError(f"nothing of {name} can be written: {'; '.join(dict.fromkeys(left_out.values()))}")
    parts = {"" if len(owners) == 1 else str(i): owner for i, owner in enumerate(owners.values(), 1)}
    with torch.random.fork_rng([]):
        torch.manual_seed(0)  # of the inputs that graphs are checked on
        write_folder(folder, lambda new: write(new, vlm, parts, left_out, record, int8))
    return {kind: folder}, left_out


@torch.no_grad()
def write(
    folder: Path, vlm: VLM, parts: dict[str, tuple[Med, set]], left_out: dict[str, str], record: dict, int8: bool
) -> None:
    """Graphs, tokenizer, configuration, runner and card into `folder`, checked. parts: by subfolder, with its tasks."""
    graphs = {}
    for part, (med, tasks) in parts.items():
        (folder / part).mkdir(exist_ok=True)
        places: dict[bytes, int] = {}
        for name, of in GRAPHS.items():
            if of.tasks & tasks:
                graph = graphs[part, name] = of(med, frozenset(tasks)).eval()
                try:
                    trace(graph, folder / part / f"{name}.onnx")
                except torch.onnx.OnnxExporterError as error:
                    raise UserError(
                        f"torch {torch.__version__} cannot write {name}.onnx of {vlm.name} "
                        f"({str(error).strip().splitlines()[0]}); try another version of torch or onnxscript"
                    ) from error
                share(folder / part / f"{name}.onnx", folder / part / "weights.bin", places)
    vlm.tokenizer.save(folder)
    c = vlm.med.config
    write_json(folder / "config.json", {
        "dlip": __version__, "max_text": c.max_text, "pad_id": c.pad_id, "answer_tokens": MAX_ANSWER_TOKENS,
        "left_out": left_out,
        "parts": [{"folder": part, "tasks": sorted(tasks), **sizes(med)} for part, (med, tasks) in parts.items()],
    })  # fmt: skip
    sources = {"runner": onnx_runner, "transforms": transforms, "errors": errors, "text": text}
    for name, module in sources.items():
        code = Path(module.__file__).read_text()
        code = re.sub(r"^from dlip\.(?:\w+\.)*(\w+) import", r"from \1 import", code, flags=re.M)
        (folder / f"{name}.py").write_text(code)
    (folder / "README.md").write_text(card(vlm, graphs, record, int8))
    check(vlm, onnx_runner.Runner(folder, torch.get_num_threads()), graphs)
    for part in parts if int8 else ():
        quantise(folder / part)


def sizes(med: Med) -> dict:
    c = med.config
    names = ("image_size", "dec_id", "sep_id", "prompt_ids", "max_positions", "vocab_size")
    return {
        **{name: getattr(c, name) for name in names},
        "layers": c.text_layers, "cross": 2 * len(c.fusion_layers),
        "heads": c.text_heads, "head_width": c.text_width // c.text_heads,
    }  # fmt: skip


def trace(graph: Graph, path: Path) -> None:
    inputs, log = graph.example(2, 7), logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it tells of what is no concern of these graphs
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                graph, (), path, kwargs=inputs, input_names=list(feed(inputs)), output_names=graph.outputs,
                dynamic_shapes=graph.axes, dynamo=True, external_data=False, verbose=False,
            )  # fmt: skip
    finally:
        log.setLevel(level)


def share(path: Path, store: Path, places: dict[bytes, int]) -> None:
    """Moves a graph's weights to `store`, each once. places: where each begins in it, by its hash."""
    import onnx

    model = onnx.load(path)
    del model.graph.value_info[:]
    for noted in (model.graph, *model.graph.node, *model.graph.initializer):
        del noted.metadata_props[:]  # where in the source it comes from, with this machine's paths
    with open(store, "ab") as file:
        for tensor in model.graph.initializer:
            raw = tensor.raw_data
            if len(raw) < 1024:
                continue
            key = hashlib.sha256(raw).digest()
            if key not in places:
                file.write(bytes(-file.tell() % 64))  # onnxruntime maps the file into memory
                places[key] = file.tell()
                file.write(raw)
            onnx.external_data_helper.set_external_data(tensor, store.name, places[key], len(raw))
            tensor.ClearField("raw_data")
    onnx.save(model, path)


def quantise(folder: Path) -> None:
    """Puts the weights of a folder's products, and its embeddings, into 8 bits, a scale for each output or embedding;
    what they are multiplied by is put into 8 bits as it comes, a scale for all of it.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole, places, log = folder / "weights.bin", {}, logging.getLogger()
    models = {path: onnx.load(path) for path in sorted(folder.glob("*.onnx"))}
    whole.unlink()
    level = log.level
    log.setLevel(logging.ERROR)  # it advises to simplify graphs first, which is done when they are opened
    try:
        for path, model in models.items():
            quantize_dynamic(
                model, path, op_types_to_quantize=["MatMul", "Gather"], per_channel=True, weight_type=QuantType.QInt8
            )
            share(path, whole, places)
    finally:
        log.setLevel(level)


def check(vlm: VLM, runner: onnx_runner.Runner, graphs: dict[tuple[str, str], Graph]) -> None:
    """Raises UserError where a graph's numbers differ from torch's by more than `TOLERANCE`, or its words do."""
    parts = {part.config["folder"]: part for part in runner.parts}
    refuse = f"the ONNX export of {vlm.name} is not written: in this torch and onnxruntime its"
    for (part, name), graph in graphs.items():
        for n, t in ((1, 3), (3, 6)):
            inputs = graph.example(n, t)
            try:
                found = parts[part].run(name, graph.outputs, **feed(inputs))
            except Exception as error:  # onnxruntime raises kinds of its own
                raise UserError(f"{refuse} {name}.onnx does not run ({str(error).splitlines()[0]})") from error
            for output, ours, theirs in zip(graph.outputs, graph(**inputs), found, strict=True):
                if not torch.allclose(ours, torch.from_numpy(theirs), TOLERANCE, TOLERANCE):
                    raise UserError(f"{refuse} {name}.onnx gives other {output} than the model")
    pixels = torch.randint(256, (2, 40, 50, 3), dtype=torch.uint8)
    images, texts = [Image.fromarray(one.numpy()) for one in pixels], ["what is it?", "a red one above"]
    for k in (1, 3):
        if "lm" in vlm.med.abilities and runner.caption(images, k) != vlm.caption(images, k):
            raise UserError(f"{refuse} captions are other than the model's")
        if "vqa" in vlm.med.abilities and runner.answer(images, texts, k) != vlm.answer(images, texts, k):
            raise UserError(f"{refuse} answers are other than the model's")


def card(vlm: VLM, graphs: dict[tuple[str, str], Graph], record: dict, int8: bool) -> str:
    """Markdown: what the folder holds, how to run it, and what its record says."""
    rows = [f"| `{Path(part) / name}.onnx` | {' '.join(graph.__doc__.split())} |"
            for (part, name), graph in graphs.items()]  # fmt: skip
    parts = [
        f"# {record.get('name') or vlm.name} in ONNX{', int8' * int8}",
        f"Written by DLIP Workbench {__version__}. The runner needs neither it nor torch:",
        "```bash\npip install numpy pillow onnxruntime tokenizers\n"
        'python runner.py picture.png --caption --match "a red circle" --answer "what is it?"\n```',
        "In Python, `Runner().caption([picture])` and the like, from `runner.py`. B pictures, N texts, K beams, "
        "F layers with cross-attention of L; `mask` is true where a token is. config.json has the sizes; all graphs "
        "read weights.bin beside them.",
        "| graph | inputs -> outputs, as far as this model has them |\n|---|---|\n" + "\n".join(rows),
        "Products have weights of 8 bits; the figures below are the model's before that." * int8,
        *(figures(record), making(record), cost(vlm.med.config, record)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
