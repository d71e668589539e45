"""ONNX: the graph, its description, and running it with onnxruntime."""

import importlib.util
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import torch
from torch import Tensor, nn

from deocc.apps.export.graph import METADATA, Outputs, Run, silence

if TYPE_CHECKING:
    import onnx

OPSET: Final = 18
"""OURS: the lowest that has all that is needed, so that most runtimes read it."""

INPUT: Final = "face"
_BATCH: Final = {0: "batch"}


class OnnxGraph:
    """The traced network as an ONNX model.

    Attributes:
        model: as `onnx` knows it; weights inside.
    """

    def __init__(self, model: "onnx.ModelProto") -> None:
        self.model = model

    @classmethod
    def trace(cls, network: nn.Module, face: Tensor) -> Self:
        """Trace `network` on `face`, (B, 3, S, S), for any B.

        Raises:
            ImportError: onnx or onnxruntime is not installed.
        """
        require_onnx()
        import onnx

        axes = dict.fromkeys((INPUT, *Outputs._fields), _BATCH)
        with tempfile.TemporaryDirectory() as folder, silence(), torch.no_grad():
            # Not the newer exporter, dynamo=True: it gives the same graph in ten times the time, and needs one more package.
            torch.onnx.export(
                network,
                (face,),
                path := Path(folder, "graph.onnx"),
                dynamo=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(Outputs._fields),
                dynamic_axes=axes,
            )
            return cls(onnx.load(path))

    def content(self, metadata: str) -> bytes:
        """The file; checked by onnx's own checker.

        Raises:
            ValueError: the checker refuses it.
        """
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        onnx.helper.set_model_props(model, {METADATA: metadata})
        try:
            onnx.checker.check_model(model, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ValueError(f"onnx refuses the exported graph ({reason}): choose another format with --to") from error
        return bytes(model.SerializeToString())


def open_onnx(content: bytes) -> Run:
    """What onnxruntime makes of a file, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda face: Outputs(*map(torch.from_numpy, session.run(list(Outputs._fields), {INPUT: face.numpy()})))


def require_onnx() -> None:
    """Raise ImportError where onnx or onnxruntime is not installed."""
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f'exporting to ONNX needs {" and ".join(missing)}: pip install "deocc[onnx]"')
