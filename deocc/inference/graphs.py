"""The trained system as one graph that an exporter can trace: canonical crops in, `Outputs` out."""

import contextlib
import importlib.util
import io
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.evaluation.calibration import covered_share
from deocc.geometry import Template, canonical_to, invert_transform, transform_points
from deocc.inference.network import FaceNetwork
from deocc.modules.evaluation import centred
from deocc.networks.deoccluder import Deoccluder, whole_mask
from deocc.networks.generator import compose

METADATA: Final = "deocc.json"
"""The name under which a file holds its description, JSON: an entry of an ONNX file's metadata, an extra file of torch's formats."""


class Outputs(NamedTuple):
    """Of B faces, by the names that the graph's outputs have."""

    completed_face: Tensor
    """(B, 3, S, S) in [-1, 1]."""
    mask: Tensor
    """(B, 1, S, S), 1 = covered."""
    embedding: Tensor
    """(B, D) unit vectors."""
    covered: Tensor
    """(B,) in [0, 1], the covered share of the face, by which a pair's threshold is chosen."""


Run = Callable[[Tensor], Outputs]
"""Faces (B, 3, S, S) in [-1, 1], any B -> the outputs."""


class Graph(Protocol):
    """An exported network."""

    def content(self, metadata: str) -> bytes:
        """The file, with this description in it."""


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep back what exporters warn of, log and print: tracing notes on shapes that are constant here, and news of their own plans."""
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
        model = convert_float_to_float16(
            model, keep_io_types=True, node_block_list=[n.name for n in model.graph.node if _exact(n)]
        )
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
        if rounded is not None and (rounded.attribute[0].i, node.attribute[0].i) == (
            onnx.TensorProto.FLOAT16,
            onnx.TensorProto.FLOAT,
        ):
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


class ScriptGraph:
    """The traced network as a TorchScript module."""

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self.module = module

    @classmethod
    def trace(cls, network: nn.Module, face: Tensor) -> Self:
        """Trace `network` on `face`, (B, 3, S, S), for any B."""
        with silence(), torch.no_grad():
            return cls(torch.jit.trace(network, (face,), check_trace=False))  # parity is checked on other faces

    def content(self, metadata: str) -> bytes:
        """The file."""
        target = io.BytesIO()
        with silence():
            torch.jit.save(self.module, target, _extra_files={METADATA: metadata.encode()})
        return target.getvalue()


class ProgramGraph:
    """The traced network as a program of `torch.export`."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self.program = program

    @classmethod
    def trace(cls, network: nn.Module, face: Tensor) -> Self:
        """Trace `network` on `face`, (B, 3, S, S) with B of at least 2, for any B."""
        with silence(), torch.no_grad():
            return cls(torch.export.export(network, (face,), dynamic_shapes=({0: torch.export.Dim("batch")},)))

    def content(self, metadata: str) -> bytes:
        """The file."""
        target = io.BytesIO()
        with silence():
            torch.export.save(self.program, target, extra_files={METADATA: metadata})
        return target.getvalue()


def open_script(content: bytes) -> Run:
    """What `torch.jit.load` makes of a file, on the CPU."""
    with silence():
        module = torch.jit.load(io.BytesIO(content), map_location="cpu")
    return _without_gradient(module)


def open_program(content: bytes) -> Run:
    """What `torch.export.load` makes of a file."""
    with silence():
        module = torch.export.load(io.BytesIO(content)).module()
    return _without_gradient(module)


def _without_gradient(module: nn.Module) -> Run:
    @torch.no_grad()
    def run(face: Tensor) -> Outputs:
        return Outputs(*module(face))

    return run


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


_COARSE: Final = 1 / 1.5  # where `deocc.geometry.warp` begins to take a crop from a smaller copy


class FixedCrop(nn.Module):
    """`deocc.geometry.warp` from canonical crops of one side to a template, with all that does not depend on pixels computed beforehand.

    The antialiased smaller copy, where there is one, is taken by two matrix products: resizing is linear along each axis, and not every
    runtime has an antialiased one.
    """

    grid: Tensor
    resize: Tensor | None

    def __init__(self, template: Template, canonical_size: int) -> None:
        """Compute the sampling positions."""
        super().__init__()
        matrix = canonical_to(template, canonical_size)
        scale = math.sqrt(float(torch.linalg.det(matrix[:, :2])))
        axis = torch.arange(template.size, dtype=torch.float32)
        targets = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
        sources = transform_points(targets, invert_transform(matrix))
        # Relative to the image's extent, so that a smaller copy has the same.
        grid = (2 * sources + 1) / canonical_size - 1
        self.register_buffer("grid", grid.reshape(1, template.size, template.size, 2))
        self.register_buffer(
            "resize", _resizing(canonical_size, max(2, round(canonical_size * scale))) if scale < _COARSE else None
        )

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, C, T, T), T = the template's size."""
        if self.resize is not None:
            image = self.resize @ image @ self.resize.T
        grid = self.grid.expand(image.shape[0], -1, -1, -1)
        return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)


class ExportNetwork(nn.Module):
    """`FaceNetwork` for faces of one size, without a given mask and without what tracing cannot follow.

    Where the de-occluder works at a smaller side, all resizing is by matrix products with fixed matrices: not every runtime has the
    antialiased form.
    """

    center: Tensor
    shrink: Tensor | None
    enlarge: Tensor

    def __init__(self, network: FaceNetwork, size: int) -> None:
        """Share the weights of `network`; size: side of the canonical crops in pixels."""
        super().__init__()
        self.deoccluder, self.student = network.deoccluder, network.student
        self.crop = FixedCrop(network.student.embedder.template, size)
        work_size = size if network.deoccluder is None or network.deoccluder.size is None else network.deoccluder.size
        self.register_buffer("shrink", _resizing(size, work_size) if work_size < size else None)
        self.register_buffer("enlarge", _resizing(work_size, size))
        self.register_buffer("center", network.center)
        self.requires_grad_(False).eval()

    def forward(self, face: Tensor) -> tuple[Tensor, ...]:
        """Canonical crops (B, 3, S, S) in [-1, 1], masked or not -> the fields of `Outputs`, by the predicted mask."""
        if self.deoccluder is None:
            mask, completed_face = torch.zeros_like(face[:, :1]), face.clone()
        else:
            mask, completed_face = self._complete(self.deoccluder, face)
        embedding = centred(self._embed(face, completed_face, mask), self.center)
        return tuple(Outputs(completed_face, mask, embedding, covered_share(mask)))

    def _complete(self, deoccluder: Deoccluder, face: Tensor) -> tuple[Tensor, Tensor]:
        """As `Deoccluder`, whose own methods run under inference mode and choose images, neither of which can be traced."""
        if self.shrink is None:
            mask = deoccluder.segmenter.predict_mask(face)
            return mask, compose(face, deoccluder.generator(face, whole_mask(mask)), mask)
        small = self.shrink @ face @ self.shrink.T
        mask = self.enlarge @ deoccluder.segmenter.predict_mask(small) @ self.enlarge.T
        generated = deoccluder.generator(small, whole_mask(self.shrink @ mask @ self.shrink.T))
        return mask, compose(face, self.enlarge @ generated @ self.enlarge.T, mask)

    def _embed(self, face: Tensor, completed_face: Tensor, mask: Tensor) -> Tensor:
        """As `Student.forward`, by the fixed crop."""
        student = self.student
        shown = completed_face if student.needs_completion else face
        image = torch.cat([shown] + [face] * (student.student_input == "both") + [mask] * student.mask_channel, 1)
        embedding = self._embed_crop(self.crop(image))
        if student.embedder.spec.mirror:
            embedding = (embedding + self._embed_crop(self.crop(image.flip(-1)))) / 2
        projected: Tensor = student.projection(embedding)
        return projected

    def _embed_crop(self, channels: Tensor) -> Tensor:
        embedder = self.student.embedder
        return embedder.embed_crop(channels[:, :3], channels[:, 3:] if embedder.extra_channels else None)


def _resizing(before: int, after: int) -> Tensor:
    """(after, before): the matrix of an antialiased bilinear resizing along one axis."""
    identity = torch.eye(before)[None, None]
    return F.interpolate(identity, (after, before), mode="bilinear", antialias=True, align_corners=False)[0, 0]
