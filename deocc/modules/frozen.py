"""What a checkpoint says of itself, and the frozen networks that it leaves out."""

from typing import Any

from torch import nn


def check_stage(checkpoint: dict[str, Any], wanted: str) -> None:
    """Raise ValueError unless `checkpoint` was saved by the module of the stage `wanted`."""
    stage = checkpoint.get("stage", "unknown")
    if stage != wanted:
        raise ValueError(
            f"this is a checkpoint of the stage {stage!r}, but one of the stage {wanted!r} is needed: give another run or file"
        )


def leave_out(checkpoint: dict[str, Any], name: str) -> None:
    """Drop the state of the submodule `name`: its weights belong to somebody else and are loaded anew from where they came from."""
    checkpoint["state_dict"] = {key: value for key, value in checkpoint["state_dict"].items() if not key.startswith(f"{name}.")}


def put_back(checkpoint: dict[str, Any], name: str, module: nn.Module | None) -> None:
    """Undo `leave_out` from the module's present state, so that the rest can be loaded strictly."""
    if module is not None:
        checkpoint["state_dict"].update({f"{name}.{key}": value for key, value in module.state_dict().items()})
