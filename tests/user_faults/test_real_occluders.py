"""A list of pairs says which images show real occluders: no mask is drawn on them, and rows are named accordingly."""

from pathlib import Path
from typing import Literal

import pytest
import torch

from deocc.data import MaskedFaceDataModule, PairListFaces
from deocc.evaluation.embeddings import EmbeddingSet
from deocc.evaluation.results import build_results
from deocc.evaluation.tables import summary_table
from deocc.masking import list_kinds
from tests.fake_sets.pair_list import write_pair_list

Column = Literal["first", "second"]


def listed(root: Path, occluded: Column | None, **settings: str) -> PairListFaces:
    """Each of four people is compared with itself and with the next; image 2 of a person is in the second column."""
    return PairListFaces(str(root), str(write_pair_list(root)), "arcface", occluded=occluded, **settings)


@pytest.mark.parametrize(("column", "masked_image"), [("first", "1"), ("second", "2")])
def test_no_mask_is_drawn(column: Column, masked_image: str, tmp_path: Path) -> None:
    faces = listed(tmp_path, column, occluder="n95")
    data = MaskedFaceDataModule(faces, size=64)
    gallery, probes = data.test_dataloader()
    for loader, masked in ((gallery, False), (probes, True)):
        (batch,) = loader
        names = [faces.names[index] for index in batch["index"].tolist()]
        assert len(names) == 4 and all(name.endswith(f"{masked_image}.png") is masked for name in names)
        given = data.on_after_batch_transfer(batch, 0)
        assert torch.equal(given["masked_face"], given["face"])
        assert ("mask" not in given) is masked  # a real mask must be predicted
        assert set(batch["kind"].tolist()) == ({list_kinds().index("n95")} if masked else {-1})


def test_masks_are_drawn_without_the_option(tmp_path: Path) -> None:
    faces = listed(tmp_path, None)
    assert faces.occluder is None and type(faces.protocol).__name__ == "ListedPairs"


@pytest.mark.parametrize("column", ["first", "second"])
def test_rows_are_bare_against_masked(column: Column, tmp_path: Path) -> None:
    faces = listed(tmp_path, column)
    data = MaskedFaceDataModule(faces, size=64)
    sets = []
    for loader in data.test_dataloader():
        (batch,) = loader
        embedding = torch.nn.functional.normalize(torch.eye(4)[batch["identity"]] + 0.1)
        ids = {name: batch[name] for name in ("identity", "index", "kind", "seed")}
        sets.append(EmbeddingSet(embedding, **ids))
    gallery, probe = sets
    results = build_results(
        gallery, gallery, {"teacher_masked": probe, "student": probe}, {}, list_kinds(), {}, data.protocol, 10
    )
    assert results["protocol"] == "OccludedPairs"
    assert results["rows"]["teacher_masked"]["pairs"] == {"same": 4, "different": 4}
    assert results["rows"]["teacher_masked"]["eer"] == 0 and "student_minus_teacher_masked" in results
    table = summary_table(results)
    assert "clean-masked" in table and "clean-clean" not in table and "masked-masked" not in table


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        (
            "p/a.png p/b.png 1\nq/a.png p/a.png 0\n",
            {},
            r"pairs\.txt: 'p/a\.png' is in both columns, .*occluded: second",
        ),
        ("p/a.png p/b.png 1\n", {"occluder": "veil"}, "unknown occluder 'veil': choose from .*surgical"),
    ],
)
def test_contradictions(lines: str, settings: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text(lines)
    for name in ("p/a.png", "p/b.png", "q/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        PairListFaces(str(tmp_path), str(tmp_path / "pairs.txt"), "arcface", occluded="second", **settings)
