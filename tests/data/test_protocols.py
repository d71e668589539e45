"""What the data module gives a test:

the images that a protocol names, real occluders as they are, and the manifest of rendered ones.
"""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from deocc.data import MaskedFaceDataModule
from deocc.data import datamodule as manifest_file
from deocc.data.datamodule import renderer_hash
from deocc.evaluation.protocol import ListedPairs
from deocc.masking import list_kinds
from tests.data.conftest import TinyFaces

SCARF = list_kinds().index("scarf")


def module(faces: TinyFaces, **changes: Any) -> MaskedFaceDataModule:
    made = MaskedFaceDataModule(faces, **{"size": 48, "eval_batch_size": 4, "test_seeds": (1,), **changes})
    made.trainer = cast(pl.Trainer, SimpleNamespace(training=False))
    return made


def received(data: MaskedFaceDataModule, loader: int) -> list[dict[str, torch.Tensor]]:
    return [cast(Any, data.on_after_batch_transfer(batch, loader)) for batch in data.test_dataloader()[loader]]


def column(batches: list[dict[str, torch.Tensor]], key: str) -> list[int]:
    return torch.cat([batch[key] for batch in batches]).tolist()


@pytest.fixture
def scarved(tiny_faces: TinyFaces) -> TinyFaces:
    """The last image of every person shows a scarf."""
    tiny_faces.occluder = np.full(len(tiny_faces), -1)
    tiny_faces.occluder[16:] = SCARF
    return tiny_faces


def test_real_occluders_are_left_as_they_are_and_their_masks_stay_unknown(scarved: TinyFaces) -> None:
    bare, occluded = (received(module(scarved), loader) for loader in (0, 1))
    assert column(bare, "index") == [6, 7, 14, 15] and column(occluded, "index") == [22, 23]
    assert set(column(bare, "kind")) == {-1} and set(column(occluded, "kind")) == {SCARF}
    assert all("mask" not in batch and torch.equal(batch["face"], batch["masked_face"]) for batch in occluded)
    assert all(not batch["mask"].any() for batch in bare)
    assert column(occluded, "identity") == [0, 1], "people are numbered as in the gallery"


def test_faces_with_real_occluders_do_not_train(scarved: TinyFaces) -> None:
    data = module(scarved, batch_size=2)
    seen = {int(index) for batch in data.train_dataloader() for index in batch["index"]}
    assert seen == {0, 1, 2, 3, 8, 9, 10, 11}


def test_a_test_embeds_what_the_protocol_names_and_validation_everything(tiny_faces: TinyFaces) -> None:
    listed = ListedPairs(np.array([6, 6]), np.array([14, 7]), np.array([True, False]), np.array([0, 1]))
    cast(Any, tiny_faces).protocol = listed
    data = module(tiny_faces, kinds=("box",))
    assert data.protocol is listed
    assert column(received(data, 0), "index") == column(received(data, 1), "index") == [6, 7, 14]
    assert column(list(data.val_dataloader()[0]), "index") == [4, 5, 12, 13, 20, 21]


def test_validation_can_be_limited_to_some_people(tiny_faces: TinyFaces) -> None:
    assert column(list(module(tiny_faces, val_people=1).val_dataloader()[0]), "index") == [4, 12, 20]


def test_the_manifest_holds_a_line_a_probe_and_its_hash_changes_with_masks_and_renderer(
    tiny_faces: TinyFaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = module(tiny_faces, kinds=("box", "hand"))
    data.write_manifest(tmp_path / "masks.csv")
    with (tmp_path / "masks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    probes = received(data, 1)
    assert [int(row["seed"]) for row in rows] == column(probes, "seed")
    assert [row["kind"] for row in rows] == [list_kinds()[kind] for kind in column(probes, "kind")]
    assert [row["image"] for row in rows] == [tiny_faces.names[index] for index in column(probes, "index")]
    before = data.provenance()["manifest_hash"]
    assert before == module(tiny_faces, kinds=("box", "hand")).provenance()["manifest_hash"]
    assert before != module(tiny_faces, kinds=("box", "hand"), test_seeds=(2,)).provenance()["manifest_hash"]
    monkeypatch.setattr(manifest_file, "render", lambda faces, *_: (faces, torch.ones_like(faces[:, :1])))
    assert data.provenance()["manifest_hash"] != before and renderer_hash() != ""


def test_mixed_kinds_give_each_image_one_kind_a_seed(tiny_faces: TinyFaces) -> None:
    kinds = ("surgical", "hand", "box")
    data = module(tiny_faces, kinds=kinds, mixed_kinds=True, test_seeds=(1, 2), val_seeds=(7,))
    probes = received(data, 1)
    assert column(probes, "index") == [6, 7, 14, 15, 22, 23] * 2
    assert all(batch["mask"].flatten(1).any(1).all() for batch in probes)
    complete = received(module(tiny_faces, kinds=kinds, test_seeds=(1, 2)), 1)
    masks = set(zip(column(complete, "index"), column(complete, "kind"), column(complete, "seed"), strict=True))
    assert set(zip(column(probes, "index"), column(probes, "kind"), column(probes, "seed"), strict=True)) < masks
    assert len(list(data.val_dataloader()[1].dataset)) == 6  # type: ignore[call-overload]


def test_mixed_kinds_follow_from_image_and_seed_alone(tiny_faces: TinyFaces) -> None:
    kinds = list_kinds()

    def drawn(seeds: tuple[int, ...]) -> list[int]:
        return column(received(module(tiny_faces, kinds=kinds, mixed_kinds=True, test_seeds=seeds), 1), "kind")

    both = drawn((1, 2))
    assert both == drawn((1,)) + drawn((2,)) and drawn((1,)) == drawn((1,)) != drawn((2,))
    listed = ListedPairs(np.array([6]), np.array([15]), np.array([False]), np.array([0]))
    cast(Any, tiny_faces).protocol = listed  # other images are left out, which changes nothing for these two
    assert drawn((1,)) == [both[0], both[3]]


def test_mixed_kinds_are_all_drawn_equally_often(tiny_faces: TinyFaces) -> None:
    data = module(tiny_faces, kinds=("surgical", "hand", "box"), mixed_kinds=True, test_seeds=tuple(range(200)))
    probes = cast(Any, data.test_dataloader()[1].dataset)
    counts = np.bincount([probes.mask_of(number)[0] for number in range(len(probes))])
    assert counts[counts > 0].tolist() == pytest.approx([400] * 3, abs=60)


def test_kinds_of_an_evaluation_can_differ_from_those_of_training(tiny_faces: TinyFaces) -> None:
    data = module(tiny_faces, kinds=("surgical", "box"), eval_kinds=("hand",), clean_probability=0.0, batch_size=4)
    hand = list_kinds().index("hand")
    assert set(column(received(data, 1), "kind")) == {hand}
    assert {hand} == set(
        column([cast(Any, data.on_after_batch_transfer(batch, 0)) for batch in data.val_dataloader()[1]], "kind")
    )
    cast(Any, data.trainer).training = True
    trained = column([cast(Any, data.on_after_batch_transfer(batch, 0)) for batch in data.train_dataloader()], "kind")
    assert set(trained) <= {list_kinds().index(kind) for kind in ("surgical", "box")}
    provenance = data.provenance()
    assert (provenance["kinds"], provenance["training_kinds"]) == (["hand"], ["surgical", "box"])


def test_the_manifest_names_the_kinds_that_were_drawn(tiny_faces: TinyFaces, tmp_path: Path) -> None:
    data = module(tiny_faces, kinds=("box", "hand", "surgical"), mixed_kinds=True)
    data.write_manifest(tmp_path / "masks.csv")
    with (tmp_path / "masks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == [list_kinds()[kind] for kind in column(received(data, 1), "kind")]
    complete = module(tiny_faces, kinds=("box", "hand", "surgical"))
    assert data.provenance()["manifest_hash"] != complete.provenance()["manifest_hash"]
