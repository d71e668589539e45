"""The LightningDataModule: faces of any face set, masked on the fly on the device of the batch."""

import csv
import hashlib
import io
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from deocc.batch import FaceBatch, MaskedFaceBatch
from deocc.data.cache import AlignedCache
from deocc.data.dataset import CLEAN, KEPT, MIXED, REAL, AlignedFaces, Augmentation, FixedFaces, Strength, TrainingFaces
from deocc.data.face_set import FaceSet, Split
from deocc.data.loader import EpochSampler, FaceLoader, Quarantine, share_of_process
from deocc.data.orl import OrlFaces
from deocc.evaluation.protocol import AllPairs
from deocc.files import checksum, write_file
from deocc.geometry import TEMPLATES
from deocc.masking import draw_kinds, list_kinds, render
from deocc.masking.distractors import add_camera_defects, add_cast, add_worn, displace, expose
from deocc.masking.random import mix
from deocc.masking.registry import kind_numbers

_SIZE, _SEEDS = 64, 4  # size of the faces and number of seeds in the hash of the renderer
FITTED: Final[tuple[Split, ...]] = ("train", "val")
"""Splits that a training reads in every epoch."""


class MaskedFaceDataModule(pl.LightningDataModule):
    """Batches of clean and masked faces (`deocc.batch.MaskedFaceBatch`).

    Training faces are augmented and get a new mask every epoch. Validation and test have two loaders: the clean faces
    of the split, then the same faces with every evaluation kind and seed, or with `mixed_kinds` with one kind per seed.
    These masks are fixed, and training never draws one of them. In the test of a set with real occluders, the bare
    faces come first, then the occluded ones without a rendered mask. A test embeds the images that the protocol of the
    face set names.

    Images of training and validation that cannot be read are left out and recorded in `quarantine`; in a training batch
    another image replaces them. Too many of them end the run, and a single one ends a test.

    Args:
        face_set: the faces; default: the embedded ORL faces.
        size: side of the canonical crop in pixels.
        batch_size: training images per process and step.
        eval_batch_size: images per process and step in evaluation.
        kinds: occluders of training; default: all.
        eval_kinds: occluders of validation and test; default: `kinds`. Others measure unseen occluders.
        mixed_kinds: evaluate each image with one of `eval_kinds` per seed, drawn by image and seed, not with all.
        clean_probability: share of training images without a mask.
        augmentation: strength of the augmentation of the clean face.
        blend_probability: share of training images that are blended with two others.
        masks_per_face: number of masks of each training face; a batch has that many rows per face.
        distractors: add what a mask predictor must ignore to training images (`deocc.masking.distractors`): glasses
            frames and beards on the clean face; under- and overexposed occluders, shadows, glare and camera defects on
            the masked one, which then differs from `face` everywhere.
        misalignment: strength by which half of the training faces are displaced before they are masked, as if aligned
            by the landmarks that a detector guesses under a mask; 1 is 10 % of the crop at most.
        seed: seed of the order, the augmentation and the masks of training.
        val_people: largest number of people to validate on, those with the lowest numbers; None: all of the split.
        val_seeds: seeds of the evaluation masks in validation.
        test_seeds: seeds of the evaluation masks in a test.
        num_workers: loader processes.
        cache_gigabytes: largest size of the cached aligned faces of a split (`deocc.data.cache`), for training and
            validation sets too large for memory; 0 aligns faces in every epoch.

    Raises:
        ValueError: an unknown kind, or a size, batch size, probability or disk space out of range.
    """

    def __init__(
        self,
        face_set: FaceSet | None = None,
        size: int = 112,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        kinds: Sequence[str] | None = None,
        eval_kinds: Sequence[str] | None = None,
        mixed_kinds: bool = False,
        clean_probability: float = 0.1,
        augmentation: Strength = "light",
        blend_probability: float = 0.0,
        masks_per_face: int = 1,
        distractors: bool = False,
        misalignment: float = 0.0,
        seed: int = 0,
        val_people: int | None = None,
        val_seeds: Sequence[int] = (100,),
        test_seeds: Sequence[int] = (1, 2, 3),
        num_workers: int = 0,
        cache_gigabytes: float = 20.0,
    ) -> None:
        super().__init__()
        for name, value, low, high in (
            ("size", size, 32, 1024),
            ("batch_size", batch_size, 1, 65536),
            ("eval_batch_size", eval_batch_size, 1, 65536),
            ("masks_per_face", masks_per_face, 1, 64),
            ("clean_probability", clean_probability, 0, 1),
            ("blend_probability", blend_probability, 0, 1),
            ("misalignment", misalignment, 0, 1),
            ("cache_gigabytes", cache_gigabytes, 0, 1e6),
            ("val_people", 1 if val_people is None else val_people, 1, 1e9),
        ):
            if not low <= value <= high:
                raise ValueError(f"data.{name} is {value}: choose a value from {low} to {high}")
        for name, seeds in (("val_seeds", val_seeds), ("test_seeds", test_seeds)):
            if not seeds or len({*seeds}) < len(seeds):
                raise ValueError(f"data.{name} is {list(seeds)}: choose one or more different numbers")
        self.kinds = tuple(list_kinds() if kinds is None else kinds)
        self.eval_kinds = self.kinds if eval_kinds is None else tuple(eval_kinds)
        for name, chosen in (("kinds", self.kinds), ("eval_kinds", self.eval_kinds)):
            unknown = [kind for kind in chosen if kind not in list_kinds()]
            if unknown or not chosen:
                raise ValueError(
                    f"data.{name} has unknown occluder kinds {unknown}: choose some of {', '.join(list_kinds())}"
                )
        self.face_set = face_set if face_set is not None else OrlFaces()
        self.protocol: AllPairs = self.face_set.protocol
        self.size, self.batch_size, self.eval_batch_size = size, batch_size, eval_batch_size
        self.mixed_kinds, self.masks_per_face = mixed_kinds, masks_per_face
        self.distractors, self.misalignment = distractors, misalignment
        self.clean_probability, self.blend_probability = clean_probability, blend_probability
        self.seed, self.val_people = seed, val_people
        self.num_workers, self.cache_gigabytes = num_workers, cache_gigabytes
        self.augmentation: Strength = augmentation
        self.eval_seeds: dict[Split, tuple[int, ...]] = {"val": tuple(val_seeds), "test": tuple(test_seeds)}
        self._caches: dict[Split, AlignedCache] = {}

    @property
    def num_identities(self) -> int:
        """The number of training identities; raises ValueError if the face set has none."""
        if not self.face_set.has_identities:
            raise ValueError(
                "the face set has no identities, which stage 2 learns: give them, and leave out identities: false"
            )
        return sum(split == "train" for split in self.face_set.split_of_identity.values())

    @cached_property
    def quarantine(self) -> Quarantine:
        """Images of training and validation that could not be read."""
        number = sum(len(self._chosen(split, self.face_set.indices(split))) for split in FITTED)
        return Quarantine(AlignedFaces(self.face_set, self.size, 0), self.face_set.names, number)

    def state_dict(self) -> dict[str, Any]:
        """Return the record of unreadable images for a checkpoint."""
        return {"quarantine": dict(self.quarantine.reasons)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the record of a checkpoint."""
        self.quarantine.reasons = dict(state_dict.get("quarantine", {}))

    def prepare_data(self) -> None:
        """Align and cache the faces of large splits before a training; one process per node works, others wait."""
        if self.trainer is not None and not self.trainer.training:
            return
        for split in FITTED:
            cache, indices = self._cache(split), self._bare(split)
            if cache is not None and cache.gigabytes <= self.cache_gigabytes:
                cache.fill(AlignedFaces(self.face_set, self.size, 0), indices, self.num_workers, self.quarantine.add)
            elif cache is not None:
                warnings.warn(
                    f"the aligned faces of {len(indices):,} images would take {cache.gigabytes:,.1f} GB, "
                    f"data.cache_gigabytes is {self.cache_gigabytes:g}, so none is kept: "
                    "raise it to at least that, or set it to 0 to go without",
                    stacklevel=2,
                )

    def train_dataloader(self) -> FaceLoader:
        """Return augmented training faces, shuffled by seed and epoch, or raise ValueError if there are none."""
        augmentation = Augmentation(self.augmentation)
        cache = self._filled_cache("train")
        faces = TrainingFaces(self.face_set, self.size, augmentation, self.seed, self.blend_probability, cache)
        if len(faces) == 0:
            name = type(self.face_set).__name__
            raise ValueError(f"{name} has no one to train on, it is for tests: choose another data.face_set")
        sampler = EpochSampler(len(faces), self.seed)
        return FaceLoader(
            faces,
            self.quarantine,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            drop_last=len(sampler) >= self.batch_size,
        )

    @property
    def plain_views(self) -> tuple[bool, ...]:
        """Values of `flipped` in training if clean faces are aligned faces or their mirror images; otherwise empty."""
        views: dict[Strength, tuple[bool, ...]] = {"none": (False,), "flip": (False, True)}
        changed = self.blends or self.misalignment > 0 or self.distractors
        return () if changed else views.get(self.augmentation, ())

    @property
    def blends(self) -> bool:
        """True if training blends faces of several people."""
        return self.blend_probability > 0

    @property
    def training_identity(self) -> NDArray[np.int64]:
        """(N,) identity of each image of the face set, numbered as in training; -1 for images not used in training."""
        indices = self.face_set.bare("train")
        identity = np.full(len(self.face_set), -1, np.int64)
        identity[indices] = np.unique(self.face_set.identity[indices], return_inverse=True)[1]
        return identity

    def training_fingerprint(self) -> str:
        """Return a hash of images, landmarks, template and size of the aligned training faces on this machine."""
        described = repr((self.face_set.quick_fingerprint("train"), TEMPLATES["canonical"], self.size))
        return checksum(described)[:16]

    def reference_dataloader(self) -> FaceLoader:
        """Return the readable clean training faces of this process's share, not augmented, in order."""
        return self._loader(self._faces("train", [CLEAN]))

    def val_dataloader(self) -> list[FaceLoader]:
        """Return clean, then masked faces of the validation people."""
        return [self._loader(self._faces("val", [CLEAN])), self._loader(self._probes("val"))]

    def test_dataloader(self) -> list[FaceLoader]:
        """Return clean, then masked faces of the test people."""
        return [self._loader(self._faces("test", [CLEAN])), self._loader(self._probes("test"))]

    def predict_dataloader(self) -> FaceLoader:
        """Return the masked faces of the validation people with the first evaluation seed."""
        return self._loader(self._faces("val", self._masks(self.eval_seeds["val"][:1])))

    def on_after_batch_transfer(self, batch: FaceBatch, dataloader_idx: int) -> MaskedFaceBatch:
        """Render the masks on the device of the batch."""
        occluder = self.face_set.occluder
        if self.trainer is not None and self.trainer.training:
            if self.masks_per_face > 1:
                batch = _repeat(batch, self.masks_per_face)
            batch["kind"] = draw_kinds(batch["seed"], self.kinds, self.clean_probability)
            if self.misalignment > 0:
                moved = displace(batch["face"], batch["landmarks"], batch["seed"], self.misalignment)
                batch["face"], batch["landmarks"] = moved
            if not self.distractors:
                return mask_batch(batch)
            batch["face"] = add_worn(batch["face"], batch["landmarks"], batch["seed"])  # below the occluder
            masked = mask_batch(batch)
            exposed = expose(masked["masked_face"], masked["mask"], batch["seed"])
            lit = add_cast(exposed, batch["landmarks"], batch["seed"])  # above it
            masked["masked_face"] = add_camera_defects(lit, batch["seed"])
            return masked
        if occluder is not None and (occluder[batch["index"].cpu().numpy()] >= 0).any():
            return cast(MaskedFaceBatch, {**batch, "masked_face": batch["face"]})
        return mask_batch(batch)

    def provenance(self) -> dict[str, object]:
        """Return the settings and hashes of data and masks that make two evaluations comparable."""
        return {
            "data": type(self.face_set).__name__,
            "credit": self.face_set.credit,
            "data_hash": self.face_set.fingerprint("test"),
            "training_data_hash": self.face_set.fingerprint("train") if len(self.face_set.bare("train")) else None,
            "data_seed": self.seed,
            "size": self.size,
            "kinds": list(self.eval_kinds),
            "mixed_kinds": self.mixed_kinds,
            "training_kinds": list(self.kinds),
            "mask_seeds": list(self.eval_seeds["test"]),
            "manifest_hash": manifest_hash(self._probes("test")),
        }

    def write_manifest(self, path: Path) -> None:
        """Write image, kind and seed of the occluder of each test image as CSV with a header."""
        text = io.StringIO(newline="")
        csv.writer(text).writerows([("image", "kind", "seed"), *manifest_rows(self._probes("test"))])
        write_file(path, text.getvalue())

    def _probes(self, split: Split) -> FixedFaces:
        if split == "test" and self.face_set.occluder is not None:
            occluded = np.setdiff1d(self.face_set.indices(split), self.face_set.bare(split))
            return FixedFaces(self.face_set, split, self.size, [REAL], self._chosen(split, occluded))
        return self._faces(split, self._masks(self.eval_seeds[split]))

    def _masks(self, seeds: Sequence[int]) -> list[tuple[int, int]]:
        kinds = [MIXED] if self.mixed_kinds else kind_numbers(self.eval_kinds)
        return [(kind, seed) for kind in kinds for seed in seeds]

    def _faces(self, split: Split, masks: list[tuple[int, int]]) -> FixedFaces:
        cache, kinds = self._filled_cache(split), kind_numbers(self.eval_kinds)
        return FixedFaces(self.face_set, split, self.size, masks, self._bare(split), cache, kinds)

    def _filled_cache(self, split: Split) -> AlignedCache | None:
        cache = self._cache(split)
        usable = cache is not None and cache.gigabytes <= self.cache_gigabytes and cache.is_complete()
        return cache if usable else None

    def _cache(self, split: Split) -> AlignedCache | None:
        """Return the cache of a split; None for a test, if the faces fit into memory, or if caching is off."""
        indices = self._bare(split)
        if split not in FITTED or len(indices) <= KEPT or self.cache_gigabytes == 0:
            return None
        if split not in self._caches:
            self._caches[split] = AlignedCache.of(self.face_set, split, self.size, indices)
        return self._caches[split]

    def _bare(self, split: Split) -> NDArray[np.int64]:
        return self._chosen(split, self.face_set.bare(split))

    def _chosen(self, split: Split, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Restrict a test to the images of the protocol, and validation to the first `val_people` people."""
        images = self.face_set.protocol.images
        if split == "test" and images is not None:
            return np.intersect1d(indices, images)
        if split == "val" and self.val_people is not None:
            people = np.unique(self.face_set.identity[indices])[: self.val_people]
            return indices[np.isin(self.face_set.identity[indices], people)]
        return indices

    def _loader(self, faces: FixedFaces) -> FaceLoader:
        settings = {"batch_size": self.eval_batch_size, "num_workers": self.num_workers}
        return FaceLoader(faces, self.quarantine, sampler=share_of_process(len(faces)), **settings)


def manifest_rows(probes: FixedFaces) -> Iterator[tuple[str, str, int]]:
    """Yield image, kind and seed of each probe, which determine its mask together with landmarks and renderer."""
    names, kinds = probes.aligned.face_set.names, list_kinds()
    for number in range(len(probes)):
        position, kind, seed = probes.mask_of(number)
        yield names[int(probes.indices[position])], kinds[kind], seed


def manifest_hash(probes: FixedFaces) -> str:
    """Return a hash of the rows and of the renderer's masks of every kind on a grey face."""
    kinds = torch.arange(len(list_kinds())).repeat_interleave(_SEEDS)
    faces = torch.zeros(len(kinds), 3, _SIZE, _SIZE)
    landmarks = TEMPLATES["canonical"].tensor(_SIZE).expand(len(kinds), 5, 2)
    _, masks = render(faces, landmarks, kinds, torch.arange(len(kinds)))
    digest = hashlib.sha256(checksum(masks.bool().numpy().tobytes())[:16].encode())
    for row in manifest_rows(probes):  # millions in a large test
        digest.update("/".join(map(str, row)).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def mask_batch(batch: FaceBatch) -> MaskedFaceBatch:
    """Render the occluder of each face from `kind` and `seed`; kind -1 leaves the face bare."""
    masked_face, mask = render(batch["face"], batch["landmarks"], batch["kind"], batch["seed"])
    return cast(MaskedFaceBatch, {**batch, "masked_face": masked_face, "mask": mask})


def _repeat(batch: FaceBatch, times: int) -> FaceBatch:
    """Repeat each row of the batch; all copies but the first get another seed."""
    repeated = cast(FaceBatch, {key: cast(Tensor, value).repeat_interleave(times, 0) for key, value in batch.items()})
    copy_number = torch.arange(times, device=repeated["seed"].device).repeat(len(batch["seed"]))
    others = mix(repeated["seed"] + copy_number) >> 1 & (2**62 - 1)
    repeated["seed"] = torch.where(copy_number > 0, others, repeated["seed"])
    return repeated
