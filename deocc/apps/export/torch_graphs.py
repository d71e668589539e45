"""TorchScript, which C++ and old torch run, and torch.export's programs, which compilers take: both need no deocc to run."""

import io
from typing import Self

import torch
from torch import Tensor, nn

from deocc.apps.export.graph import METADATA, Outputs, Run, silence


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
