"""A recogniser from an ONNX file, run by onnxruntime: fixed weights, and no gradient passes through it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deocc.geometry import get_template
from deocc.networks.embedders.spec import EmbedderSpec, Recogniser
from deocc.networks.weights import find_weights

# What ArcFace's published ONNX files expect; options of `create_embedder` change it for others.
TEMPLATE, HALF_RANGE = "arcface", (127.5, 127.5, 127.5)

_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


class OnnxNetwork(nn.Module):
    """The graph of an ONNX file with one image input and one embedding output, the first of its outputs."""

    def __init__(self, path: Path) -> None:
        """Load it.

        Raises:
            ImportError: onnxruntime is not installed.
            ValueError: the file is damaged, or its input is not (batch, 3, side, side) with a free batch or a batch of 1.
        """
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
        except Exception as error:  # onnxruntime's errors share no other base
            raise ValueError(
                f"{self.path} is no readable ONNX file ({' '.join(str(error).split())[:120]}): export it again"
            ) from None
        inputs = self.session.get_inputs()
        self.input_name: str = inputs[0].name
        self.single, self.side = _read_shapes([image.shape for image in inputs], self.path)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, side, side) -> (B, D), without gradient.

        Raises:
            ValueError: the file asks for another side.
        """
        if self.side not in (None, image.shape[-1]):
            raise ValueError(
                f"{self.path} takes images of {self.side} pixels a side, got {image.shape[-1]}: leave size out"
            )
        array = image.detach().float().cpu()
        pieces = array.chunk(len(array)) if self.single else (array,)
        outputs = [torch.from_numpy(self.session.run(None, {self.input_name: piece.numpy()})[0]) for piece in pieces]
        return torch.cat(outputs).to(image.device)

    def __getstate__(self) -> dict[str, Any]:
        """Without the session, which can be neither copied nor sent to another process."""
        return {key: value for key, value in self.__dict__.items() if key != "session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the file again."""
        self.__dict__.update(state)
        self._open()


def _read_shapes(shapes: list[list[int | str | None]], path: Path) -> tuple[bool, int | None]:
    """Whether the batch is fixed at 1, and the side, None where it is free; a free dimension is a name or None."""
    batch, channels, *sides = [size if isinstance(size, int) else None for size in shapes[0]]
    if (
        len(shapes) != 1
        or batch not in (None, 1)
        or channels not in (None, 3)
        or len(sides) != 2
        or sides[0] != sides[1]
    ):
        raise ValueError(
            f"{path} has inputs of shape {shapes}, expected one of (batch, 3, side, side), batch free or 1: export it so"
        )
    return batch == 1, sides[0]


def build(name: str, weights: str | None, pretrained: bool) -> Recogniser:
    """The network of the ONNX file `weights`.

    Raises:
        FileNotFoundError: no such file.
        ImportError: onnxruntime is not installed.
        ValueError: no file was given, or it is damaged or has other inputs.
    """
    if weights is None:
        raise ValueError("the embedder 'onnx' is nothing without a file: give weights= the path of a .onnx")
    network = OnnxNetwork(find_weights(weights, "give weights= the path of a .onnx"))
    spec = EmbedderSpec(TEMPLATE, network.side or get_template(TEMPLATE).size, mean=HALF_RANGE, std=HALF_RANGE)
    return Recogniser(network, spec, pretrained=True, differentiable=False)
