"""Convert facenet-pytorch's MTCNN weights to one safetensors file, from which `bench.mtcnn_training` starts.

    pip download --no-deps facenet-pytorch==2.6.0
    unzip facenet_pytorch-2.6.0-py3-none-any.whl -d facenet
    python -m bench.mtcnn_weights facenet/facenet_pytorch/data

The package is distributed under the MIT licence, which is kept in `deocc/detection/mtcnn_licence.txt`.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

# network: (source file, layers before the heads, heads for logit, box and landmarks, side of the first dense layer)
_SOURCES = {
    "proposal": ("pnet.pt", ("conv1", "conv2", "conv3"), ("conv4_1", "conv4_2"), None),
    "refinement": ("rnet.pt", ("conv1", "conv2", "conv3", "dense4"), ("dense5_1", "dense5_2"), 3),
    "output": ("onet.pt", ("conv1", "conv2", "conv3", "conv4", "dense5"), ("dense6_1", "dense6_2", "dense6_3"), 3),
}


def convert(folder: Path, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """Convert the weights of the three networks.

    The two class logits become their difference, so that a sigmoid gives the probability of a face. The heads of a
    network become one layer. The first dense layer reads features in PyTorch's order (channel, y, x) instead of
    (x, y, channel).

    Args:
        folder: holds `pnet.pt`, `rnet.pt` and `onet.pt`.
        dtype: of the result.
    """
    converted: dict[str, Tensor] = {}
    for network, (file, layers, heads, side) in _SOURCES.items():
        state: dict[str, Tensor] = torch.load(folder / file, map_location="cpu", weights_only=True)
        for number, layer in enumerate(layers, 1):
            weight = state[f"{layer}.weight"]
            if side is not None and layer == layers[-1]:
                weight = weight.unflatten(1, (side, side, -1)).permute(0, 3, 2, 1).flatten(1)
            converted[f"{network}.{number}.weight"] = weight
            converted[f"{network}.{number}.bias"] = state[f"{layer}.bias"]
            converted[f"{network}.{number}.slope"] = state[f"prelu{layer[-1]}.weight"]
        for part in ("weight", "bias"):
            classes, *others = (state[f"{head}.{part}"] for head in heads)
            converted[f"{network}.head.{part}"] = torch.cat([classes[1:] - classes[:1], *others])
    return {name: tensor.to(dtype).contiguous() for name, tensor in converted.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert facenet-pytorch's MTCNN weights to one safetensors file.")
    parser.add_argument("folder", type=Path, help="facenet_pytorch/data of the unpacked wheel facenet-pytorch==2.6.0")
    parser.add_argument(
        "--output", type=Path, default=Path("published.safetensors"), help="default: published.safetensors"
    )
    parser.add_argument("--float32", action="store_true", help="keep full precision (default: float16)")
    chosen = parser.parse_args()
    weights = convert(chosen.folder, torch.float32 if chosen.float32 else torch.float16)
    save_file(weights, chosen.output, metadata={"source": "facenet-pytorch 2.6.0", "licence": "MIT"})
    print(f"wrote {chosen.output} ({chosen.output.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
