"""The formats by name."""

from collections.abc import Callable
from typing import Final, NamedTuple

from torch import Tensor, nn

from deocc.apps.export.graph import Graph, Run
from deocc.apps.export.onnx_graph import OPSET, OnnxGraph, open_onnx
from deocc.apps.export.torch_graphs import ProgramGraph, ScriptGraph, open_program, open_script


class Format(NamedTuple):
    """How a network gets into a file of this format, and how the file is run."""

    suffix: str
    trace: Callable[[nn.Module, Tensor], Graph]
    open: Callable[[bytes], Run]
    details: dict[str, int]
    """What to say of it in the metadata."""


FORMATS: Final = {
    "onnx": Format(".onnx", OnnxGraph.trace, open_onnx, {"opset": OPSET}),
    "torchscript": Format(".pt", ScriptGraph.trace, open_script, {}),
    "torch-export": Format(".pt2", ProgramGraph.trace, open_program, {}),
}
