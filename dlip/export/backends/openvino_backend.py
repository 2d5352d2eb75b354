"""OpenVINO: the graphs of `dlip.export.onnx_export`, and a decoder that keeps its keys and values as its state.

As OpenVINO's own export of `transformers` does it: a beam's past is gathered by `beam_idx` inside the model, which its
CPU plugin fuses with attention. int8: NNCF quantizes weights and activations; of the graphs of texts and the decoder,
which are bound by reading weights, the weights only.
"""

import contextlib
import io
from functools import partial
from pathlib import Path

import numpy as np

from dlip.export.backends.base import GraphBackend
from dlip.export.onnx_runner import Part, Runner


class OpenVino(GraphBackend):
    packages = ("openvino", "nncf")

    def convert(self, vlm, folder, images):
        from dlip.export.backends import openvino_convert

        with contextlib.redirect_stdout(io.StringIO()):  # NNCF draws progress bars
            openvino_convert.convert(vlm, folder, self.precision, images)

    def load(self, folder):
        self.model = Runner(folder, self.threads, partial(OpenVinoPart, precision=self.precision))
        (self.part,) = self.model.parts


class OpenVinoPart(Part):
    """The compiled graphs of one model. precision: "int8" computes in bf16 beside its 8 bits."""

    def __init__(self, folder: Path, config: dict, threads: int, precision: str):
        super().__init__(folder, config, threads)
        self.type = "f32" if precision == "fp32" else "bf16"

    def request(self, graph: str):
        """The infer request of a graph, compiled when it is first used."""
        if graph not in self.sessions:
            import openvino

            options = {
                "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": self.type, "KV_CACHE_PRECISION": self.type,
                "INFERENCE_NUM_THREADS": self.threads,
            }  # fmt: skip
            model = openvino.Core().compile_model(self.folder / f"{graph}.xml", "CPU", options)
            self.sessions[graph] = model.create_infer_request()
        return self.sessions[graph]

    def run(self, graph, outputs, **inputs):
        results = self.request(graph).infer(inputs)
        return [results[name].copy() for name in outputs]  # the next call writes to the same memory

    def search(self, context, mask, *options):
        if mask.all():
            return super().search(context, mask, *options)
        alone = (super(OpenVinoPart, self).search(row[None, own], own[None, own], *options)
                 for row, own in zip(context, mask, strict=True))  # fmt: skip
        return [text for (text,) in alone]

    def decoder(self, context, mask, beams):
        return StatefulDecoder(self, context, beams)


class StatefulDecoder:
    """Like `dlip.export.onnx_runner.Decoder`, for contexts without padding; one at a time."""

    def __init__(self, part: OpenVinoPart, context: np.ndarray, beams: int):
        self.request, encoder = part.request("decoder"), part.request("context")
        encoder.infer({"context": context})
        self.cross = {f"cross{i}": encoder.get_output_tensor(i) for i in range(part.config["cross"])}
        self.contexts, self.beams = len(context), beams
        self.sources = np.arange(self.contexts * beams)
        self.request.reset_state()
        self.set_cross()

    def set_cross(self) -> None:
        for name, tensor in self.cross.items():
            self.request.set_tensor(name, tensor)

    def __call__(self, token: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        results = self.request.infer({"token": token, "beam_idx": self.sources})
        self.sources = np.arange(token.size)
        return results["scores"], results["tokens"]

    def keep(self, rows: np.ndarray, beams: np.ndarray) -> None:
        import openvino

        self.sources = (rows[:, None] * self.beams + beams).ravel()
        if len(rows) < self.contexts:
            self.contexts = len(rows)
            for name, tensor in self.cross.items():
                kept = np.ascontiguousarray(tensor.data[rows])  # bf16 looks like fp16 to numpy
                self.cross[name] = openvino.Tensor(kept, kept.shape, tensor.element_type)
            self.set_cross()
