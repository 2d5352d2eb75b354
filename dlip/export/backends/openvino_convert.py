"""Conversion to OpenVINO's files; what runs them needs no torch (openvino_backend.py)."""

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dlip.export.onnx_export import GRAPHS, DecoderGraph, Graph, Past, feed, parts_of, without_warnings, write_config
from dlip.models.features import ABILITIES
from dlip.models.med import Med

if TYPE_CHECKING:
    from openvino import Model

TOKENS = 12
"""Tokens of the texts that NNCF sees."""
SEED = 0


class StepGraph(DecoderGraph):
    """`DecoderGraph` without mask, with keys and values by layer: `past0`... [B*K, H, t, d] -> `present0`..."""

    @property
    def outputs(self):
        return ["scores", "tokens", *(f"present{i}" for i in range(2 * self.med.config.text_layers))]

    @property
    def axes(self):
        past = [{0: "rows", 2: "past"}] * 2 * self.med.config.text_layers
        return {"token": super().axes["token"], "past": past, "cross": super().axes["cross"]}

    def forward(self, token: Tensor, past: list[Tensor], cross: list[Tensor]):
        cache = Past(list(zip(past[::2], past[1::2], strict=True)))
        return *self.step(token, None, cross, cache), *chain.from_iterable(cache.present)

    def example(self, n: int, t: int):
        inputs = super().example(n, t)
        past = [values.clone() for values in inputs["past"].flatten(2, 3).flatten(0, 1)]
        return {"token": inputs["token"], "past": past, "cross": inputs["cross"]}


@torch.no_grad()
def convert(vlm, folder: Path, precision: str, images: np.ndarray) -> None:
    """Write what `Runner` reads, with graphs of OpenVINO. images: uint8 [N, S, S, 3], by which NNCF quantizes."""
    import openvino

    abilities, graphs = frozenset(ABILITIES), GRAPHS | {"decoder": StepGraph}
    models = {name: to_openvino(graph_class(vlm.med, abilities).eval()) for name, graph_class in graphs.items()}
    make_stateful(models["decoder"], vlm.med)
    if precision == "int8":
        models = quantize(models, vlm.med, images)
    if precision != "fp32":
        cross = range(2 * len(vlm.med.config.fusion_layers))
        models["context"] = in_bf16(models["context"], outputs=cross)
        models["decoder"] = in_bf16(models["decoder"], inputs=[f"cross{i}" for i in cross])
    for name, model in models.items():
        openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=precision != "fp32")
    write_config(folder, vlm, *parts_of(vlm))


def to_openvino(graph: Graph) -> "Model":
    """A graph with its inputs and outputs named, sizes dynamic as its `axes` are."""
    import openvino

    inputs, auto = graph.example(2, 7), torch.export.Dim.AUTO
    dynamic = {
        name: [dict.fromkeys(one, auto) for one in axes] if isinstance(axes, list) else dict.fromkeys(axes, auto)
        for name, axes in graph.axes.items()
    }
    with without_warnings():
        model = openvino.convert_model(torch.export.export(graph, (), inputs, dynamic_shapes=dynamic))
    shapes, ports = {}, zip(model.inputs, feed(inputs).items(), strict=True)
    axes = [one for some in graph.axes.values() for one in (some if isinstance(some, list) else [some])]
    for (port, (name, example)), dims in zip(ports, axes, strict=True):
        port.get_tensor().set_names({name})
        shapes[name] = [-1 if i in dims else size for i, size in enumerate(example.shape)]
    for port, name in zip(model.outputs, graph.outputs, strict=True):
        port.get_tensor().set_names({name})
    model.reshape(shapes)
    return model


def make_stateful(model: "Model", med: Med) -> None:
    """Turn each `past` into a state that a request keeps, empty at first, whose rows are gathered by `beam_idx`."""
    from openvino import opset13 as op
    from openvino.passes import MakeStateful, Manager

    c = med.config
    rows = op.parameter([-1], np.int32)  # with int64, OpenVINO 2026.4 gathers wrong rows
    rows.output(0).get_tensor().set_names({"beam_idx"})
    model.add_parameters([rows])
    states = {f"past{i}": f"present{i}" for i in range(2 * c.text_layers)}
    for name in states:
        past = model.input(name)
        readers = past.get_target_inputs()
        gathered = op.gather(past.get_node(), rows, op.constant(0))
        for reader in readers:
            reader.replace_source_output(gathered.output(0))
    manager = Manager()
    manager.register_pass(MakeStateful(states))
    manager.run_passes(model)
    sizes = op.constant(np.array([c.text_heads, 0, c.text_width // c.text_heads]))
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            shape = op.concat([op.shape_of(rows), sizes], 0)
            node.set_arguments([op.broadcast(op.constant(np.float32(0)), shape)])
    model.validate_nodes_and_infer_types()


def in_bf16(model: "Model", inputs=(), outputs=()) -> "Model":
    """The model with these inputs and outputs in bf16, so that they are not converted at every step."""
    from openvino import Type
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(model)
    for tensor in [steps.input(i) for i in inputs] + [steps.output(i) for i in outputs]:
        tensor.tensor().set_element_type(Type.bf16)
    return steps.build()


def quantize(models: dict[str, "Model"], med: Med, images: np.ndarray) -> dict[str, "Model"]:
    """8-bit weights and activations; in the graphs of text and decoder 8-bit weights only."""
    import nncf
    import openvino

    random = np.random.default_rng(SEED)
    run = openvino.Core().compile_model(models["image"], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    states = [run(image[None])["states"] for image in images]
    texts, mask = random.integers(med.config.vocab_size, size=(len(images), 1, TOKENS)), np.ones((1, TOKENS), bool)
    samples = {
        "image": [{"pixels": image[None]} for image in images],
        "fusion": [{"ids": ids, "mask": mask, "states": one} for ids, one in zip(texts, states, strict=True)],
        "context": [{"context": one} for one in states],
    }
    quantized = {
        name: nncf.quantize(
            models[name], nncf.Dataset(some), subset_size=len(some), model_type=nncf.ModelType.TRANSFORMER
        )
        for name, some in samples.items()
    }
    return quantized | {name: nncf.compress_weights(models[name]) for name in ("text", "decoder")}
