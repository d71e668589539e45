"""The trained system as one object: complete, embed and compare faces, given as crops or as photographs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deocc.evaluation.calibration import CONDITIONS, Calibration, Threshold, covered_share
from deocc.inference.network import FaceNetwork, FaceOutput

Decision = Literal["same", "different", "not sure"]


@dataclass(frozen=True)
class Verdict:
    """The decision on two faces, and all that it rests on."""

    decision: Decision
    similarity: float
    """Cosine of the embeddings, in [-1, 1]."""
    condition: str
    """One of `deocc.evaluation.calibration.CONDITIONS`."""
    same_from: float
    """The similarity from which a pair of this condition is "same"."""
    different_below: float
    """The similarity below which it is "different"."""
    false_accept_rate: float
    """The share of pairs of two people that `same_from` was calibrated to accept, on validation people."""
    tested_false_accept_rate: float | None
    """The share that it accepted of the test people's pairs; None where that was not tried."""
    masked_a: bool
    masked_b: bool
    visible_a: float
    """Share of the face that is in view, by the predicted mask."""
    visible_b: float
    reason: str
    """One line."""


def decide(
    calibration: Calibration, similarity: float, covered: tuple[float, float], false_accept_rate: float | None = None
) -> Verdict:
    """The verdict on two faces.

    Args:
        calibration: of the model.
        similarity: of the embeddings, in [-1, 1].
        covered: the covered share of each face, in [0, 1].
        false_accept_rate: the target; None = the usual one (`Calibration.threshold`).

    Raises:
        ValueError: that target was not calibrated for the faces' condition.
    """
    masked_a, masked_b = (share >= calibration.masked.limit for share in covered)
    condition = CONDITIONS[masked_a + masked_b]
    threshold = calibration.threshold(condition, false_accept_rate)
    visible_a, visible_b = (1 - share for share in covered)
    decision, reason = _decision(threshold, similarity, min(visible_a, visible_b), calibration.least_visible)
    tested = threshold.test.false_accept_rate if threshold.test is not None else None
    return Verdict(
        decision=decision,
        similarity=similarity,
        condition=condition,
        same_from=threshold.same,
        different_below=threshold.different,
        false_accept_rate=threshold.target,
        tested_false_accept_rate=tested,
        masked_a=masked_a,
        masked_b=masked_b,
        visible_a=visible_a,
        visible_b=visible_b,
        reason=f"{reason} ({condition})",
    )


def _decision(threshold: Threshold, similarity: float, visible: float, least_visible: float) -> tuple[Decision, str]:
    if visible < least_visible:
        return "not sure", f"only {visible:.0%} of a face is visible, {least_visible:.0%} are needed"
    said = f"similarity {similarity:.3f}"
    if similarity >= threshold.same:
        tried = (
            ""
            if threshold.test is None
            else f", which accepted {threshold.test.false_accept_rate:.2g} of test people's pairs"
        )
        return (
            "same",
            f"{said} is not below {threshold.same:.3f}, calibrated for a false-accept rate of {threshold.target:g}{tried}",
        )
    if similarity < threshold.different:
        reach = f"{1 - threshold.validation.called_different:.0%} of pairs of one person reach"
        return "different", f"{said} is below {threshold.different:.3f}, which {reach}"
    return "not sure", f"{said} lies between {threshold.different:.3f} and {threshold.same:.3f}"


if TYPE_CHECKING:
    from deocc.inference.faces import FaceFinder

Photo = str | Path | Image.Image | NDArray[np.generic]
"""A file's path, a Pillow image or an array as `deocc.inference.photos.read_photo` takes it."""

_BATCH = 32  # larger ones are slower on a CPU, whose memory is then returned and fetched anew each time


class Pipeline:
    """Made by `deocc.load`.

    Attributes:
        config: what the model folder's `config.json` says.
        network: from face to mask, completed face and embedding; frozen.
        thresholds: the calibration of `verify`; None where the model was never tested.
        size: side in pixels of the canonical crops it was trained on.
    """

    def __init__(self, config: dict[str, Any], network: FaceNetwork, thresholds: Calibration | None) -> None:
        self.config, self.network, self.thresholds = config, network, thresholds
        self.size = int(config["face"]["size"])
        self._finder: FaceFinder | None = None

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.center.device

    def to(self, device: torch.device | str) -> Self:
        """Move the network; faces follow it. Returns itself."""
        self.network.to(device)
        return self

    @property
    def finder(self) -> "FaceFinder":
        """What finds the faces of photos; made when first needed, may be set to one with other options.

        Raises:
            ImportError: no package that finds faces is installed.
        """
        if self._finder is None:
            from deocc.inference.faces import FaceFinder

            self._finder = FaceFinder(self.size)
        return self._finder

    @finder.setter
    def finder(self, finder: "FaceFinder") -> None:
        if finder.size != self.size:
            raise ValueError(
                f"the finder cuts crops of {finder.size} pixels, this model takes {self.size}: make one of that size"
            )
        self._finder = finder

    @torch.no_grad()
    def process_faces(self, face: Tensor, mask: Tensor | None = None) -> FaceOutput:
        """Mask, completed face and embedding at once; arguments as for `complete_faces`.

        Raises:
            ValueError: the shapes are not these.
        """
        if face.ndim != 4 or face.shape[1:] != (3, self.size, self.size) or len(face) == 0:
            raise ValueError(f"expected faces of shape (B, 3, {self.size}, {self.size}), got {tuple(face.shape)}")
        if mask is not None and mask.shape != (len(face), 1, *face.shape[2:]):
            raise ValueError(f"expected masks of shape {(len(face), 1, *face.shape[2:])}, got {tuple(mask.shape)}")
        parts = zip(face.split(_BATCH), mask.split(_BATCH) if mask is not None else [None] * len(face), strict=False)
        outputs = [
            self.network(part.to(self.device), None if given is None else given.to(self.device))
            for part, given in parts
        ]
        return FaceOutput(*(torch.cat(column) for column in zip(*outputs, strict=True)))

    def complete_faces(self, face: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The completed faces and their masks.

        Args:
            face: (B, 3, S, S) canonical crops in [-1, 1], S = `size`.
            mask: (B, 1, S, S), 1 = covered; None = predicted.

        Returns:
            (B, 3, S, S) in [-1, 1] and (B, 1, S, S).

        Raises:
            ValueError: the shapes are not these.
        """
        output = self.process_faces(face, mask)
        return output.completed_face, output.mask

    def embed_faces(self, face: Tensor) -> Tensor:
        """Canonical crops (B, 3, S, S) in [-1, 1], masked or not -> unit embeddings (B, D), by the predicted mask.

        Raises:
            ValueError: the shape is not this.
        """
        return self.process_faces(face).embedding

    def verify_faces(self, face_a: Tensor, face_b: Tensor, false_accept_rate: float | None = None) -> Verdict:
        """Whether two crops, (3, S, S) each, show one person; the rest as for `verify`."""
        if self.thresholds is None:
            raise ValueError(
                "this model has no thresholds: write them with `deocc test --checkpoint RUN` and load RUN again"
            )
        output = self.process_faces(torch.stack([face_a, face_b]))
        similarity = float(output.embedding[0] @ output.embedding[1])
        covered = covered_share(output.mask).tolist()
        return decide(self.thresholds, similarity, (covered[0], covered[1]), false_accept_rate)

    def complete(self, images: Photo | Sequence[Photo]) -> tuple[Tensor, Tensor]:
        """As `complete_faces`, of the largest face of each photo.

        Raises:
            FileNotFoundError: a photo is not there.
            ValueError: one cannot be read, or shows no face.
            ImportError: no package that finds faces is installed.
        """
        return self.complete_faces(self.faces(images))

    def embed(self, images: Photo | Sequence[Photo]) -> Tensor:
        """As `embed_faces`, of the largest face of each photo; errors as for `complete`."""
        return self.embed_faces(self.faces(images))

    def verify(self, a: Photo, b: Photo, false_accept_rate: float | None = None) -> Verdict:
        """Whether the largest faces of two photos show one person.

        Args:
            a: a photo.
            b: a photo.
            false_accept_rate: a target that was calibrated (`thresholds`); None = the usual one, 1e-2, or the strictest above it.

        Raises:
            FileNotFoundError: a photo is not there.
            ValueError: one cannot be read or shows no face, the model has no thresholds, or none for this rate.
            ImportError: no package that finds faces is installed.
        """
        face_a, face_b = self.faces([a, b])
        return self.verify_faces(face_a, face_b, false_accept_rate)

    def faces(self, images: Photo | Sequence[Photo]) -> Tensor:
        """The largest face of each photo, (N, 3, S, S) in [-1, 1]; errors as for `complete`."""
        from deocc.inference.photos import read_photo

        photos: Sequence[Photo] = [images] if isinstance(images, str | Path | Image.Image | np.ndarray) else images
        if len(photos) == 0:
            raise ValueError("no photo given: give at least one")
        found = []
        for number, photo in enumerate(photos, 1):
            source = Path(photo) if isinstance(photo, str) else photo
            name = str(source) if isinstance(source, Path) else f"photo {number}"
            found.append(self.finder.find(read_photo(source, name), name)[0].face)
        return torch.stack(found)
