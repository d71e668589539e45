"""How the figures of one device are taken: its own time and memory, and what its maker says it can do."""

import statistics
import time
from collections.abc import Callable

import torch

Precision = str
PEAK_TERAFLOPS: dict[str, dict[Precision, float]] = {
    "NVIDIA H100 PCIe": {"fp32": 51.2, "tf32": 378.0, "bf16": 756.0, "fp16": 756.0},
    "NVIDIA H100 80GB HBM3": {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4, "fp16": 989.4},
    "NVIDIA H200": {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4, "fp16": 989.4},
    "NVIDIA A100": {"fp32": 19.5, "tf32": 156.0, "bf16": 312.0, "fp16": 312.0},
}
"""Dense peaks, without sparsity, by the start of the device's name: NVIDIA's white papers "H100 Tensor Core GPU Architecture" (H200: the
same chip) and "A100 Tensor Core GPU Architecture"."""


def device_name(device: torch.device) -> str:
    """The name that a GPU gives itself; the type of any other device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_flops(name: str, precision: Precision) -> float | None:
    """Published floating-point operations a second; None where they are not in the table."""
    peaks = next((peaks for start, peaks in PEAK_TERAFLOPS.items() if name.startswith(start)), {})
    return 1e12 * peaks[precision] if precision in peaks else None


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(device: torch.device, call: Callable[[], object], repeats: int) -> float:
    """The median of so many calls, each awaited, after a warm-up."""
    call()
    taken = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def peak_mebibytes_on(device: torch.device, call: Callable[[], object]) -> float | None:
    """How far a call raises the memory that tensors take on a GPU; None on other devices."""
    if device.type != "cuda":
        call()
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20
