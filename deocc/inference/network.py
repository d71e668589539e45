"""The trained networks of stage 2 without trainer, as they run in `Pipeline` and in a traceable form for files."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deocc.evaluation.thresholds import covered_share
from deocc.geometry import Template, canonical_to, invert_transform, transform_points
from deocc.messages import describe_error
from deocc.networks import Deoccluder, Student, create_embedder
from deocc.networks.deoccluder import check_fit, whole_mask
from deocc.networks.embedders.embedder import Embedder, unit_embedding
from deocc.networks.embedders.registry import read_options
from deocc.networks.generator import compose
from deocc.networks.student import embed_by_mask
from deocc.networks.weights import read_checkpoint, sub_state

MOST_SIDE: Final = 1024
"""Maximum side of face crops in pixels that a file may ask for; published recognisers take 112 to 224 (our choice)."""

_DEOCCLUDER, _TEACHER = "deoccluder.", "teacher."  # prefixes of weights
_COARSE: Final = 1 / 1.5  # scale below which `deocc.geometry.warp` samples a smaller copy


class FaceOutput(NamedTuple):
    """The results for B faces; an exported file has outputs of the same names."""

    completed_face: Tensor  # (B, 3, S, S) in [-1, 1]
    mask: Tensor  # (B, 1, S, S), 1 = covered
    embedding: Tensor  # (B, D) unit vectors
    covered: Tensor  # (B,) covered share of the face, in [0, 1], by which the threshold of a pair is chosen


class FaceNetwork(nn.Module):
    """De-occluder, student and centre of the embeddings, frozen; built with random weights.

    Args:
        config: `student`, with the embedder's `name` and `options`, `student_input`, `mask_channel` and
            `embedding_dim`; `deoccluder`, as `Deoccluder.config`, or None; and `bare_faces`, the embedder of faces with
            an empty mask, with `name`, `options` and `packaged`, True if its weights are those of an installed package;
            None for the student.

    Raises:
        ValueError: the configuration describes no such network.
        ImportError: a network needs a package that is not installed.
    """

    center: Tensor
    teacher: Embedder | None  # of faces with an empty mask; None for the student

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        student = config["student"]
        embedder = create_embedder(student["name"], pretrained=False, **read_options(student["options"]))
        self.student = Student(embedder, student["embedding_dim"], student["student_input"], student["mask_channel"])
        self.deoccluder = Deoccluder(**config["deoccluder"]) if config["deoccluder"] is not None else None
        bare_faces = config["bare_faces"]
        self.teacher, self._packaged = None, False
        if bare_faces is not None:
            options, self._packaged = read_options(bare_faces["options"]), bool(bare_faces["packaged"])
            self.teacher = create_embedder(bare_faces["name"], pretrained=self._packaged, **options)
            if self._packaged and not self.teacher.pretrained:
                raise ValueError(f"no package has the weights of {bare_faces['name']}")
        self.register_buffer("center", torch.zeros(student["embedding_dim"]))
        self.requires_grad_(False).eval()

    def own_state(self) -> dict[str, Tensor]:
        """Return the weights and buffers, except those of the teacher if an installed package has them."""
        state = self.state_dict().items()
        return {key: value for key, value in state if not (self._packaged and key.startswith(_TEACHER))}

    def predict_mask(self, face: Tensor) -> Tensor:
        """Predict masks (B, 1, S, S) of faces (B, 3, S, S) in [-1, 1]; they are empty without a de-occluder."""
        return self.deoccluder.predict_mask(face) if self.deoccluder is not None else torch.zeros_like(face[:, :1])

    def forward(self, face: Tensor, mask: Tensor | None = None) -> FaceOutput:
        """Compute the results for faces (B, 3, S, S) in [-1, 1] with the given masks, or with predicted ones.

        Without a de-occluder a mask that is not given is empty, and the completed face is the face.
        """
        mask = self.predict_mask(face) if mask is None else mask
        completed_face: Tensor = self.deoccluder(face, mask) if self.deoccluder is not None else face
        if self.teacher is None:
            embedding = self.student(face, completed_face, mask)
        else:
            embedding = embed_by_mask(self.student, self.teacher, face, completed_face, mask)
        return FaceOutput(completed_face, mask, unit_embedding(embedding, self.center), covered_share(mask))


def network_of_checkpoint(path: Path) -> tuple[dict[str, Any], FaceNetwork]:
    """Return the configuration, as in a model folder, and the network of a stage-2 checkpoint.

    The student is the running average. Raises what `read_checkpoint` and `network_of` raise.
    """
    checkpoint = read_checkpoint(path, "distillation")
    try:
        settings, weights = checkpoint["hyper_parameters"], checkpoint["state_dict"]
        copied = settings["student"] is None  # the student started as a copy of the teacher
        options, teacher_options = settings["student_options"], settings["teacher_options"] or {}
        if copied:
            options = options or teacher_options
        by_teacher, packaged = settings["bare_faces"] == "teacher", settings["teacher_weights"] is None
        teacher = {"name": settings["teacher"], "options": dict(teacher_options), "packaged": packaged}
        config = {
            "student": {
                "name": settings["teacher"] if copied else settings["student"],
                "options": dict(options or {}),
                "student_input": settings["student_input"],
                "mask_channel": settings["mask_channel"],
                "embedding_dim": len(weights["center"]),
            },
            "teacher": settings["teacher"],
            "bare_faces": teacher if by_teacher else None,
            "deoccluder": checkpoint["deoccluder"],
        }
        stored = (_DEOCCLUDER, _TEACHER) if by_teacher else _DEOCCLUDER
        state = {key: value for key, value in weights.items() if key.startswith(stored)}
        state |= {f"student.{key}": value for key, value in sub_state(weights, "average.module.").items()}
        return config, network_of(config, {**state, "center": weights["center"]}, str(path))
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}: it is damaged or of another version of deocc") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds other things than a stage 2 ({error}): it is damaged") from error


def network_of(config: Mapping[str, Any], state: Mapping[str, Tensor], name: str) -> FaceNetwork:
    """Build the network that `config` describes, with the weights `state`, as `FaceNetwork.own_state` returns them.

    Raises:
        ValueError: they do not fit together; the message names their source, `name`.
        ImportError: a network needs a package that is not installed.
    """
    try:
        # Sizes are checked before memory is allocated for them: the file could exaggerate.
        student, center = config["student"], state["center"]
        if center.shape != (student["embedding_dim"],):
            raise ValueError(f"embeddings of {student['embedding_dim']} numbers, a centre of {tuple(center.shape)}")
        for embedder in (student, config["bare_faces"]):
            size = embedder["options"].get("size") or 1 if embedder is not None else 1
            if size > MOST_SIDE:
                raise ValueError(f"crops of {size} pixels for {embedder['name']}, at most {MOST_SIDE} are allowed")
        if config["deoccluder"] is not None:
            check_fit(config["deoccluder"], sub_state(state, _DEOCCLUDER))
        network = FaceNetwork(config)
        own = network.own_state()
        packaged = {key: value for key, value in network.state_dict().items() if key not in own}
        network.load_state_dict({**packaged, **state})
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = describe_error(error, 160)
        raise ValueError(f"the networks in {name} cannot be rebuilt ({reason}): it is damaged") from error
    return network


class FixedCrop(nn.Module):
    """`deocc.geometry.warp` from canonical crops of one size to a template, with a precomputed sampling grid.

    If the template is much coarser, the antialiased smaller copy is computed by two matrix products: resizing is linear
    along each axis, and not every runtime has an antialiased resize.
    """

    grid: Tensor
    resize: Tensor | None

    def __init__(self, template: Template, canonical_size: int) -> None:
        super().__init__()
        matrix = canonical_to(template, canonical_size)
        scale = math.sqrt(float(torch.linalg.det(matrix[:, :2])))
        axis = torch.arange(template.size, dtype=torch.float32)
        targets = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
        sources = transform_points(targets, invert_transform(matrix))
        grid = (2 * sources + 1) / canonical_size - 1  # relative to the extent, which a smaller copy has in common
        self.register_buffer("grid", grid.reshape(1, template.size, template.size, 2))
        smaller = max(2, round(canonical_size * scale))
        self.register_buffer("resize", _resize_matrix(canonical_size, smaller) if scale < _COARSE else None)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, C, S, S) to (B, C, T, T), T = the template's size."""
        grid = self.grid.expand(image.shape[0], -1, -1, -1)
        resized = _resize(image, self.resize)
        return F.grid_sample(resized, grid, mode="bilinear", padding_mode="border", align_corners=False)


class ExportNetwork(nn.Module):
    """`FaceNetwork` for faces of `size` pixels with predicted masks, without operations that cannot be traced.

    It shares the weights. If the de-occluder works at a smaller size, images are resized as in `FixedCrop`.
    """

    center: Tensor
    shrink: Tensor | None
    enlarge: Tensor | None

    def __init__(self, network: FaceNetwork, size: int) -> None:
        super().__init__()
        self.deoccluder, self.student, self.teacher = network.deoccluder, network.student, network.teacher
        self.crop = FixedCrop(network.student.embedder.template, size)
        self.teacher_crop = FixedCrop(network.teacher.template, size) if network.teacher is not None else None
        work_size = size if network.deoccluder is None else min(size, network.deoccluder.size or size)
        self.register_buffer("shrink", _resize_matrix(size, work_size) if work_size < size else None)
        self.register_buffer("enlarge", _resize_matrix(work_size, size) if work_size < size else None)
        self.register_buffer("center", network.center)
        self.requires_grad_(False).eval()

    def forward(self, face: Tensor) -> tuple[Tensor, ...]:
        """Map canonical crops (B, 3, S, S) in [-1, 1], masked or not, to the fields of `FaceOutput`."""
        if self.deoccluder is None:
            mask, completed_face = torch.zeros_like(face[:, :1]), face.clone()
        else:  # without the inference mode and the selection of images of `Deoccluder`
            small = _resize(face, self.shrink)
            mask = _resize(self.deoccluder.segmenter.predict_mask(small), self.enlarge)
            generated = self.deoccluder.generator(small, whole_mask(_resize(mask, self.shrink)))
            completed_face = compose(face, _resize(generated, self.enlarge), mask)
        student = self.student
        channels = [completed_face if student.needs_completion else face]
        if student.student_input == "both":
            channels.append(face)
        if student.mask_channel:
            channels.append(mask)
        embedding: Tensor = student.projection(_embed(student.embedder, self.crop, torch.cat(channels, 1)))
        if self.teacher is not None and self.teacher_crop is not None:  # both networks embed every face
            masked = mask.flatten(1).amax(1, keepdim=True) > 0
            embedding = torch.where(masked, embedding, _embed(self.teacher, self.teacher_crop, face))
        return completed_face, mask, unit_embedding(embedding, self.center), covered_share(mask)


def _embed(embedder: Embedder, crop: FixedCrop, image: Tensor) -> Tensor:
    """Compute what `Embedder.forward` does with a fixed crop."""
    embeddings = []
    for channels in map(crop, [image, image.flip(-1)] if embedder.spec.mirror else [image]):
        extra = channels[:, 3:] if embedder.extra_channels else None
        embeddings.append(embedder.embed_crop(channels[:, :3], extra))
    return (embeddings[0] + embeddings[1]) / 2 if embedder.spec.mirror else embeddings[0]


def _resize_matrix(before: int, after: int) -> Tensor:
    """Return the (after, before) matrix of an antialiased bilinear resize along one axis."""
    identity = torch.eye(before)[None, None]
    return F.interpolate(identity, (after, before), mode="bilinear", antialias=True, align_corners=False)[0, 0]


def _resize(image: Tensor, matrix: Tensor | None) -> Tensor:
    return image if matrix is None else matrix @ image @ matrix.T
