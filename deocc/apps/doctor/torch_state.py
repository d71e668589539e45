"""What torch can compute on, and whether torchvision's own operators are there."""

import os
import shutil
from collections.abc import Iterator
from typing import Final

from deocc.apps.doctor.finding import Check, Finding

_CUDA_BUILD: Final = "install the CUDA build of torch that pytorch.org names for this driver"


def _look_at_torch() -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("OK", f"torch {torch.__version__}: {torch.get_num_threads()} threads on {cores} processor cores")
    if torch.cuda.is_available():
        yield from (_cuda_device(number) for number in range(torch.cuda.device_count()))
    elif shutil.which("nvidia-smi") is not None:
        reason = "was built without CUDA" if torch.version.cuda is None else f"was built for CUDA {torch.version.cuda} and cannot use it"
        yield Finding("warning", f"an NVIDIA driver is installed, but torch {reason}: everything runs on the processor", _CUDA_BUILD)
    elif torch.backends.mps.is_available():
        yield _mps_device()
    else:
        yield Finding("OK", "no GPU: everything runs on the processor")


def _cuda_device(number: int) -> Finding:
    """Whether a small sum comes out right: a build may lack the kernels of a device that it lists."""
    import torch

    facts = torch.cuda.get_device_properties(number)
    title = f"GPU {number}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB"
    try:
        right = float(torch.ones(8, device=f"cuda:{number}").sum()) == 8
    except RuntimeError as error:
        return Finding("wrong", f"{title}: {str(error).splitlines()[0]}", _CUDA_BUILD)
    return Finding("OK", title) if right else Finding("wrong", f"{title}: it computes wrong sums", "check the driver")


def _mps_device() -> Finding:
    import torch

    right = float(torch.ones(8, device="mps").sum()) == 8
    return (
        Finding("OK", "Apple GPU (MPS)") if right else Finding("wrong", "Apple GPU (MPS): it computes wrong sums", "update macOS and torch")
    )


def _look_at_torchvision() -> Iterator[Finding]:
    """Suppression of overlapping boxes is one of the compiled operators; under the guard it is declared and cannot run."""
    import torch
    import torchvision

    try:
        torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except (NotImplementedError, RuntimeError):
        guarded = "its compiled operators do not load beside this torch, so deocc's guard declares them: nothing here needs them"
        yield Finding("OK", f"torchvision {torchvision.__version__}: {guarded}")
    else:
        yield Finding("OK", f"torchvision {torchvision.__version__}: its compiled operators run, the guard is not needed")


CHECKS: Final = (
    Check("torch", _look_at_torch, ("torch",), "pip install --force-reinstall torch"),
    Check("torchvision", _look_at_torchvision, ("torch", "torchvision"), "pip install --force-reinstall torchvision"),
)
