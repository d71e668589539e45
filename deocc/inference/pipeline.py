"""The trained system: complete, embed and compare faces, given as crops or as photos."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deocc.evaluation.thresholds import CONDITIONS, Calibration
from deocc.inference.faces import FaceFinder
from deocc.inference.network import FaceNetwork, FaceOutput
from deocc.inference.photos import read_photo

Decision = Literal["same", "different", "not sure"]
Photo = str | Path | Image.Image | NDArray[np.generic]
"""The path of a file, a Pillow image, or an array as for `deocc.inference.photos.read_photo`, in RGB order: the result
of `cv2.imread` is BGR and must be reversed, `image[..., ::-1]`."""

_BATCH: Final = 32  # larger ones are slower on a CPU, where their memory is allocated again for each batch


@dataclass(frozen=True)
class Verdict:
    """The decision on two faces and its grounds."""

    decision: Decision
    similarity: float  # cosine of the embeddings, in [-1, 1]
    condition: str  # one of `deocc.evaluation.thresholds.CONDITIONS`
    same_from: float  # similarity from which a pair of this condition is "same"
    different_below: float  # similarity below which it is "different"
    false_accept_rate: float  # share of pairs of two people that `same_from` accepts, calibrated on validation people
    tested_false_accept_rate: float | None  # share of the test people's pairs that it accepted; None if not measured
    masked_a: bool  # the first face counts as masked
    masked_b: bool
    visible_a: float  # visible share of the first face, by the predicted mask
    visible_b: float
    reason: str  # one line


def condition_of(calibration: Calibration, covered: tuple[float, float]) -> str:
    """Return the condition of two faces with these covered shares, in [0, 1]."""
    return CONDITIONS[sum(share >= calibration.masked.limit for share in covered)]


def decide(
    calibration: Calibration, similarity: float, covered: tuple[float, float], false_accept_rate: float | None = None
) -> Verdict:
    """Decide whether two faces show the same person, from the cosine of their embeddings and their covered shares.

    The false-accept rate is that of `Calibration.threshold`, which raises ValueError if it was not calibrated.
    """
    condition = condition_of(calibration, covered)
    threshold = calibration.threshold(condition, false_accept_rate)
    test, visible = threshold.test, 1 - max(covered)
    decision: Decision = "not sure"
    if visible < calibration.least_visible:
        reason = f"only {visible:.0%} of a face is visible, {calibration.least_visible:.0%} are needed"
    elif similarity >= threshold.same:
        decision = "same"
        calibrated = f"calibrated for a false-accept rate of {threshold.target:g}"
        reason = f"similarity {similarity:.3f} is not below {threshold.same:.3f}, {calibrated}"
        if test is not None:
            reason += f", which accepted {test.false_accept_rate:.2g} of test people's pairs"
    elif similarity < threshold.different:
        decision = "different"
        reached = f"which {1 - threshold.validation.called_different:.0%} of pairs of one person reach"
        reason = f"similarity {similarity:.3f} is below {threshold.different:.3f}, {reached}"
    else:
        reason = f"similarity {similarity:.3f} is between {threshold.different:.3f} and {threshold.same:.3f}"
    return Verdict(
        decision=decision,
        similarity=similarity,
        condition=condition,
        same_from=threshold.same,
        different_below=threshold.different,
        false_accept_rate=threshold.target,
        tested_false_accept_rate=None if test is None else test.false_accept_rate,
        masked_a=covered[0] >= calibration.masked.limit,
        masked_b=covered[1] >= calibration.masked.limit,
        visible_a=1 - covered[0],
        visible_b=1 - covered[1],
        reason=f"{reason} ({condition})",
    )


class Pipeline:
    """The trained system, as returned by `deocc.load`.

    Attributes:
        config: the content of the model folder's `config.json`.
        network: from face to mask, completed face and embedding; frozen.
        thresholds: the calibration for `verify`; None if the model was never tested.
        size: side in pixels of the canonical crops that the network takes.
    """

    def __init__(self, config: dict[str, Any], network: FaceNetwork, thresholds: Calibration | None) -> None:
        self.config, self.network, self.thresholds = config, network, thresholds
        self.size = int(config["face"]["size"])
        self._finder: FaceFinder | None = None

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.network.center.device

    def to(self, device: torch.device | str) -> Self:
        """Move the network; faces are moved to it. Returns the pipeline."""
        self.network.to(device)
        return self

    @property
    def finder(self) -> FaceFinder:
        """Finder of the faces of photos, created at first use. Set it to choose a detector."""
        if self._finder is None:
            self._finder = FaceFinder(self.size)
        return self._finder

    @finder.setter
    def finder(self, finder: FaceFinder) -> None:
        if finder.size != self.size:
            raise ValueError(
                f"the finder cuts crops of {finder.size} pixels, this model takes {self.size}: make one of that size"
            )
        self._finder = finder

    @torch.no_grad()
    def process_faces(self, face: Tensor, mask: Tensor | None = None) -> FaceOutput:
        """Return mask, completed face and embedding of canonical crops.

        Args:
            face: (B, 3, S, S) in [-1, 1], masked or not; S = `size`.
            mask: (B, 1, S, S), 1 = covered; None = predicted.

        Raises:
            ValueError: the shapes are different, or values are not finite or out of range.
        """
        if face.ndim != 4 or face.shape[1:] != (3, self.size, self.size) or len(face) == 0:
            raise ValueError(f"expected faces of shape (B, 3, {self.size}, {self.size}), got {tuple(face.shape)}")
        if mask is not None and mask.shape != (len(face), 1, *face.shape[2:]):
            raise ValueError(f"expected masks of shape {(len(face), 1, *face.shape[2:])}, got {tuple(mask.shape)}")
        for name, values, low in (("faces", face, -1.0), ("masks", mask, 0.0)):
            # Written so that NaN fails; a thousandth allows for rounding, as by resizing.
            if values is not None and not bool(((values >= low - 1e-3) & (values <= 1 + 1e-3)).all()):
                raise ValueError(
                    f"expected {name} in [{low:g}, 1], got values from {float(values.min()):g} to "
                    f"{float(values.max()):g}: divide pixels of 0 to 255 by 127.5 and subtract 1"
                )
        outputs = []
        for start in range(0, len(face), _BATCH):
            batch = slice(start, start + _BATCH)
            given = None if mask is None else mask[batch].to(self.device)
            outputs.append(self.network(face[batch].to(self.device), given))
        return FaceOutput(*(torch.cat(column) for column in zip(*outputs, strict=True)))

    def complete_faces(self, face: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return completed faces (B, 3, S, S) in [-1, 1] and masks (B, 1, S, S); arguments as for `process_faces`."""
        output = self.process_faces(face, mask)
        return output.completed_face, output.mask

    def embed_faces(self, face: Tensor) -> Tensor:
        """Return unit embeddings (B, D) of canonical crops (B, 3, S, S) in [-1, 1], with the predicted masks."""
        return self.process_faces(face).embedding

    def verify_faces(self, face_a: Tensor, face_b: Tensor, false_accept_rate: float | None = None) -> Verdict:
        """Decide whether two canonical crops, (3, S, S) each, show the same person; see `verify`."""
        return self.verify_pairs([face_a], [face_b], false_accept_rate)[0][0]

    def verify_pairs(
        self, faces_a: Sequence[Tensor], faces_b: Sequence[Tensor], false_accept_rate: float | None = None
    ) -> list[list[Verdict]]:
        """Compare each canonical crop of the first sequence with each of the second; see `verify`."""
        if self.thresholds is None:
            raise ValueError(
                "this model has no thresholds: write them with `deocc test --checkpoint RUN` and load RUN again"
            )
        output = self.process_faces(torch.stack([*faces_a, *faces_b]))
        faces = list(zip(output.embedding, output.covered.tolist(), strict=True))
        verdicts: list[list[Verdict]] = []
        for embedding_a, covered_a in faces[: len(faces_a)]:
            verdicts.append([])
            for embedding_b, covered_b in faces[len(faces_a) :]:
                similarity = float(embedding_a @ embedding_b)
                verdicts[-1].append(decide(self.thresholds, similarity, (covered_a, covered_b), false_accept_rate))
        return verdicts

    def complete(self, images: Photo | Sequence[Photo]) -> tuple[Tensor, Tensor]:
        """Complete the most prominent face of each photo; see `complete_faces`, and `faces` for the errors."""
        return self.complete_faces(self.faces(images))

    def embed(self, images: Photo | Sequence[Photo]) -> Tensor:
        """Embed the most prominent face of each photo; see `embed_faces`, and `faces` for the errors."""
        return self.embed_faces(self.faces(images))

    def verify(self, a: Photo, b: Photo, false_accept_rate: float | None = None) -> Verdict:
        """Decide whether two photos show the same person.

        The false-accept rate is a calibrated target; None = 0.01, or the strictest calibrated one above it.

        Raises:
            SeveralFacesError: a photo shows several faces of similar prominence; `finder = FaceFinder(size, number=1)`
                chooses one.
            ValueError: the model has no thresholds, or none for this rate. Others as `faces`.
        """
        face_a = self.finder.find_single(*_read(a, "photo a")).face
        face_b = self.finder.find_single(*_read(b, "photo b")).face
        return self.verify_faces(face_a, face_b, false_accept_rate)

    def faces(self, images: Photo | Sequence[Photo]) -> Tensor:
        """Return the most prominent face of each photo as canonical crops, (N, 3, S, S) in [-1, 1].

        Raises:
            FileNotFoundError: a photo does not exist.
            ValueError: a photo cannot be read or shows no face.
            ImportError: the package pillow-heif, which reads HEIC, is not installed.
        """
        photos: Sequence[Photo] = [images] if isinstance(images, str | Path | Image.Image | np.ndarray) else images
        if len(photos) == 0:
            raise ValueError("no photo given: give at least one")
        read = (_read(photo, f"photo {number}") for number, photo in enumerate(photos, 1))
        return torch.stack([self.finder.find(photo, name)[0].face for photo, name in read])


def _read(photo: Photo, default_name: str) -> tuple[NDArray[np.uint8], str]:
    """Return the pixels of a photo and its name in messages."""
    if not isinstance(photo, str | Path | Image.Image | np.ndarray):
        raise ValueError(
            f"{default_name} is a {type(photo).__name__}: give a path, a Pillow image or an RGB array (H, W, 3)"
        )
    source = Path(photo) if isinstance(photo, str) else photo
    name = str(source) if isinstance(source, Path) else default_name
    return read_photo(source, name), name
