"""File formats of exported networks: ONNX in 32, 16 and 8 bits, TorchScript, and `torch.export`."""

import contextlib
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import Tensor, nn

from deocc.inference.network import FaceOutput
from deocc.messages import describe_error

if TYPE_CHECKING:
    import onnx

METADATA: Final = "deocc.json"  # key of the JSON description: metadata of an ONNX file, extra file of torch's formats
OPSET: Final = 18
"""The lowest ONNX opset with all operations that are needed, so that most runtimes read the file (our choice)."""

_INPUT: Final = "face"
_QUANTISED: Final = ["Conv", "Gemm", "MatMul"]
_FLOAT32_MODULES: Final = ("/segmenter/", "/crop/")  # parts of node names, as the exporter derives them from modules
_CALIBRATION_BATCH: Final = 8

SUFFIXES: Final = {"onnx": ".onnx", "torchscript": ".pt", "torch-export": ".pt2"}  # of the file names by format

Run = Callable[[Tensor], FaceOutput]
"""Maps faces (B, 3, S, S) in [-1, 1], any B, to the outputs."""


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress warnings, logs and prints of exporters, which concern tracing and their own future versions."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def require_onnx() -> None:
    """Raise ImportError if onnx or onnxruntime is not installed."""
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f'exporting to ONNX needs {" and ".join(missing)}: pip install "deocc[onnx]"')


def trace(kind: str, network: nn.Module, face: Tensor) -> Any:
    """Trace a network on faces (B, 3, S, S), B of at least 2, for any B, as a format of `SUFFIXES` needs it."""
    with _silence(), torch.no_grad():
        if kind == "torchscript":
            return torch.jit.trace(network, (face,), check_trace=False)  # parity is checked on other faces
        if kind == "torch-export":
            return torch.export.export(network, (face,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "graph.onnx")
            torch.onnx.export(
                network,
                (face,),
                path,
                dynamo=False,  # the newer exporter takes ten times as long for the same graph, and one more package
                opset_version=OPSET,
                input_names=[_INPUT],
                output_names=list(FaceOutput._fields),
                dynamic_axes={name: {0: "batch"} for name in (_INPUT, *FaceOutput._fields)},
            )
            return onnx.load(path)


def serialize(kind: str, traced: Any, metadata: str) -> bytes:
    """Return the content of the file for a traced network and its description."""
    if kind != "onnx":
        target = io.BytesIO()
        with _silence():
            if kind == "torchscript":
                torch.jit.save(traced, target, _extra_files={METADATA: metadata.encode()})
            else:
                torch.export.save(traced, target, extra_files={METADATA: metadata})
        return target.getvalue()
    import onnx

    described = onnx.ModelProto()
    described.CopyFrom(traced)
    onnx.helper.set_model_props(described, {METADATA: metadata})
    try:
        onnx.checker.check_model(described, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = describe_error(error, 160)
        raise ValueError(f"onnx refuses the exported graph ({reason}): choose another format with --to") from error
    return bytes(described.SerializeToString())


def open_content(kind: str, content: bytes) -> Run:
    """Return a function that runs the content of a file on the CPU."""
    if kind == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        names = list(FaceOutput._fields)
        return lambda face: FaceOutput(*map(torch.from_numpy, session.run(names, {_INPUT: face.numpy()})))
    source = io.BytesIO(content)
    with _silence():
        module: Any = torch.jit.load(source, "cpu") if kind == "torchscript" else torch.export.load(source).module()

    @torch.no_grad()
    def run(face: Tensor) -> FaceOutput:
        return FaceOutput(*module(face))

    return run


def to_int8(model: "onnx.ModelProto", faces: Tensor) -> "onnx.ModelProto":
    """Quantise convolutions and matrix products statically, with one scale per weight channel.

    The ranges of activations are measured on faces (N, 3, S, S) in [-1, 1], masked and clean.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(faces.split(_CALIBRATION_BATCH))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {_INPUT: batch.numpy()}

    settings: dict[str, Any] = {"quant_format": QuantFormat.QDQ, "weight_type": QuantType.QInt8, "per_channel": True}
    with tempfile.TemporaryDirectory() as folder, _silence():
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        quant_pre_process(model, before, skip_symbolic_shape=True)
        excluded = _float32_nodes(onnx.load(before))
        quantize_static(before, after, Reader(), op_types_to_quantize=_QUANTISED, nodes_to_exclude=excluded, **settings)
        return onnx.load(after)


def to_fp16(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Convert generator and student to half precision; inputs, outputs and `_float32_nodes` stay float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with _silence():
        half = convert_float_to_float16(copy, keep_io_types=True, node_block_list=_float32_nodes(copy))
        # Between nodes that stay float32 the converter inserts casts to half precision and back: skip them.
        rounding = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
        casts = {node.output[0]: node for node in half.graph.node if node.op_type == "Cast"}
        for node in casts.values():
            before = casts.get(node.input[0])
            if before is not None and (before.attribute[0].i, node.attribute[0].i) == rounding:
                node.input[0] = before.input[0]
        OnnxModel(half).topological_sort()  # in place: the converter appends its casts at the end
    return cast("onnx.ModelProto", half)


def _float32_nodes(model: "onnx.ModelProto") -> list[str]:
    """Return the nodes that stay float32: segmenter, crop, and those of no module (resizing, composing, centring)."""
    return [
        node.name
        for node in model.graph.node
        if any(part in node.name for part in _FLOAT32_MODULES) or node.name.count("/") < 2
    ]
