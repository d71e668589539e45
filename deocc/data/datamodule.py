"""The one data module: faces of any face set, masked on the fly on whatever device the batch is."""

import csv
import hashlib
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
from deocc.data.augmentation import Augmentation, Strength
from deocc.data.cache import AlignedCache
from deocc.data.dataset import CLEAN, KEPT, MIXED, REAL, AlignedFaces, FaceItem, FixedFaces, TrainingFaces
from deocc.data.face_set import FaceSet, Split
from deocc.data.loader import EpochSampler, FaceLoader, ShareSampler
from deocc.data.orl import OrlFaces
from deocc.data.quarantine import Quarantine
from deocc.evaluation.protocol import AllPairs
from deocc.geometry import TEMPLATES
from deocc.masking import draw_kinds, list_kinds, render
from deocc.masking.distractors import add_camera_defects, add_cast, add_worn
from deocc.masking.random import mix
from deocc.masking.registry import kind_numbers

_SIZE, _SEEDS = 64, 4  # of the faces that stand for the renderer
Row = tuple[str, str, int]
"""Image, kind of occluder, seed."""


def manifest_rows(probes: FixedFaces) -> Iterator[Row]:
    """What each probe carries: all that its mask depends on besides its landmarks and the renderer."""
    names, kinds = probes.aligned.face_set.names, list_kinds()
    for number in range(len(probes)):
        kind, seed = probes.mask_of(number)
        yield names[probes.index_of(number)], kinds[kind], seed


def manifest_hash(probes: FixedFaces) -> str:
    """A hash of the rows and of the renderer, so that a changed renderer is noticed as well as a changed seed."""
    digest = hashlib.sha256(renderer_hash().encode())
    for row in manifest_rows(probes):
        digest.update("/".join(map(str, row)).encode())
    return digest.hexdigest()[:16]


def renderer_hash() -> str:
    """A hash of some masks of every kind as they are rendered on a grey face."""
    kinds = torch.arange(len(list_kinds())).repeat_interleave(_SEEDS)
    seeds = torch.arange(len(kinds))
    faces = torch.zeros(len(kinds), 3, _SIZE, _SIZE)
    landmarks = TEMPLATES["canonical"].tensor(_SIZE).expand(len(kinds), 5, 2)
    _, masks = render(faces, landmarks, kinds, seeds)
    return hashlib.sha256(masks.bool().numpy().tobytes()).hexdigest()[:16]


def write_manifest(path: Path, probes: FixedFaces) -> None:
    """Write the rows as CSV with a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "kind", "seed"))
        writer.writerows(manifest_rows(probes))


FITTED: Final[tuple[Split, ...]] = ("train", "val")
"""The splits that a training reads over and over."""


class MaskedFaceDataModule(pl.LightningDataModule):
    """Batches of clean faces and their masked twins (`deocc.batch.MaskedFaceBatch`).

    Training faces are augmented and get a fresh mask every epoch. Validation and test give two loaders: the clean faces of the split, then
    the same faces under every evaluation kind with every evaluation seed, or with `mixed_kinds` under one kind a seed. These masks are
    always the same, and training never draws one of them. Of a set whose faces show real occluders, bare faces come first, then occluded
    ones, as they are and without a mask. A test embeds the images that the face set's protocol names.

    An image of training or validation that cannot be read is left out and noted in `quarantine`; in a training batch another one takes
    its place. Too many of them end the run, and a single one ends a test.

    Args:
        face_set: whose faces; default the embedded ORL faces.
        size: side of the canonical crop in pixels.
        batch_size: training images a process and step.
        eval_batch_size: images a process and step otherwise.
        kinds: the occluders to train with; default all.
        eval_kinds: the occluders to validate and test with; default `kinds`. A kind that only these have measures unseen occluders.
        mixed_kinds: validate and test on each image under one of `eval_kinds` a seed, drawn by image and seed, instead of under each.
        clean_probability: share of training images that stay unmasked, so that bare faces are learnt too.
        augmentation: strength of the clean face's augmentation.
        blend_probability: share of training images that are blended with two others.
        masks_per_face: how many occluders each training face gets in turn; a batch then has that many rows per face.
        distractors: whether training images also get what a mask predictor must ignore (`deocc.masking.distractors`): glasses frames and
            beards on the clean face, shadows, glare and a camera's defects on the masked one, which then differs from `face` everywhere.
        seed: from which the order, the augmentation and the masks of training follow.
        val_people: validate on so many people at most, those of the lowest numbers; None: on all of the split.
        val_seeds: evaluation masks a kind and image in validation.
        test_seeds: the same in test.
        num_workers: loader processes.
        cache_gigabytes: how much disk space the aligned faces of a split may take below `DEOCC_CACHE`, where a first training keeps those
            of training and validation if they are too many for memory (`deocc.data.aligned_cache`); 0: align anew in every epoch.

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
        seed: int = 0,
        val_people: int | None = None,
        val_seeds: Sequence[int] = (100,),
        test_seeds: Sequence[int] = (1, 2, 3),
        num_workers: int = 0,
        cache_gigabytes: float = 20.0,
    ) -> None:
        super().__init__()
        _check_range("size", size, 32, 1024)
        _check_range("batch_size", batch_size, 1, 65536)
        _check_range("eval_batch_size", eval_batch_size, 1, 65536)
        _check_range("masks_per_face", masks_per_face, 1, 64)
        _check_range("clean_probability", clean_probability, 0, 1)
        _check_range("blend_probability", blend_probability, 0, 1)
        _check_range("cache_gigabytes", cache_gigabytes, 0, 1e6)
        self.kinds = _known_kinds("kinds", list_kinds() if kinds is None else kinds)
        self.eval_kinds = _known_kinds("eval_kinds", self.kinds if eval_kinds is None else eval_kinds)
        self.mixed_kinds = mixed_kinds
        self.face_set = face_set if face_set is not None else OrlFaces()
        self.size, self.batch_size, self.eval_batch_size = size, batch_size, eval_batch_size
        self.clean_probability, self.seed, self.num_workers = clean_probability, seed, num_workers
        self.augmentation: Strength = augmentation
        self.blend_probability, self.val_people = blend_probability, val_people
        self.masks_per_face, self.distractors = masks_per_face, distractors
        self.cache_gigabytes = cache_gigabytes
        self._caches: dict[Split, AlignedCache] = {}
        self.eval_seeds: dict[Split, tuple[int, ...]] = {"val": tuple(val_seeds), "test": tuple(test_seeds)}

    @property
    def num_identities(self) -> int:
        """The number of training people."""
        return sum(split == "train" for split in self.face_set.split_of_person.values())

    @cached_property
    def quarantine(self) -> Quarantine:
        """The images of training and validation that could not be read."""
        number = sum(len(self._chosen(split, self.face_set.indices(split))) for split in FITTED)
        return Quarantine(AlignedFaces(self.face_set, self.size, 0), self.face_set.names, number)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the images that could not be read."""
        return {"quarantine": self.quarantine.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a checkpoint's record."""
        self.quarantine.load_state_dict(state_dict.get("quarantine", {}))

    def prepare_data(self) -> None:
        """Before a training, align the faces of each large split once and keep them; one process a node does, others wait."""
        if self.trainer is not None and not self.trainer.training:
            return
        for split in FITTED:
            cache, indices = self._cache(split), self._chosen(split, self.face_set.bare(split))
            if cache is not None and self._fits(cache):
                cache.fill(AlignedFaces(self.face_set, self.size, 0), indices, self.num_workers, self.quarantine.add)
            elif cache is not None:
                taken = f"the aligned faces of {len(indices):,} images would take {cache.gigabytes:,.1f} GB"
                advice = "raise it to at least that, or set it to 0 to go without"
                warnings.warn(
                    f"{taken}, data.cache_gigabytes is {self.cache_gigabytes:g}, so none is kept: {advice}",
                    stacklevel=2,
                )

    def train_dataloader(self) -> FaceLoader[FaceItem]:
        """Augmented training faces, shuffled by seed and epoch; of an epoch that a checkpoint has left in its middle, the rest.

        Raises:
            ValueError: the face set has nobody to train on.
        """
        if len(self.face_set.bare("train")) == 0:
            raise ValueError(
                f"{type(self.face_set).__name__} has nobody to train on, it is for tests: choose another data.face_set"
            )
        augmentation, cache = Augmentation(self.augmentation), self._filled_cache("train")
        faces = TrainingFaces(self.face_set, self.size, augmentation, self.seed, self.blend_probability, cache)
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
        """What `flipped` may be in training where a clean face is an aligned face or its mirror image; empty where it can be anything."""
        views: dict[Strength, tuple[bool, ...]] = {"none": (False,), "flip": (False, True)}
        return views.get(self.augmentation, ()) if self.blend_probability == 0 else ()

    @property
    def blends(self) -> bool:
        """Whether training blends faces of several people."""
        return self.blend_probability > 0

    @property
    def training_identity(self) -> NDArray[np.int64]:
        """(N,) whose face each image of the face set is, numbered as in training; -1 where training has no use for the image."""
        indices, identity = self.face_set.bare("train"), np.full(len(self.face_set), -1, np.int64)
        identity[indices] = np.unique(self.face_set.person[indices], return_inverse=True)[1]
        return identity

    def training_fingerprint(self) -> str:
        """A hash of all that an aligned training face follows from on this machine: images, landmarks, template and size."""
        described = repr((self.face_set.quick_fingerprint("train"), TEMPLATES["canonical"], self.size))
        return hashlib.sha256(described.encode()).hexdigest()[:16]

    def reference_dataloader(self, shared: bool = False) -> FaceLoader[FaceItem]:
        """The clean training faces, unaugmented and in order: all of them in every process, or each process's share.

        Those that cannot be read are not among them.
        """
        return self._loader(self._faces("train", [CLEAN]), shared)

    def val_dataloader(self) -> list[FaceLoader[FaceItem]]:
        """Clean, then masked faces of the validation people."""
        return [self._loader(self._gallery("val")), self._loader(self._probes("val"))]

    def test_dataloader(self) -> list[FaceLoader[FaceItem]]:
        """Clean, then masked faces of the test people."""
        return [self._loader(self._gallery("test")), self._loader(self._probes("test"))]

    def predict_dataloader(self) -> FaceLoader[FaceItem]:
        """The masked faces of the validation people by the first evaluation seed: test people are for the test alone."""
        return self._loader(self._faces("val", self._masks(self.eval_seeds["val"][:1])))

    def on_after_batch_transfer(self, batch: FaceBatch, dataloader_idx: int) -> MaskedFaceBatch:
        """Put the masks on, where the batch now is."""
        trainer = self.trainer
        if trainer is not None and trainer.training:
            batch = _repeat(batch, self.masks_per_face)
            batch["kind"] = draw_kinds(batch["seed"], self.kinds, self.clean_probability)
            if self.distractors:
                return _mask_with_distractors(batch)
        elif self.face_set.occluder is not None and bool((batch["kind"] >= 0).any()):
            return cast(MaskedFaceBatch, {**batch, "masked_face": batch["face"]})
        return mask_batch(batch)

    def provenance(self) -> dict[str, object]:
        """What an evaluation must carry to be compared with another: hashes of test data, masks and the set's own training people."""
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
        """Write down which occluder lies on which test image by which seed."""
        write_manifest(path, self._probes("test"))

    @property
    def protocol(self) -> AllPairs:
        """What a test compares."""
        return self.face_set.protocol

    def _gallery(self, split: Split) -> FixedFaces:
        return self._faces(split, [CLEAN])

    def _probes(self, split: Split) -> FixedFaces:
        if self.face_set.occluder is not None:
            return FixedFaces(
                self.face_set, split, self.size, [REAL], self._chosen(split, self.face_set.occluded(split))
            )
        return self._faces(split, self._masks(self.eval_seeds[split]))

    def _masks(self, seeds: Sequence[int]) -> list[tuple[int, int]]:
        kinds = [MIXED] if self.mixed_kinds else kind_numbers(self.eval_kinds)
        return [(kind, seed) for kind in kinds for seed in seeds]

    def _faces(self, split: Split, masks: list[tuple[int, int]]) -> FixedFaces:
        indices = self._chosen(split, self.face_set.bare(split))
        cache, kinds = self._filled_cache(split), kind_numbers(self.eval_kinds)
        return FixedFaces(self.face_set, split, self.size, masks, indices, cache, kinds)

    def _filled_cache(self, split: Split) -> AlignedCache | None:
        """The split's aligned faces, where an earlier or this training has kept them."""
        cache = self._cache(split) if split in FITTED else None
        return cache if cache is not None and self._fits(cache) and cache.is_complete() else None

    def _cache(self, split: Split) -> AlignedCache | None:
        """Where the split's aligned faces belong; None for a split that fits into memory or where nothing is to be kept."""
        indices = self._chosen(split, self.face_set.bare(split))
        if len(indices) <= KEPT or self.cache_gigabytes == 0:
            return None
        if split not in self._caches:
            self._caches[split] = AlignedCache.of(self.face_set, split, self.size, indices)
        return self._caches[split]

    def _fits(self, cache: AlignedCache) -> bool:
        return cache.gigabytes <= self.cache_gigabytes

    def _chosen(self, split: Split, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of these images those that the protocol names, in a test; those of as many people as asked for, in validation."""
        images = self.face_set.protocol.images
        if split == "test" and images is not None:
            return np.intersect1d(indices, images)
        if split == "val" and self.val_people is not None:
            people = np.unique(self.face_set.person[indices])[: self.val_people]
            return indices[np.isin(self.face_set.person[indices], people)]
        return indices

    def _loader(self, faces: FixedFaces, shared: bool = True) -> FaceLoader[FaceItem]:
        share = ShareSampler(len(faces), shared)
        return FaceLoader(
            faces, self.quarantine, batch_size=self.eval_batch_size, sampler=share, num_workers=self.num_workers
        )


def mask_batch(batch: FaceBatch) -> MaskedFaceBatch:
    """Render each face's occluder of `kind` from `seed`; kind -1 leaves the face as it is."""
    masked_face, mask = render(batch["face"], batch["landmarks"], batch["kind"], batch["seed"])
    return cast(MaskedFaceBatch, {**batch, "masked_face": masked_face, "mask": mask})


def _repeat(batch: FaceBatch, times: int) -> FaceBatch:
    """Each row of the batch so many times in a row; every copy but the first gets another seed."""
    if times == 1:
        return batch
    repeated = cast(FaceBatch, {key: cast(Tensor, value).repeat_interleave(times, 0) for key, value in batch.items()})
    copy_number = torch.arange(times, device=repeated["seed"].device).repeat(len(batch["seed"]))
    repeated["seed"] = torch.where(
        copy_number > 0, mix(repeated["seed"] + copy_number) >> 1 & (2**62 - 1), repeated["seed"]
    )
    return repeated


def _mask_with_distractors(batch: FaceBatch) -> MaskedFaceBatch:
    """As `mask_batch`, with glasses and beards below the occluder, and shadows, glare and camera defects above it."""
    batch["face"] = add_worn(batch["face"], batch["landmarks"], batch["seed"])
    masked = mask_batch(batch)
    lit = add_cast(masked["masked_face"], batch["landmarks"], batch["seed"])
    masked["masked_face"] = add_camera_defects(lit, batch["seed"])
    return masked


def _known_kinds(name: str, kinds: Sequence[str]) -> tuple[str, ...]:
    unknown = [kind for kind in kinds if kind not in list_kinds()]
    if unknown or not kinds:
        raise ValueError(f"data.{name} has unknown occluder kinds {unknown}: choose some of {', '.join(list_kinds())}")
    return tuple(kinds)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"data.{name} is {value}: choose a value from {low} to {high}")
