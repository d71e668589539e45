"""What a trained stage 2 does with a face, without Lightning, teacher or trainer: mask, completed face and embedding."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor, nn

from deocc.modules.evaluation import centred
from deocc.networks import Deoccluder, Student, create_embedder
from deocc.networks.deoccluder import check_fit
from deocc.networks.embedders.registry import read_options

_STUDENT = "average.module."
_DEOCCLUDER = "deoccluder."
_STAGE = "distillation"
MOST_SIDE: Final = 1024
"""Pixels that a file may ask a side of face crops to have; published recognisers take 112 to 224. OURS."""


class FaceOutput(NamedTuple):
    """Of B faces."""

    mask: Tensor
    """(B, 1, S, S), 1 = covered."""
    completed_face: Tensor
    """(B, 3, S, S) in [-1, 1]."""
    embedding: Tensor
    """(B, D) unit vectors."""


class FaceNetwork(nn.Module):
    """De-occluder, student and centre; frozen."""

    center: Tensor

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Build the networks with random weights.

        Args:
            config: `student`, with the embedder's `name` and `options`, `student_input`, `mask_channel` and `embedding_dim`; `deoccluder`,
                as `Deoccluder.config`, or None.

        Raises:
            ValueError: it describes no such network.
            ImportError: the student needs a package that is not installed.
        """
        super().__init__()
        student = config["student"]
        embedder = create_embedder(student["name"], pretrained=False, **read_options(student["options"]))
        self.student = Student(embedder, student["embedding_dim"], student["student_input"], student["mask_channel"])
        self.deoccluder = Deoccluder(**config["deoccluder"]) if config["deoccluder"] is not None else None
        self.register_buffer("center", torch.zeros(student["embedding_dim"]))
        self.requires_grad_(False).eval()

    def forward(self, face: Tensor, mask: Tensor | None = None) -> FaceOutput:
        """Mask, completed face and embedding of faces.

        Without a de-occluder the mask is empty unless given, and the completed face is the face.

        Args:
            face: (B, 3, S, S) in [-1, 1], masked or not.
            mask: (B, 1, S, S), 1 = covered; None = predicted.
        """
        if mask is None:
            mask = self.deoccluder.predict_mask(face) if self.deoccluder is not None else torch.zeros_like(face[:, :1])
        completed_face: Tensor = self.deoccluder(face, mask) if self.deoccluder is not None else face
        return FaceOutput(mask, completed_face, centred(self.student(face, completed_face, mask), self.center))


def network_of_checkpoint(checkpoint: Mapping[str, Any], name: str) -> tuple[dict[str, Any], FaceNetwork]:
    """The configuration and the network, with the student's running average, of what `deocc.networks.weights.read_checkpoint` read.

    Raises:
        ValueError: it is no checkpoint of stage 2, or not a whole one; the message calls it `name`.
        ImportError: the student needs a package that is not installed.
    """
    stage = checkpoint.get("stage", "unknown")
    if stage != _STAGE:
        raise ValueError(f"{name} is a checkpoint of the stage {stage!r}, not of {_STAGE!r}: give a stage-2 run")
    try:
        config = _config(checkpoint)
        state = {f"student.{key}": value for key, value in _below(checkpoint["state_dict"], _STUDENT).items()}
        state |= {f"{_DEOCCLUDER}{key}": value for key, value in _below(checkpoint["state_dict"], _DEOCCLUDER).items()}
        return config, network_of(config, {**state, "center": checkpoint["state_dict"]["center"]}, name)
    except KeyError as error:
        raise ValueError(f"{name} lacks {error}: it is damaged or of another version of deocc") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{name} holds other things than a stage 2 ({error}): it is damaged") from error


def network_of(config: Mapping[str, Any], state: Mapping[str, Tensor], name: str) -> FaceNetwork:
    """The network that `config` describes, with the weights `state`.

    Raises:
        ValueError: they do not fit; the message calls them `name`.
        ImportError: the student needs a package that is not installed.
    """
    try:
        _check_fit(config, state)
        network = FaceNetwork(config)
        network.load_state_dict(dict(state))
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"the networks in {name} cannot be rebuilt ({' '.join(str(error).split())[:160]}): it is damaged"
        ) from error
    return network


def _check_fit(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Raise ValueError where what the configuration sizes freely is not of the weights' size, before it takes the memory."""
    student, center = config["student"], state["center"]
    if center.shape != (student["embedding_dim"],):
        raise ValueError(f"embeddings of {student['embedding_dim']} numbers, a centre of {tuple(center.shape)}")
    if (student["options"].get("size") or 1) > MOST_SIDE:
        raise ValueError(
            f"crops of {student['options']['size']} pixels for the student, at most {MOST_SIDE} are allowed"
        )
    if config["deoccluder"] is not None:
        check_fit(config["deoccluder"], _below(state, _DEOCCLUDER))


def _config(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    settings = checkpoint["hyper_parameters"]
    copied = settings["student"] is None  # the student then starts as a copy of the teacher
    options = (settings["student_options"] or settings["teacher_options"]) if copied else settings["student_options"]
    return {
        "student": {
            "name": settings["teacher"] if copied else settings["student"],
            "options": dict(options or {}),
            "student_input": settings["student_input"],
            "mask_channel": settings["mask_channel"],
            "embedding_dim": len(cast(Tensor, checkpoint["state_dict"]["center"])),
        },
        "teacher": settings["teacher"],
        "deoccluder": checkpoint["deoccluder"],
    }


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
