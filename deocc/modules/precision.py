"""What is computed in float32 whatever precision a training runs in."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import pytorch_lightning as pl
import torch

_Module = TypeVar("_Module", bound=pl.LightningModule)
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def outside_autocast(
    method: Callable[Concatenate[_Module, _Arguments], _Result],
) -> Callable[Concatenate[_Module, _Arguments], _Result]:
    """Decorates a module's method: autocast is off while it runs, so that what is measured does not depend on the trainer's precision."""

    @wraps(method)
    def exact(self: _Module, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return exact
