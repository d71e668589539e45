"""The trained networks of stage 2 without teacher and trainer: from a face to mask, completed face and embedding."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor, nn

from deocc.messages import describe_error
from deocc.networks import Deoccluder, Student, create_embedder
from deocc.networks.deoccluder import check_fit
from deocc.networks.embedders.embedder import Embedder, centred
from deocc.networks.embedders.registry import read_options
from deocc.networks.student import embed_by_mask

MOST_SIDE: Final = 1024
"""Maximum side of face crops in pixels that a file may ask for; published recognisers take 112 to 224 (our choice)."""

_STAGE: Final = "distillation"
_STUDENT: Final = "average.module."  # prefix of the student's running average in a checkpoint
_DEOCCLUDER: Final = "deoccluder."
_TEACHER: Final = "teacher."


class FaceOutput(NamedTuple):
    """The results for B faces.

    Attributes:
        mask: (B, 1, S, S), 1 = covered.
        completed_face: (B, 3, S, S) in [-1, 1].
        embedding: (B, D) unit vectors.
    """

    mask: Tensor
    completed_face: Tensor
    embedding: Tensor


class FaceNetwork(nn.Module):
    """De-occluder, student and centre of the embeddings, frozen; built with random weights.

    Args:
        config: `student`, with the embedder's `name` and `options`, `student_input`, `mask_channel` and
            `embedding_dim`; `deoccluder`, as `Deoccluder.config`, or None; and `bare_faces`, the embedder of faces with
            an empty mask, with `name`, `options` and `packaged`, True if its weights are those of an installed package;
            None for the student.

    Attributes:
        teacher: the embedder of faces with an empty mask; None for the student.

    Raises:
        ValueError: the configuration describes no such network.
        ImportError: a network needs a package that is not installed.
    """

    center: Tensor
    teacher: Embedder | None

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        student = config["student"]
        embedder = create_embedder(student["name"], pretrained=False, **read_options(student["options"]))
        self.student = Student(embedder, student["embedding_dim"], student["student_input"], student["mask_channel"])
        self.deoccluder = Deoccluder(**config["deoccluder"]) if config["deoccluder"] is not None else None
        bare_faces = config["bare_faces"]
        self.teacher = None
        if bare_faces is not None:
            options, self._packaged = read_options(bare_faces["options"]), bool(bare_faces["packaged"])
            self.teacher = create_embedder(bare_faces["name"], pretrained=self._packaged, **options)
            if self._packaged and not self.teacher.pretrained:
                raise ValueError(f"no package has the weights of {bare_faces['name']}")
        self.register_buffer("center", torch.zeros(student["embedding_dim"]))
        self.requires_grad_(False).eval()

    def own_state(self) -> dict[str, Tensor]:
        """Return the weights and buffers, except the teacher's if an installed package has them."""
        state: dict[str, Tensor] = self.state_dict()
        skipped = _TEACHER if self.teacher is not None and self._packaged else ()
        return {key: value for key, value in state.items() if not key.startswith(skipped)}

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the result of `own_state`."""
        own = self.own_state()
        packaged = {key: value for key, value in self.state_dict().items() if key not in own}
        self.load_state_dict({**packaged, **state})

    def forward(self, face: Tensor, mask: Tensor | None = None) -> FaceOutput:
        """Return mask, completed face and embedding.

        Without a de-occluder a mask that is not given is empty, and the completed face is the face.

        Args:
            face: (B, 3, S, S) in [-1, 1], masked or not.
            mask: (B, 1, S, S), 1 = covered; None = predicted.
        """
        if mask is None:
            mask = self.deoccluder.predict_mask(face) if self.deoccluder is not None else torch.zeros_like(face[:, :1])
        completed_face: Tensor = self.deoccluder(face, mask) if self.deoccluder is not None else face
        if self.teacher is None:
            embedding = self.student(face, completed_face, mask)
        else:
            embedding = embed_by_mask(self.student, self.teacher, face, completed_face, mask)
        return FaceOutput(mask, completed_face, centred(embedding, self.center))


def network_of_checkpoint(checkpoint: Mapping[str, Any], name: str) -> tuple[dict[str, Any], FaceNetwork]:
    """Build the network of a checkpoint, with the running average of the student.

    Args:
        checkpoint: the result of `deocc.networks.weights.read_checkpoint`.
        name: name of the checkpoint in error messages.

    Returns:
        The configuration, as in a model folder, and the network.

    Raises:
        ValueError: it is no checkpoint of stage 2, or a damaged one.
        ImportError: a network needs a package that is not installed.
    """
    stage = checkpoint.get("stage", "unknown")
    if stage != _STAGE:
        raise ValueError(f"{name} is a checkpoint of the stage {stage!r}, not of {_STAGE!r}: give a stage-2 run")
    try:
        config, weights = _read_config(checkpoint), checkpoint["state_dict"]
        state = {f"student.{key}": value for key, value in _below(weights, _STUDENT).items()}
        stored = (_DEOCCLUDER,) if config["bare_faces"] is None else (_DEOCCLUDER, _TEACHER)
        state |= {key: value for key, value in weights.items() if key.startswith(stored)}
        return config, network_of(config, {**state, "center": weights["center"]}, name)
    except KeyError as error:
        raise ValueError(f"{name} lacks {error}: it is damaged or of another version of deocc") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{name} holds other things than a stage 2 ({error}): it is damaged") from error


def network_of(config: Mapping[str, Any], state: Mapping[str, Tensor], name: str) -> FaceNetwork:
    """Build the network that `config` describes, with the weights `state`.

    Raises:
        ValueError: they do not fit together; the message names their source, `name`.
        ImportError: a network needs a package that is not installed.
    """
    try:
        _check_sizes(config, state)
        network = FaceNetwork(config)
        network.load_own_state(state)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = describe_error(error, 160)
        raise ValueError(f"the networks in {name} cannot be rebuilt ({reason}): it is damaged") from error
    return network


def _check_sizes(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Raise ValueError if sizes in the configuration differ from the weights, before memory is allocated for them."""
    student, center = config["student"], state["center"]
    if center.shape != (student["embedding_dim"],):
        raise ValueError(f"embeddings of {student['embedding_dim']} numbers, a centre of {tuple(center.shape)}")
    for embedder in (student, config["bare_faces"]):
        size = embedder["options"].get("size") or 1 if embedder is not None else 1
        if size > MOST_SIDE:
            raise ValueError(f"crops of {size} pixels for {embedder['name']}, at most {MOST_SIDE} are allowed")
    if config["deoccluder"] is not None:
        check_fit(config["deoccluder"], _below(state, _DEOCCLUDER))


def _read_config(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    settings = checkpoint["hyper_parameters"]
    copied = settings["student"] is None  # the student started as a copy of the teacher
    options = (settings["student_options"] or settings["teacher_options"]) if copied else settings["student_options"]
    by_teacher = settings["bare_faces"] == "teacher"
    teacher = {"name": settings["teacher"], "options": dict(settings["teacher_options"] or {})}
    return {
        "student": {
            "name": settings["teacher"] if copied else settings["student"],
            "options": dict(options or {}),
            "student_input": settings["student_input"],
            "mask_channel": settings["mask_channel"],
            "embedding_dim": len(cast(Tensor, checkpoint["state_dict"]["center"])),
        },
        "teacher": settings["teacher"],
        "bare_faces": {**teacher, "packaged": settings["teacher_weights"] is None} if by_teacher else None,
        "deoccluder": checkpoint["deoccluder"],
    }


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries below a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
