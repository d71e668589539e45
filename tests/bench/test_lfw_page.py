"""The page "Results on LFW" from small results of two halves and of one; and its figures."""

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from bench import lfw_figures, lfw_page
from deocc.data import lfw
from deocc.data.landmarks import FoundLandmarks
from deocc.evaluation.embeddings import EmbeddingSet
from deocc.evaluation.protocol import ListedPairs
from deocc.evaluation.results import CLEAN_ROWS, ROWS, build_results
from deocc.evaluation.verification import CLEAN_SCORES, SCORES, roc_curve, write_scores
from deocc.files import write_json
from deocc.geometry import TEMPLATES
from deocc.masking import list_kinds
from tests.fake_sets.lfw import write_lfw

KINDS = ("box", "scarf")
PAIRS = 40  # a half, in five folds
NOISE = {"teacher_masked": 1.2, "student_predicted_mask": 0.5, "student_clean_predicted_mask": 0.3}


def _embeddings(name: str, half: int) -> EmbeddingSet:
    """Two images of 40 people: image i is of person i // 2."""
    index, generator = torch.arange(2 * PAIRS), torch.Generator().manual_seed(sum(map(ord, name)) + half)
    person = torch.nn.functional.normalize(torch.randn(PAIRS, 6, generator=torch.Generator().manual_seed(half)), dim=1)
    noisy = person[index // 2] + NOISE.get(name, 0.4) * torch.randn(2 * PAIRS, 6, generator=generator)
    numbers = torch.tensor([list_kinds().index(kind) for kind in KINDS])
    kind = torch.full_like(index, -1) if name in CLEAN_ROWS else numbers[index // 2 % 2]
    return EmbeddingSet(torch.nn.functional.normalize(noisy, dim=1), index // 2, index, kind, index * 0)


def _protocol(first_fold: int) -> ListedPairs:
    """Half of the pairs are of one person; every image is in one pair."""
    place = np.arange(PAIRS)
    same = place % 4 < 2
    second = np.where(same, 2 * place + 1, 2 * np.roll(place, 2) + 1)
    return ListedPairs(2 * place, second, same, first_fold + place // 8)


def _write_half(folder: Path, half: str, thresholds: bool = True) -> dict[str, Any]:
    number, run = "ab".index(half), folder / half / "distill"
    embeddings = {name: _embeddings(name, number) for name in ROWS}
    protocol = _protocol(5 * number)
    means = {"psnr": 20.0, "ssim": 0.9, "psnr_covered": 18.0 + number, "ssim_covered": 0.5}
    restoration = {source: {"mean": means, "per_kind": {}} for source in ("given_mask", "predicted_mask")}
    provenance: dict[str, Any] = {
        "settings": {"bare_faces": "teacher"},
        "kinds": list(KINDS),
        "training_kinds": ["box"],
    }
    kinds = {list_kinds().index(kind): {"iou": 0.8 + 0.1 * number, "recall": 0.9, "found": 1.0} for kind in KINDS}
    bare = {-1: {"iou": float("nan"), "recall": float("nan"), "found": 0.025}}
    masks = {"mean": {"iou": 0.85, "recall": 0.9, "found": 1.0}, "per_kind": kinds | bare}
    tested = build_results(embeddings, restoration, list_kinds(), provenance, protocol, masks, replicates=1)
    results = tested.content
    if thresholds:
        entry = {"target": 0.01, "test": {"false_accept_rate": 0.012, "interval": [0.008, 0.017]}}
        results["thresholds"] = {
            "thresholds": {"clean-masked": [entry], "clean-clean": [{"target": 0.01, "test": None}]}
        }
    write_json(run / "results.json", results)
    write_scores(run / SCORES, {row: pairs for row, pairs in tested.pairs.items() if row not in CLEAN_ROWS})
    write_scores(run / CLEAN_SCORES, {row: pairs for row, pairs in tested.pairs.items() if row in CLEAN_ROWS})
    generator = {**means, "perceptual_covered": 0.25, "frechet": 3.0, "kernel": 0.5}
    write_json(folder / half / "inpaint/results.json", {"restoration": {"given_mask": generator}})
    return results


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The runs of two halves, and their results."""
    folder = tmp_path_factory.mktemp("lfw")
    return folder, [_write_half(folder, half) for half in "ab"]


@pytest.fixture(scope="module")
def text(both: tuple[Path, list[dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory) -> str:
    pages = tmp_path_factory.mktemp("pages")
    path = lfw_page.write_page(lfw_page.read_halves(both[0]), pages, replicates=20)
    page = path.read_text()
    for figure in re.findall(r"\]\((lfw/\w+\.\w+)\)", page):
        assert (pages / figure).stat().st_size > 1000
    return page


def _cells(text: str, title: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {title} |"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_halves_are_combined(both: tuple[Path, list[dict[str, Any]]], text: str) -> None:
    rows = [results["rows"]["student_predicted_mask"] for results in both[1]]
    folds = torch.cat([row["accuracy"]["accuracies"] for row in rows])
    accuracy, eer, tar, _ = _cells(text, "student, predicted mask")
    assert accuracy == f"{100 * folds.mean():.2f} ± {100 * folds.std() / 10**0.5:.2f}" and len(folds) == 10
    assert eer == f"{50 * (rows[0]['eer'] + rows[1]['eer']):.2f}" and 0 < float(eer) < 35
    assert "embedded by the teacher" in text.split("##")[0]
    assert tar == "n/a"  # 20 pairs of two people cannot tell
    assert f"{2 * PAIRS} pairs" in text and f"{2 * PAIRS} people" in text and "one half" not in text.split("##")[0]


def test_rows_and_differences(text: str) -> None:
    for title in lfw_page.TITLES.values():
        assert len(_cells(text, title)) == 4
    for first, second in lfw_page.DIFFERENCES:
        cells = _cells(text, f"{lfw_page.TITLES[first]} minus {lfw_page.TITLES[second]}")
        assert all(re.fullmatch(r"[+-]\d+\.\d\d \([+-]\d+\.\d\d to [+-]\d+\.\d\d\)", cell) for cell in cells)


def test_ratio_and_difference(both: tuple[Path, list[dict[str, Any]]], text: str) -> None:
    means = {
        name: np.mean([results["rows"][name]["eer"] for results in both[1]])
        for name in ("student_predicted_mask", "teacher_masked")
    }
    ratio = means["student_predicted_mask"] / means["teacher_masked"]
    assert f'masked faces": **{ratio:.2f}**' in text and ratio < 0.9
    difference = _cells(text, "student, predicted mask minus teacher, masked faces")[1]
    assert float(difference.split()[0]) == pytest.approx(
        100 * (means["student_predicted_mask"] - means["teacher_masked"]), abs=0.006
    )


def test_kinds(both: tuple[Path, list[dict[str, Any]]], text: str) -> None:
    cells = _cells(text, "**scarf** (never trained on)")
    rates = [results["per_kind"]["scarf"]["rows"]["teacher_masked"]["eer"] for results in both[1]]
    assert cells[0] == f"{100 * np.mean(rates):.2f}" and cells[-2:] == ["85.00", "90.00"]
    assert _cells(text, "box") and "Never trained on, in any network: scarf." in text


def test_bare_faces_restoration_and_thresholds(text: str) -> None:
    assert f"Of {4 * PAIRS} bare faces of test people, 4 get any mask: 2.50 %" in text
    assert _cells(text, "completed by the generator at its own side, given mask") == [
        "18.50",
        "0.500",
        "0.25",
        "3",
        "0.5",
    ]
    assert _cells(text, "completed at the student's side, predicted mask")[-1] == "n/a"
    assert (
        _cells(text, "clean-masked") == ["1", "1.2 (0.8 to 1.7)", "1.2 (0.8 to 1.7)"] and "| clean-clean |" not in text
    )


def test_figures_name_command(text: str) -> None:
    figures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)\n\n\*([^\n]*)\*\n", text)
    assert [name for name, _ in figures] == ["lfw/roc.svg", "lfw/kinds.svg"]
    assert all("python -m bench.lfw_page" in caption for _, caption in figures)
    assert "make lfw-results" in text and "not comparable one to one" in text


def test_one_half_is_enough(tmp_path: Path) -> None:
    _write_half(tmp_path, "a", thresholds=False)
    page = lfw_page.page(lfw_page.read_halves(tmp_path), replicates=5, panel=True)
    assert "Only one half has been tested" in page and f"{PAIRS} pairs" in page and "half b" not in page
    assert "## Thresholds" not in page and "](lfw/panel.jpg)" in page


def test_figures_are_reproducible(tmp_path: Path) -> None:
    for name in ("one", "other"):
        lfw_figures.write_kind_bars(tmp_path / f"{name}.svg", {"teacher": {"box": 0.1, "scarf": 0.2}}, ["scarf"])
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "other.svg").read_bytes()


def test_missing_runs_and_equal_folds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lfw_page.main(["--runs", str(tmp_path)]) == 1
    assert "run `python -m bench.lfw` first" in capsys.readouterr().err
    _write_half(tmp_path, "a")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ValueError, match="tested the same folds"):
        lfw_page.read_halves(tmp_path)


def test_kept_scores_are_enough(
    both: tuple[Path, list[dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a model folder, the page is written and the panel of before stays."""
    assert lfw_page.main(["--runs", str(both[0]), "--pages", str(tmp_path)]) == 0
    assert "panel: not drawn" in capsys.readouterr().out and (tmp_path / "lfw.md").is_file()


def test_mean_roc(both: tuple[Path, list[dict[str, Any]]]) -> None:
    pairs = [half.pairs["teacher_masked"] for half in lfw_page.read_halves(both[0])]
    far, tar = lfw_figures.mean_roc(pairs)
    assert bool((far.diff() > 0).all()) and bool((tar.diff() >= 0).all()) and tar[-1] == 1
    expected = [
        max(tar for false, tar in zip(*roc_curve(each.similarity, each.same)[:2], strict=True) if false <= 0.1)
        for each in pairs
    ]
    assert tar[(far <= 0.1).sum() - 1] == pytest.approx(np.mean(expected))


def test_one_person_a_kind() -> None:
    kind = torch.tensor([list_kinds().index(name) for name in ("box", "box", "scarf", "scarf")])
    face = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8)
    batch: Any = {"kind": kind, "identity": torch.tensor([5, 6, 5, 7]), "face": face, "masked_face": -face}
    shown, masked, kinds = lfw_figures.one_person_a_kind([batch], ["scarf", "box", "hand"])
    assert kinds == ["scarf", "box"] and shown[:, 0, 0, 0].tolist() == [3, 0] and masked[:, 0, 0, 0].tolist() == [-3, 0]


def test_write_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_lfw(tmp_path / "faces", folds=3, pairs=3, size=64)
    points = TEMPLATES["canonical"].tensor(64).double().numpy()

    def find(root: Path, names: Sequence[str], *_: object) -> FoundLandmarks:
        return FoundLandmarks(tuple(names), np.stack([points] * len(names)), np.full((len(names), 2), 64))

    monkeypatch.setattr(lfw, "find_landmarks", find)
    completed: list[torch.Tensor] = []

    def process_faces(face: torch.Tensor) -> Any:
        completed.append(face)
        return SimpleNamespace(mask=face[:, :1] * 0, completed_face=face)

    monkeypatch.setattr(lfw_figures, "load", lambda _: SimpleNamespace(size=48, process_faces=process_faces))
    face_set = {
        "class_path": "deocc.data.LfwFaces",
        "init_args": {"root": "elsewhere", "test_folds": [0], "val_identities": 1},
    }
    settings = {"face_set": face_set, "kinds": ["box"], "eval_kinds": ["box", "scarf"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": settings}))
    lfw_figures.write_panel(tmp_path / "panel.jpg", tmp_path, str(root))
    assert completed[0].shape == (2, 3, 48, 48)
    with Image.open(tmp_path / "panel.jpg") as image:
        assert image.size == (110 + 4 * (lfw_figures.PANEL_SIZE + 4), 24 + 2 * (lfw_figures.PANEL_SIZE + 4))


def test_page_states_the_lengths_of_the_trainings(tmp_path: Path) -> None:
    for stage, length, start in (("segment", 9, None), ("distill", 3, "earlier")):
        config = {"trainer": {"max_epochs": length}, "model": {"init_args": {"initial_weights": start}}}
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "config.yaml").write_text(yaml.safe_dump(config))
    epochs = lfw_page.read_epochs(tmp_path)
    assert epochs == {"segment": "9", "distill": "3 from an earlier model"}
    half = lfw_page.Half("a", {}, {}, {}, epochs)
    expected = (
        "Epochs of training (`--trainer.max_epochs`), half a: mask predictor 9, student 3 from an earlier model. "
    )
    assert lfw_page.length_sentence([half]) == expected
    assert lfw_page.length_sentence([lfw_page.Half("b", {}, {}, {}, {})]) == ""


def test_page_states_the_precision() -> None:
    halves = [lfw_page.Half(name, {"frozen_precision": "bfloat16"}, {}, {}, {}) for name in "ab"]
    assert lfw_page.precision_sentence(halves) == "The networks were tested in bfloat16 (half a and b). "
    assert lfw_page.precision_sentence([lfw_page.Half("a", {"frozen_precision": "float32"}, {}, {}, {})]) == ""
