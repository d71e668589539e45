"""Backbone from an ONNX file, run by onnxruntime; frozen and not differentiable."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deocc.geometry import get_template
from deocc.messages import describe_error
from deocc.networks.embedders.embedder import Backbone, EmbedderSpec
from deocc.networks.weights import find_weights

# Input of ArcFace's published ONNX files; options of `create_embedder` override it.
TEMPLATE, HALF_RANGE = "arcface", (127.5, 127.5, 127.5)
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
_DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64}


class OnnxNetwork(nn.Module):
    """ONNX graph with one floating-point input (batch, 3, side, side) with a free batch or a batch of 1.

    Its first output is the embedding.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._open()

    def _open(self) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise ImportError('ONNX recognisers need onnxruntime: pip install "deocc[onnx]"') from None
        providers = [provider for provider in _PROVIDERS if provider in onnxruntime.get_available_providers()]
        try:
            self.session: Any = onnxruntime.InferenceSession(self.path, providers=providers)
        except Exception as error:  # onnxruntime's errors have no narrower base class
            raise ValueError(
                f"{self.path} is no readable ONNX file ({describe_error(error)}): export it again"
            ) from None
        inputs = self.session.get_inputs()
        shapes = [image.shape for image in inputs]
        # A free dimension is a name or None.
        batch, channels, *sides = [size if isinstance(size, int) else None for size in shapes[0]]
        if len(shapes) != 1 or batch not in (None, 1) or channels not in (None, 3) or len(sides) != 2:
            sides = [0, 1]
        if sides[0] != sides[1]:
            raise ValueError(
                f"{self.path} has inputs of shape {shapes}, expected one of (batch, 3, side, side), "
                "batch free or 1: export it so"
            )
        if inputs[0].type not in _DTYPES:
            expected = f"expected one of {', '.join(_DTYPES)}: export it with inputs of that type"
            raise ValueError(f"{self.path} takes a {inputs[0].type}, {expected}")
        self.input_name: str = inputs[0].name
        self.dtype = _DTYPES[inputs[0].type]
        self.single = batch == 1
        self.side: int | None = sides[0]

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, side, side) to (B, D), without gradient; ValueError if the file requires another side."""
        if self.side not in (None, image.shape[-1]):
            raise ValueError(
                f"{self.path} takes images of {self.side} pixels a side, got {image.shape[-1]}: leave size out"
            )
        array = image.detach().to("cpu", self.dtype)
        batches = array.split(1) if self.single else (array,)
        outputs = [torch.from_numpy(self.session.run(None, {self.input_name: batch.numpy()})[0]) for batch in batches]
        return torch.cat(outputs).float().to(image.device)

    def __getstate__(self) -> dict[str, Any]:
        """Exclude the session, which can be neither copied nor pickled."""
        return {key: value for key, value in self.__dict__.items() if key != "session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def build(name: str, weights: str | None, pretrained: bool) -> Backbone:
    """Open the ONNX file `weights`, which is required."""
    if weights is None:
        raise ValueError("the embedder 'onnx' is nothing without a file: give weights= the path of a .onnx")
    network = OnnxNetwork(find_weights(weights, "give weights= the path of a .onnx"))
    spec = EmbedderSpec(TEMPLATE, network.side or get_template(TEMPLATE).size, mean=HALF_RANGE, std=HALF_RANGE)
    return Backbone(network, spec, pretrained=True, differentiable=False)
