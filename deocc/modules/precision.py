"""Precision of networks within a LightningModule.

Scores do not depend on the precision of the trainer. Frozen networks compute in bfloat16 on CPUs with instructions for
it, where a test takes three quarters of the time (`python -m bench.testing`); the environment variable DEOCC_BFLOAT16=0
turns that off. Predictions and the choice of thresholds and gates always use float32; the error rates of a threshold on
test people are measured with the embeddings of the test.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import pytorch_lightning as pl
import torch

_EXACT_EMBEDDERS: Final = ("dlib_resnet", "sface")  # cosines between the embeddings of both precisions exceed 0.9995

_Method = TypeVar("_Method", bound=Callable[..., Any])


def outside_autocast(method: _Method) -> _Method:
    """Disable autocast while the decorated method of a LightningModule runs."""

    @wraps(method)
    def in_float32(self: pl.LightningModule, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return cast(_Method, in_float32)


@lru_cache
def has_bfloat16_instructions(cpu: Path = Path("/proc/cpuinfo")) -> bool:
    """Check for AMX or AVX512-BF16; on other CPUs bfloat16 is several times slower than float32."""
    flags = set(cpu.read_text(encoding="utf-8").split()) if cpu.is_file() else set[str]()
    return bool(flags & {"amx_bf16", "avx512_bf16"})


def uses_bfloat16(device: torch.device, *embedders: str) -> bool:
    """Return whether frozen networks compute in bfloat16; on a GPU the trainer's precision decides.

    Of embedders, given by their names, only those whose difference to float32 was measured use bfloat16.
    """
    wanted = os.environ.get("DEOCC_BFLOAT16", "1") != "0" and set(embedders) <= set(_EXACT_EMBEDDERS)
    return wanted and device.type == "cpu" and has_bfloat16_instructions()


def frozen_precision(device: torch.device, *embedders: str) -> AbstractContextManager[Any]:
    """Return a context for frozen networks: bfloat16 if they use it, or without effect."""
    return torch.autocast("cpu", torch.bfloat16) if uses_bfloat16(device, *embedders) else nullcontext()
