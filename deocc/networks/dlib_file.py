"""Reader of dlib's serialised face network, `dlib_face_recognition_resnet_model_v1.dat`.

The format is the one that dlib 19 and later write (its `serialize.h`, `dnn/core.h` and `dnn/layers.h`): an integer is one byte whose low
four bits count the little-endian bytes that follow and whose top bit is the sign; a bool is ASCII '0' or '1'; a string is its length,
then its bytes; a float scalar is two integers, mantissa and exponent; a tensor is the integer 2, four dimensions and raw float32.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WRAPPERS = 130  # version numbers of the nested layer, tag and skip templates, outermost first
LAYERS = 108
_MOST_BYTES = 2**27  # OURS: the published file has 22,466,066

# For each kind of layer: integers before its weights, whether it has weights, integers after them (a float scalar counts as two).
_LAYOUT: dict[str, tuple[int, bool, int]] = {
    "con_4": (0, True, 25),  # after: filters, kernel 2, stride 2, padding 2, two views of 5, four multipliers
    "affine_": (0, True, 11),  # two views of 5, mode
    "fc_2": (2, True, 19),  # before: outputs, inputs; after: two views of 5, bias mode, four multipliers
    "avg_pool_2": (6, False, 0),
    "max_pool_2": (6, False, 0),
    "relu_": (0, False, 0),
    "add_prev_": (0, False, 0),
}


@dataclass(frozen=True)
class Layer:
    """One layer: its kind as dlib names it, and its weights in dlib's own order, flat, empty where it has none."""

    kind: str
    weights: NDArray[np.float32]


def read_layers(path: Path) -> list[Layer]:
    """The layers of a face network in forward order.

    Raises:
        ValueError: the file is cut, damaged, or no dlib face network.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise _DamagedError(f"it has {path.stat().st_size:,} bytes, at most {_MOST_BYTES:,} are read")
        return _Reader(path.read_bytes()).network()
    except _DamagedError as error:
        raise ValueError(f"{path} is damaged or no dlib face network ({error}): install or download it again") from None


class _DamagedError(Exception):
    """What does not fit, and at which byte."""


class _Reader:
    """A position in the bytes of a file."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def network(self) -> list[Layer]:
        self.integers(1)
        self.name("loss_metric_2")
        self.integers(4 + WRAPPERS)
        self.name("input_rgb_image_sized")
        self.integers(3 * 2 + 2)
        layers: list[Layer] = []
        for number in range(LAYERS):
            layers.append(self.layer())
            if number == 0:
                self.integers(1)  # the layer next to the input also stores how many samples an image expands to
        if self.position != len(self.data):
            raise _DamagedError(f"{len(self.data) - self.position} bytes follow the last layer")
        return layers

    def layer(self) -> Layer:
        kind = self.string()
        if kind.startswith("add_prev_"):
            kind = "add_prev_"  # dlib appends the number of the tag that is added
        if kind not in _LAYOUT:
            raise _DamagedError(f"unknown layer {kind[:20]!r} before byte {self.position}")
        before, has_weights, after = _LAYOUT[kind]
        self.integers(before)
        weights = self.tensor() if has_weights else np.empty(0, np.float32)
        self.integers(after)
        if any(byte not in b"01" for byte in self.take(3)):
            raise _DamagedError(f"no bool before byte {self.position}")
        for _ in range(3):  # gradients and a cached output, all empty in a file that holds a trained network
            self.tensor()
        return Layer(kind, weights)

    def take(self, count: int) -> bytes:
        piece = self.data[self.position : self.position + count]
        if count < 0 or len(piece) != count:
            raise _DamagedError(f"it ends at byte {len(self.data)}, where more is expected")
        self.position += count
        return piece

    def integer(self) -> int:
        head = self.take(1)[0]
        if head & 0x70 or not 1 <= head & 0x0F <= 8:
            raise _DamagedError(f"no integer at byte {self.position - 1}")
        value = int.from_bytes(self.take(head & 0x0F), "little")
        return -value if head & 0x80 else value

    def integers(self, count: int) -> list[int]:
        return [self.integer() for _ in range(count)]

    def string(self) -> str:
        return self.take(self.integer()).decode("latin-1")

    def name(self, expected: str) -> None:
        found = self.string()
        if found != expected:
            raise _DamagedError(f"{found[:30]!r} where {expected!r} is expected")

    def tensor(self) -> NDArray[np.float32]:
        version, *shape = self.integers(5)
        if version != 2 or min(shape) < 0:
            raise _DamagedError(f"no tensor before byte {self.position}")
        values = np.frombuffer(self.take(4 * int(np.prod(shape, dtype=object))), "<f4").astype(np.float32)
        if not np.isfinite(values).all():
            raise _DamagedError(f"weights that are not finite before byte {self.position}")
        return values
