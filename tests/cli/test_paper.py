"""The configurations of the paper's experiments and of every data set, through the real command line, on the sets' fake twins."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace

from deocc.training import _evaluation_folder
from tests.conftest import ONE_STEP, ROOT, SMALL, TINY_STAGE1, run_deocc
from tests.fake_sets.ar import write_ar
from tests.fake_sets.bin_file import write_bin_file
from tests.fake_sets.celeba import write_celeba
from tests.fake_sets.lfw import write_lfw
from tests.fake_sets.pair_list import write_pair_list
from tests.fake_sets.record_file import write_record_file

PAPER, DATA = ROOT / "configs/paper", ROOT / "configs/data"
QUICK = [*SMALL, "--trainer.fast_dev_run", "true", "--trainer.precision", "32-true", "--data.num_workers", "0"]
ONE_KIND = ["--data.kinds", "[surgical]"]


@pytest.fixture(scope="module")
def celeba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_celeba(tmp_path_factory.mktemp("celeba"))


@pytest.fixture(scope="module")
def lfw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten folds of two pairs."""
    return write_lfw(tmp_path_factory.mktemp("lfw"), pairs=1)


@pytest.mark.parametrize("stage", ["inpaint", "distill"])
def test_a_stage_of_the_paper_trains_on_celeba(stage: str, celeba: Path, stage1: Path, tmp_path: Path) -> None:
    own = TINY_STAGE1 if stage == "inpaint" else ["--model.init_args.inpainting_checkpoint", str(stage1)]
    words = ["fit", "--config", str(PAPER / f"{stage}.yaml"), "--run", str(tmp_path / "run"), *QUICK, *own]
    run_deocc(*words, "--data.face_set.init_args.root", str(celeba))


def test_lfw_gives_the_table_of_four_settings(
    lfw: Path, stage2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "test",
        "--checkpoint",
        str(stage2),
        "--config",
        str(PAPER / "lfw.yaml"),
        "--run",
        str(tmp_path),
        *SMALL,
        *ONE_KIND,
    ]
    run_deocc(*words, "--data.face_set.init_args.root", str(lfw))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["protocol"] == "ListedPairs" and results["data"] == "LfwFaces"
    for row in ("teacher_clean", "student_clean", "teacher_masked", "teacher_completed", "student"):
        assert len(results["rows"][row]["accuracy"]["accuracies"]) == 10 and results["rows"][row]["pairs"]["same"] == 10
    assert "accuracy" in results["rows"]["student"]["masked_masked"]
    assert "not enough negatives" in results["rows"]["student"]["tar_intervals"]["1e-4"]["reason"]
    table = capsys.readouterr().out
    assert all(
        words in table for words in ("clean-clean", "clean-masked", "masked-masked", "teacher, completed", "accuracy %")
    )
    assert (tmp_path / "masks.csv").read_text().count("surgical") == 30 and "clean-masked" in (
        tmp_path / "report.html"
    ).read_text()


def test_lfw_trains_and_tests_on_people_apart(lfw: Path, tmp_path: Path) -> None:
    halves = [["--data.face_set.init_args.test_folds", folds] for folds in ("[0,1,2,3,4]", "[5,6,7,8,9]")]
    words = ["--config", str(ROOT / "configs/lfw/data.yaml"), "--data.face_set.init_args.root", str(lfw), *SMALL]
    words += ["--data.face_set.init_args.val_identities", "3", "--data.eval_kinds", "[surgical, hand, sunglasses]"]
    run = tmp_path / "run"
    run_deocc(
        "fit",
        "--config",
        str(ROOT / "configs/inpaint.yaml"),
        *words,
        *halves[0],
        "--run",
        str(run),
        *TINY_STAGE1,
        *ONE_STEP,
    )
    run_deocc("test", "--checkpoint", str(run), *words, *halves[0])
    run_deocc("test", "--checkpoint", str(run), *words, *halves[1])
    rows = (run / "masks.csv").read_text().splitlines()[1:]
    images, kinds, _ = zip(*(row.split(",") for row in rows), strict=True)
    assert len(images) == len(set(images)) > 10 and set(kinds) == {"surgical", "hand", "sunglasses"}
    assert {image.split("/")[0] for image in images} <= {f"Some_Person_{person:02d}" for person in range(20)}
    results = json.loads((run / "results.json").read_text())
    assert results["mixed_kinds"] and set(results["per_kind"]) == {"surgical", "hand", "sunglasses"}
    assert (
        run / "test-lfw" / "results.json"
    ).is_file()  # people of the other half were trained on: not a test of this run


def test_lfw_stages_find_the_newest_runs(
    lfw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The three stages of configs/lfw, a step each, then a test of the last, which takes masks of one and completions of the other."""
    monkeypatch.chdir(tmp_path)
    people = ["--data.face_set.init_args.root", str(lfw), "--data.face_set.init_args.val_identities", "3"]
    validated = ["--trainer.check_val_every_n_epoch", "1", "--trainer.limit_val_batches", "1"]
    tiny = {"segment": ["--model.init_args.width=8", *validated], "inpaint": TINY_STAGE1[:2], "distill": []}
    for stage, own in tiny.items():
        run_deocc("fit", "--config", str(ROOT / f"configs/lfw/{stage}.yaml"), *people, *SMALL, *ONE_STEP, *own)
    told = capsys.readouterr().out
    assert "segmenter_checkpoint: the newest run of SegmentationModule, runs/lfw/segment" in told
    assert "inpainting_checkpoint: the newest run of InpaintingModule, runs/lfw/inpaint" in told
    recorded = yaml.safe_load(Path("runs/lfw/distill/config.yaml").read_text())["model"]["init_args"]
    assert recorded["segmenter_checkpoint"] == "runs/lfw/segment/checkpoints/last.ckpt"
    saved = [
        torch.load(f"runs/lfw/{stage}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for stage in ("segment", "distill")
    ]
    assert torch.equal(
        saved[0]["average.module.to_logits.0.weight"], saved[1]["deoccluder.segmenter.to_logits.0.weight"]
    )
    run_deocc("test", "--checkpoint", "runs/lfw/segment", *SMALL)
    assert set(json.loads(Path("runs/lfw/segment/results.json").read_text())["mask_prediction"]) >= {
        "per_kind",
        "masked",
    }
    run_deocc("test", "--checkpoint", "runs/lfw/distill", *SMALL)
    results = json.loads(Path("runs/lfw/distill/results.json").read_text())
    assert {"teacher_clean_predicted_mask", "student_clean_predicted_mask"} < set(results["rows"])
    assert len(results["rows"]["student_clean_predicted_mask"]["accuracy"]["accuracies"]) == 5
    assert set(results["student_predicted_mask_minus_teacher_masked"]) == {"eer", "accuracy"}


def test_ar_gives_ranks_by_both_galleries_with_predicted_masks_alone(stage2: Path, tmp_path: Path) -> None:
    root = write_ar(tmp_path / "ar", people=("m-001", "w-001"), size=(240, 180))
    words = ["test", "--checkpoint", str(stage2), "--config", str(PAPER / "ar.yaml"), *SMALL]
    run_deocc(*words, "--data.face_set.init_args.root", str(root))
    results = json.loads((stage2 / "test-ar" / "results.json").read_text())  # not over a test on the run's own people
    assert (results["trained_on"], results["data"], results["training_data_hash"]) == ("OrlFaces", "ArFaces", None)
    report = (stage2 / "test-ar" / "report.html").read_text()
    assert "Trained on OrlFaces, tested on ArFaces" in report and "occluders are rendered" not in report
    assert "scarf, rank-1 % protocol1" in report
    assert set(results["per_kind"]) == {"sunglasses", "scarf"} and results["restoration"] == {}
    assert {"student_predicted_mask", "teacher_completed_predicted_mask"} < set(
        results["rows"]
    ) and "student" not in results["rows"]
    row = results["rows"]["student_predicted_mask"]
    assert {"rank1_protocol1", "rank1_protocol2", "cmc_protocol1"} < set(row) and row["rank1"] == row["rank1_protocol2"]


@pytest.mark.parametrize("name", ["celeba", "record"])
def test_a_data_set_to_train_on(name: str, celeba: Path, tmp_path: Path) -> None:
    chosen = {"celeba": ["root", str(celeba)]}.get(name) or [
        "rec",
        str(write_record_file(tmp_path, people=40, images=2)),
    ]
    words = [
        "fit",
        "--config",
        str(ROOT / "configs/inpaint.yaml"),
        "--config",
        str(DATA / f"{name}.yaml"),
        "--run",
        str(tmp_path / "run"),
    ]
    shares = ["--data.face_set.init_args.train=0.5", "--data.face_set.init_args.val=0.2"] if name == "record" else []
    run_deocc(*words, *QUICK, *TINY_STAGE1, f"--data.face_set.init_args.{chosen[0]}", chosen[1], *shares)


@pytest.mark.parametrize("name", ["pairs", "bin"])
def test_a_data_set_to_test_on(name: str, stage2: Path, tmp_path: Path) -> None:
    if name == "pairs":
        write_pair_list(tmp_path)
        (listed,) = tmp_path.glob("*.txt")
        chosen = ["root", str(tmp_path), "pairs", str(listed), "aligned", "arcface"]
    else:
        write_bin_file(tmp_path / "pairs.bin")
        chosen = ["path", str(tmp_path / "pairs.bin")]
    words = [
        "test",
        "--checkpoint",
        str(stage2),
        "--config",
        str(DATA / f"{name}.yaml"),
        "--run",
        str(tmp_path / "out"),
        *SMALL,
        *ONE_KIND,
    ]
    run_deocc(
        *words,
        *[f"--data.face_set.init_args.{key}={value}" for key, value in zip(chosen[::2], chosen[1::2], strict=True)],
    )
    assert json.loads((tmp_path / "out" / "results.json").read_text())["protocol"] == "ListedPairs"


def test_a_set_for_tests_cannot_be_trained_on(lfw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "fit",
        "--config",
        str(ROOT / "configs/inpaint.yaml"),
        "--config",
        str(PAPER / "lfw.yaml"),
        "--run",
        str(tmp_path / "run"),
    ]
    with pytest.raises(SystemExit):
        run_deocc(*words, *QUICK, *TINY_STAGE1, "--data.face_set.init_args.root", str(lfw))
    assert "LfwFaces has nobody to train on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "folder"), [({}, ""), ({"fold": 1}, "test-orl"), ({"class_path": "deocc.data.LfwFaces"}, "test-lfw")]
)
def test_results_on_other_faces_stay_apart(changed: dict[str, Any], folder: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    own = {"class_path": "deocc.data.OrlFaces", "init_args": {"split": "standard", "fold": None}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": {"face_set": own}}))
    settings = (
        {**own["init_args"], "fold": changed.get("fold")} if "class_path" not in changed else {"root": "data/lfw"}
    )
    face_set = Namespace(class_path=changed.get("class_path", own["class_path"]), init_args=Namespace(**settings))
    config = Namespace(run="from_checkpoint", data=Namespace(face_set=face_set))
    assert _evaluation_folder(config, tmp_path / "checkpoints" / "last.ckpt") == tmp_path / folder
    config.run = str(tmp_path / "elsewhere")
    assert _evaluation_folder(config, tmp_path / "checkpoints" / "last.ckpt") == tmp_path / "elsewhere"
