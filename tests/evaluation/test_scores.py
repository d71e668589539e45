"""The file of pair scores: what is written is read again, and what is no such file is refused."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deocc import files
from deocc.evaluation.verification import PairScores, read_scores, write_scores

SAME, FIRST, SECOND = torch.tensor([True, False, True]), torch.tensor([1, 2, 3]), torch.tensor([1, 4, 3])
ARRAYS: dict[str, Any] = {
    "same": SAME.numpy(),
    "first_identity": FIRST.numpy(),
    "second_identity": SECOND.numpy(),
    "fold": np.arange(3),
}
ROW = {"row/a": np.array([0.5, 0.25, -1.0], dtype=np.float32)}


def pairs(*similarity: float, fold: torch.Tensor | None = None) -> PairScores:
    return PairScores(torch.tensor(similarity), SAME, FIRST, SECOND, fold)


def test_written_scores_are_read(tmp_path: Path) -> None:
    rows = {"student": pairs(0.5, 0.25, -1.0, fold=torch.tensor([0, 1, 1])), "teacher": pairs(0.0, 0.75, 1.0)}
    write_scores(tmp_path / "scores.npz", rows)
    found = read_scores(tmp_path / "scores.npz")
    assert list(found) == ["student", "teacher"]
    for row, scores in found.items():
        assert torch.equal(scores.similarity, rows[row].similarity)
        for name, values in zip(
            ("same", "first_identity", "second_identity", "fold"), (SAME, FIRST, SECOND, [0, 1, 1]), strict=True
        ):
            assert getattr(scores, name).tolist() == np.asarray(values).tolist()


def test_chosen_rows_without_folds(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.npz", {"student": pairs(0.5, 0.25, -1.0), "teacher": pairs(0.0, 0.75, 1.0)})
    found = read_scores(tmp_path / "scores.npz", ["teacher", "unknown"])
    assert list(found) == ["teacher"]
    assert found["teacher"].fold is not None and found["teacher"].fold.tolist() == [0, 0, 0]


def test_rows_of_other_pairs_refused(tmp_path: Path) -> None:
    shorter = PairScores(torch.zeros(2), SAME[:2], FIRST[:2], SECOND[:2])
    for other in (shorter, pairs(0.0, 0.0, 0.0)._replace(same=~SAME)):
        with pytest.raises(ValueError, match="scored different pairs"):
            write_scores(tmp_path / "scores.npz", {"a": pairs(0.0, 0.0, 0.0), "b": other})
    assert not any(tmp_path.iterdir())


def test_missing_scores_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no pair scores at .*scores\.npz"):
        read_scores(tmp_path / "scores.npz")


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({**ARRAYS, "row/a": ROW["row/a"][:2]}, r"row/a is float32 \(2,\)"),
        ({**ARRAYS, "row/a": np.arange(3)}, "row/a is int64"),
        ({**ARRAYS, "same": np.arange(3)}, "same is int64"),
        ({**ARRAYS, "fold": ROW["row/a"]}, "fold is float32"),
        ({**ARRAYS, "row/a": ROW["row/a"].astype(">f4")}, "row/a is >f4"),
        ({**ARRAYS, "same": SAME.numpy()[None]}, r"same is bool \(1, 3\)"),
        (ROW, "it lacks same, first_identity, second_identity, fold"),
    ],
)
def test_arrays_of_other_kind_refused(tmp_path: Path, arrays: dict[str, Any], reason: str) -> None:
    np.savez(tmp_path / "scores.npz", **arrays)
    with pytest.raises(ValueError, match=f"cannot read .* as pair scores .*{reason}.*: run `deocc test` again"):
        read_scores(tmp_path / "scores.npz")


def test_scores_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scores.npz"
    arrays: dict[str, Any] = {**ARRAYS, "row/a": np.zeros(3, dtype=np.float32), "large": np.zeros(1000)}
    np.savez_compressed(path, **arrays)
    with zipfile.ZipFile(path) as content:
        total = sum(entry.file_size for entry in content.infolist())
    monkeypatch.setattr(files, "_MOST_UNPACKED", total)
    assert files.read_npz(path, lambda name: True)["large"].shape == (1000,)
    monkeypatch.setattr(files, "_MOST_UNPACKED", total - 1)
    with pytest.raises(ValueError, match=f"at most {total - 1:,} are allowed"):
        read_scores(path)
    monkeypatch.undo()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as content:
        content.writestr("same.npy", b"")
    with pytest.raises(ValueError, match="packed otherwise"):
        read_scores(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="cannot read"):
        read_scores(path)


class _Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_pickle_in_scores_is_not_run(tmp_path: Path) -> None:
    np.savez(tmp_path / "scores.npz", **{**ARRAYS, "row/a": np.array([_Trap(tmp_path / "sprung")] * 3, dtype=object)})
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_scores(tmp_path / "scores.npz")
    assert not (tmp_path / "sprung").exists()


def test_numbers_of_no_bytes_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "scores.npz", **{**ARRAYS, "row/a": np.zeros(10**6, dtype="V0")})
    with pytest.raises(ValueError, match="announces 1,000,000 numbers"):
        read_scores(tmp_path / "scores.npz")
