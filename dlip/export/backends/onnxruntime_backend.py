"""onnxruntime: the graphs of `dlip.export.onnx_export`, in int8 with activations quantized at run time."""

from functools import partial

from dlip.export.backends.base import GraphBackend
from dlip.export.onnx_runner import Part, Runner


class OnnxRuntime(GraphBackend):
    packages = ("onnxruntime", "onnx", "onnxscript")
    lacks = {"bf16": "the kernels of its CPU provider compute in fp32 and int8"}

    def convert(self, vlm, folder, images):
        from dlip.export.onnx_export import to_onnx

        to_onnx(vlm.name, folder, int8=self.precision == "int8")

    def load(self, folder):
        (graphs,) = folder.glob("onnx*")
        self.model = Runner(graphs, self.threads, partial(Part, spin=True))
        (self.part,) = self.model.parts
