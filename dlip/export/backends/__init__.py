"""Backends: the libraries that can run a model for inference, behind one interface.

A backend converts a model once into a folder and runs it from there. Its library is imported when it is needed, so that
a process which serves by onnxruntime or OpenVINO never loads torch.
"""

from collections.abc import Iterable
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pkgutil import resolve_name

from dlip.common.errors import UserError
from dlip.export.backends.base import Backend

CLASSES = {
    "stock": "torch_backends:Stock",
    "dlip": "torch_backends:Dlip",
    "dlip, packed": "torch_backends:Packed",
    "onnxruntime": "onnxruntime_backend:OnnxRuntime",
    "OpenVINO": "openvino_backend:OpenVino",
    "torch.compile": "compiled_backend:Compiled",
}
"""Name of a backend -> its module and class."""


def make(name: str, precision: str, threads: int = 0) -> Backend:
    """A backend by its name. threads: 0 leaves their number to the library.

    Raises UserError if it lacks the precision, or a package is not installed.
    """
    check_installed(name)
    chosen = backend(name)
    if precision in chosen.lacks:
        raise UserError(f"{name} has no {precision}: {chosen.lacks[precision]}")
    return chosen(precision, threads)


def backend(name: str) -> type[Backend]:
    """The class of a backend, with its `lacks` and `packages`."""
    return resolve_name(f"{__name__}.{CLASSES[name]}")


def releases(names: Iterable[str]) -> dict[str, str]:
    """Installed package -> its release, whatever its distribution is called, as onnxruntime-gpu."""
    distributions = packages_distributions()
    return {name: version(distributions[name][0]) for name in names if name in distributions}


def check_installed(name: str) -> None:
    """Raise UserError if a package that a backend needs is not installed."""
    for package in backend(name).packages:
        if not find_spec(package):
            raise UserError(f"{name} needs {package}, which is not installed; run pip install 'dlip[bench]'")
