"""A hash by which a teacher is known again, in another training or on another machine."""

import hashlib

import torch

from deocc.networks.embedder import Embedder
from deocc.networks.onnx_embedder import OnnxNetwork


def teacher_fingerprint(teacher: Embedder) -> str:
    """A hash of all that decides what a teacher gives for a face: its network's name, its weights, what it expects at its input."""
    digest = hashlib.sha256(repr((teacher.name, teacher.spec, teacher.template)).encode())
    for name, value in teacher.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    if isinstance(teacher.network, OnnxNetwork):  # its weights are no parameters
        with teacher.network.path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
