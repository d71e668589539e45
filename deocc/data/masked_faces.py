"""The one data module: faces of any face set, masked on the fly on whatever device the batch is."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from deocc.batch import FaceBatch, MaskedFaceBatch
from deocc.data.augmentation import Augmentation, Strength
from deocc.data.dataset import CLEAN, REAL, FaceItem, FixedFaces, TrainingFaces
from deocc.data.face_set import FaceSet, Split
from deocc.data.manifest import manifest_hash, write_manifest
from deocc.data.orl import OrlFaces
from deocc.data.sampler import EpochSampler, ShareSampler
from deocc.evaluation.protocol import AllPairs
from deocc.masking import draw_kinds, list_kinds, render


class MaskedFaceDataModule(pl.LightningDataModule):
    """Batches of clean faces and their masked twins (`deocc.batch.MaskedFaceBatch`).

    Training faces are augmented and get a fresh mask every epoch. Validation, test and prediction give two loaders: the clean faces of the
    split, then the same faces under every kind with every evaluation seed: always the same masks, none of which training ever draws. Of a
    set whose faces show real occluders, bare faces come first, then occluded ones, as they are and without a mask. A test embeds the images
    that the face set's protocol names.

    Args:
        face_set: whose faces; default the embedded ORL faces.
        size: side of the canonical crop in pixels.
        batch_size: training images a process and step.
        eval_batch_size: images a process and step otherwise.
        kinds: the occluders to train and evaluate with; default all.
        clean_probability: share of training images that stay unmasked, so that bare faces are learnt too.
        augmentation: strength of the clean face's augmentation.
        blend_probability: share of training images that are blended with two others.
        seed: from which the order, the augmentation and the masks of training follow.
        val_people: validate on so many people at most, those of the lowest numbers; None: on all of the split.
        val_seeds: evaluation masks a kind and image in validation.
        test_seeds: the same in test.
        num_workers: loader processes.

    Raises:
        ValueError: an unknown kind, or a size, batch size or probability out of range.
    """

    def __init__(
        self,
        face_set: FaceSet | None = None,
        size: int = 112,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        kinds: Sequence[str] | None = None,
        clean_probability: float = 0.1,
        augmentation: Strength = "light",
        blend_probability: float = 0.0,
        seed: int = 0,
        val_people: int | None = None,
        val_seeds: Sequence[int] = (100,),
        test_seeds: Sequence[int] = (1, 2, 3),
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        _check_range("size", size, 32, 1024)
        _check_range("batch_size", batch_size, 1, 65536)
        _check_range("eval_batch_size", eval_batch_size, 1, 65536)
        _check_range("clean_probability", clean_probability, 0, 1)
        _check_range("blend_probability", blend_probability, 0, 1)
        self.kinds = tuple(kinds) if kinds is not None else list_kinds()
        unknown = [kind for kind in self.kinds if kind not in list_kinds()]
        if unknown or not self.kinds:
            raise ValueError(f"unknown occluder kinds {unknown}: choose some of {', '.join(list_kinds())}")
        self.face_set = face_set if face_set is not None else OrlFaces()
        self.size, self.batch_size, self.eval_batch_size = size, batch_size, eval_batch_size
        self.clean_probability, self.seed, self.num_workers = clean_probability, seed, num_workers
        self.augmentation: Strength = augmentation
        self.blend_probability, self.val_people = blend_probability, val_people
        self.eval_seeds: dict[Split, tuple[int, ...]] = {"val": tuple(val_seeds), "test": tuple(test_seeds)}

    @property
    def num_identities(self) -> int:
        """The number of training people."""
        return sum(split == "train" for split in self.face_set.split_of_person.values())

    def train_dataloader(self) -> DataLoader[FaceItem]:
        """Augmented training faces, shuffled by seed and epoch.

        Raises:
            ValueError: the face set has nobody to train on.
        """
        if len(self.face_set.bare("train")) == 0:
            raise ValueError(f"{type(self.face_set).__name__} has nobody to train on, it is for tests: choose another data.face_set")
        faces = TrainingFaces(self.face_set, self.size, Augmentation(self.augmentation), self.seed, self.blend_probability)
        sampler = EpochSampler(len(faces), self.seed)
        return DataLoader(
            faces,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            drop_last=len(sampler) >= self.batch_size,
        )

    def reference_dataloader(self) -> DataLoader[FaceItem]:
        """The clean training faces, unaugmented and in order, all in every process: what identity centres are computed from."""
        return self._loader(self._faces("train", [CLEAN]), shared=False)

    def val_dataloader(self) -> list[DataLoader[FaceItem]]:
        """Clean, then masked faces of the validation people."""
        return [self._loader(self._gallery("val")), self._loader(self._probes("val"))]

    def test_dataloader(self) -> list[DataLoader[FaceItem]]:
        """Clean, then masked faces of the test people."""
        return [self._loader(self._gallery("test")), self._loader(self._probes("test"))]

    def predict_dataloader(self) -> DataLoader[FaceItem]:
        """The masked faces of the validation people, one mask a kind: test people are for the test alone."""
        return self._loader(self._faces("val", self._masks(self.eval_seeds["val"][:1])))

    def on_after_batch_transfer(self, batch: FaceBatch, dataloader_idx: int) -> MaskedFaceBatch:
        """Put the masks on, where the batch now is."""
        trainer = self.trainer
        if trainer is not None and trainer.training:
            batch["kind"] = draw_kinds(batch["seed"], self.kinds, self.clean_probability)
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
            "kinds": list(self.kinds),
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
            return FixedFaces(self.face_set, split, self.size, [REAL], self._chosen(split, self.face_set.occluded(split)))
        return self._faces(split, self._masks(self.eval_seeds[split]))

    def _masks(self, seeds: Sequence[int]) -> list[tuple[int, int]]:
        return [(list_kinds().index(kind), seed) for kind in self.kinds for seed in seeds]

    def _faces(self, split: Split, masks: list[tuple[int, int]]) -> FixedFaces:
        return FixedFaces(self.face_set, split, self.size, masks, self._chosen(split, self.face_set.bare(split)))

    def _chosen(self, split: Split, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of these images those that the protocol names, in a test; those of as many people as asked for, in validation."""
        images = self.face_set.protocol.images
        if split == "test" and images is not None:
            return np.intersect1d(indices, images)
        if split == "val" and self.val_people is not None:
            people = np.unique(self.face_set.person[indices])[: self.val_people]
            return indices[np.isin(self.face_set.person[indices], people)]
        return indices

    def _loader(self, faces: FixedFaces, shared: bool = True) -> DataLoader[FaceItem]:
        share = ShareSampler(len(faces)) if shared else None
        return DataLoader(faces, batch_size=self.eval_batch_size, sampler=share, num_workers=self.num_workers)


def mask_batch(batch: FaceBatch) -> MaskedFaceBatch:
    """Render each face's occluder of `kind` from `seed`; kind -1 leaves the face as it is."""
    masked_face, mask = render(batch["face"], batch["landmarks"], batch["kind"], batch["seed"])
    return cast(MaskedFaceBatch, {**batch, "masked_face": masked_face, "mask": mask})


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"data.{name} is {value}: choose a value from {low} to {high}")
