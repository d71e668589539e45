"""Smaller ONNX files: weights and activations in 8 bits, or floating point in 16.

The segmenter stays in float32 in both: it is small, and a pixel that changes sides at its threshold changes all that follows.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from torch import Tensor

from deocc.apps.export.graph import silence
from deocc.apps.export.onnx_graph import INPUT, OnnxGraph

if TYPE_CHECKING:
    import onnx

_HEAVY: Final = ("Conv", "Gemm", "MatMul")
_SEGMENTER: Final = "/segmenter/"
_CROP: Final = "/crop/"
"""Parts of the names that the exporter gives to the nodes of these modules."""
_CHUNK: Final = 8


def to_int8(graph: OnnxGraph, faces: Tensor) -> OnnxGraph:
    """Static quantisation, weights by channel, of convolutions and matrix products; ranges of activations measured on faces.

    Args:
        graph: in float32.
        faces: (N, 3, S, S) in [-1, 1], such as the network will meet, masked and clean, of people of no test.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, silence():
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        quant_pre_process(graph.model, before, skip_symbolic_shape=True)
        exact = [node.name for node in onnx.load(before).graph.node if _exact(node)]
        quantize_static(
            before,
            after,
            _feed(faces),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_HEAVY),
            nodes_to_exclude=exact,
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
        return OnnxGraph(onnx.load(after))


def to_fp16(graph: OnnxGraph) -> OnnxGraph:
    """Half precision between the segmenter and the embedding; what comes in and goes out, and the comparison's own steps, stay float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    with silence():
        model = convert_float_to_float16(model, keep_io_types=True, node_block_list=[n.name for n in model.graph.node if _exact(n)])
        _without_detours(model.graph)
        sorted_model = OnnxModel(model)
        sorted_model.topological_sort()  # the converter appends its casts
    return OnnxGraph(sorted_model.model)


def _without_detours(graph: "onnx.GraphProto") -> None:
    """Between nodes that stay float32 the converter rounds to half precision and back: let each read what the one before it gave."""
    import onnx

    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    for node in casts.values():
        rounded = casts.get(node.input[0])
        if rounded is not None and (rounded.attribute[0].i, node.attribute[0].i) == (onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT):
            node.input[0] = rounded.input[0]


def _exact(node: "onnx.NodeProto") -> bool:
    """Of the segmenter, the crop, or of no module: resizing, composing visible and completed pixels, the centred unit vector."""
    return any(part in node.name for part in (_SEGMENTER, _CROP)) or node.name.count("/") < 2


def _feed(faces: Tensor) -> Any:
    """The faces as the quantiser asks for them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Feed(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(faces.split(_CHUNK))

        def get_next(self) -> dict[str, Any] | None:
            chunk = next(self.rest, None)
            return None if chunk is None else {INPUT: chunk.numpy()}

    return Feed()


Reduction = Callable[[OnnxGraph, Tensor], OnnxGraph]
REDUCTIONS: Final[dict[str, Reduction]] = {"int8": to_int8, "fp16": lambda graph, _faces: to_fp16(graph)}
