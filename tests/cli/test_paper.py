"""The configurations of the paper's experiments and of every data set, on small fake copies of the sets."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace

from deocc.inference import model_folder
from deocc.training import _choose_earlier_run, _evaluation_folder
from tests.conftest import ONE_STEP, SMALL, TINY_STAGE1, run_deocc
from tests.fake_sets.ar import write_ar
from tests.fake_sets.bin_file import write_bin_file
from tests.fake_sets.celeba import write_celeba
from tests.fake_sets.lfw import write_lfw
from tests.fake_sets.pair_list import write_pair_list
from tests.fake_sets.record_file import write_record_file

QUICK = [*SMALL, "--trainer.fast_dev_run", "true", "--trainer.precision", "32-true", "--data.num_workers", "0"]
ONE_KIND = ["--data.kinds", "[surgical]"]
FACES = "--data.face_set.init_args"


def read_results(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return content


@pytest.fixture(scope="module")
def celeba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_celeba(tmp_path_factory.mktemp("celeba"))


@pytest.fixture(scope="module")
def lfw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten folds of two pairs."""
    return write_lfw(tmp_path_factory.mktemp("lfw"), pairs=1)


@pytest.mark.parametrize("stage", ["inpaint", "distill"])
def test_stage_of_the_paper_trains_on_celeba(stage: str, celeba: Path, stage1: Path, tmp_path: Path) -> None:
    own = TINY_STAGE1 if stage == "inpaint" else ["--model.init_args.inpainting_checkpoint", str(stage1)]
    run = ["--run", str(tmp_path / "run"), f"{FACES}.root", str(celeba)]
    run_deocc("fit", "--config", f"paper/{stage}", *run, *QUICK, *own)


def test_lfw_gives_the_table_of_four_settings(
    lfw: Path, stage2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--checkpoint", str(stage2), "--config", "paper/lfw", "--run", str(tmp_path)]
    run_deocc("test", *run, *SMALL, *ONE_KIND, f"{FACES}.root", str(lfw))
    results = read_results(tmp_path)
    assert (results["protocol"], results["data"]) == ("ListedPairs", "LfwFaces")
    for row in ("teacher_clean", "student_clean", "teacher_masked", "teacher_completed", "student"):
        assert len(results["rows"][row]["accuracy"]["accuracies"]) == 10
        assert results["rows"][row]["pairs"]["same"] == 10
    student = results["rows"]["student"]
    assert "accuracy" in student["masked_masked"]
    assert "not enough negatives" in student["tar_intervals"]["1e-4"]["reason"]
    table = capsys.readouterr().out
    for title in ("clean-clean", "clean-masked", "masked-masked", "teacher, completed", "accuracy %"):
        assert title in table
    assert (tmp_path / "masks.csv").read_text().count("surgical") == 30
    assert "clean-masked" in (tmp_path / "report.html").read_text()


def test_lfw_trains_and_tests_on_separate_people(lfw: Path, tmp_path: Path) -> None:
    first, second = ([f"{FACES}.test_folds", folds] for folds in ("[0,1,2,3,4]", "[5,6,7,8,9]"))
    data = ["--config", "lfw/data", f"{FACES}.root", str(lfw), *SMALL]
    data += [f"{FACES}.val_identities", "3", "--data.eval_kinds", "[surgical, hand, sunglasses]"]
    run = tmp_path / "run"
    run_deocc("fit", "--config", "inpaint", *data, *first, "--run", str(run), *TINY_STAGE1, *ONE_STEP)
    run_deocc("test", "--checkpoint", str(run), *data, *first)
    run_deocc("test", "--checkpoint", str(run), *data, *second)
    rows = (run / "masks.csv").read_text().splitlines()[1:]
    images, kinds, _ = zip(*(row.split(",") for row in rows), strict=True)
    assert len(images) == len(set(images)) > 10
    assert set(kinds) == {"surgical", "hand", "sunglasses"}
    assert {image.split("/")[0] for image in images} <= {f"Some_Person_{person:02d}" for person in range(20)}
    results = read_results(run)
    assert results["mixed_kinds"]
    assert set(results["per_kind"]) == {"surgical", "hand", "sunglasses"}
    assert (run / "test-lfw" / "results.json").is_file(), "the run was trained on people of the other half"


def test_lfw_stages_find_the_newest_runs(
    lfw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step of each stage of configs/lfw; the last takes the segmenter and the generator of the others."""
    monkeypatch.chdir(tmp_path)
    people = [f"{FACES}.root", str(lfw), f"{FACES}.val_identities", "3"]
    validated = ["--trainer.check_val_every_n_epoch", "1", "--trainer.limit_val_batches", "1"]
    own = {"segment": ["--model.init_args.width=8", *validated], "inpaint": TINY_STAGE1[:2], "distill": []}
    for stage, settings in own.items():
        run_deocc("fit", "--config", f"lfw/{stage}", *people, *SMALL, *ONE_STEP, *settings)
    shown = capsys.readouterr().out
    assert "segmenter_checkpoint: the newest run of SegmentationModule, runs/lfw/segment" in shown
    assert "inpainting_checkpoint: the newest run of InpaintingModule, runs/lfw/inpaint" in shown
    recorded = yaml.safe_load(Path("runs/lfw/distill/config.yaml").read_text())["model"]["init_args"]
    assert recorded["segmenter_checkpoint"] == "runs/lfw/segment/checkpoints/last.ckpt"
    segmenter, student = (
        torch.load(f"runs/lfw/{stage}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for stage in ("segment", "distill")
    )
    name = "to_logits.0.weight"
    assert torch.equal(segmenter[f"average.module.{name}"], student[f"deoccluder.segmenter.{name}"])
    for stage in ("segment", "distill"):
        run_deocc("test", "--checkpoint", f"runs/lfw/{stage}", *SMALL)
    assert set(read_results(Path("runs/lfw/segment"))["mask_prediction"]) >= {"per_kind", "masked"}
    results = read_results(Path("runs/lfw/distill"))
    assert {"teacher_clean_predicted_mask", "student_clean_predicted_mask"} < set(results["rows"])
    assert len(results["rows"]["student_clean_predicted_mask"]["accuracy"]["accuracies"]) == 5
    assert set(results["student_predicted_mask_minus_teacher_masked"]) == {"eer", "accuracy"}


def test_ar_gives_ranks_for_both_galleries(stage2: Path, tmp_path: Path) -> None:
    """With predicted masks only, in a folder of its own beside the test on the run's people."""
    root = write_ar(tmp_path / "ar", people=("m-001", "w-001"), size=(240, 180))
    run_deocc("test", "--checkpoint", str(stage2), "--config", "paper/ar", *SMALL, f"{FACES}.root", str(root))
    results = read_results(stage2 / "test-ar")
    assert (results["trained_on"], results["data"], results["training_data_hash"]) == ("OrlFaces", "ArFaces", None)
    report = (stage2 / "test-ar" / "report.html").read_text()
    assert "Trained on OrlFaces, tested on ArFaces" in report
    assert "occluders are rendered" not in report
    assert "scarf, rank-1 % protocol1" in report
    assert set(results["per_kind"]) == {"sunglasses", "scarf"}
    assert results["restoration"] == {}
    assert {"student_predicted_mask", "teacher_completed_predicted_mask"} < set(results["rows"])
    assert "student" not in results["rows"]
    row = results["rows"]["student_predicted_mask"]
    assert {"rank1_protocol1", "rank1_protocol2", "cmc_protocol1"} < set(row)
    assert row["rank1"] == row["rank1_protocol2"]


@pytest.mark.parametrize("name", ["celeba", "record"])
def test_data_set_to_train_on(name: str, celeba: Path, tmp_path: Path) -> None:
    own = [f"{FACES}.root={celeba}"]
    if name == "record":
        rec = write_record_file(tmp_path, people=40, images=2)
        own = [f"{FACES}.rec={rec}", f"{FACES}.train=0.5", f"{FACES}.val=0.2"]
    run = ["--config", "inpaint", "--config", f"data/{name}", "--run", str(tmp_path / "run")]
    run_deocc("fit", *run, *QUICK, *TINY_STAGE1, *own)


@pytest.mark.parametrize("name", ["pairs", "bin"])
def test_data_set_to_test_on(name: str, stage2: Path, tmp_path: Path) -> None:
    if name == "pairs":
        write_pair_list(tmp_path)
        (listed,) = tmp_path.glob("*.txt")
        own = [f"{FACES}.root={tmp_path}", f"{FACES}.pairs={listed}", f"{FACES}.aligned=arcface"]
    else:
        write_bin_file(tmp_path / "pairs.bin")
        own = [f"{FACES}.path={tmp_path / 'pairs.bin'}"]
    run = ["--checkpoint", str(stage2), "--config", f"data/{name}", "--run", str(tmp_path / "out")]
    run_deocc("test", *run, *SMALL, *ONE_KIND, *own)
    assert read_results(tmp_path / "out")["protocol"] == "ListedPairs"


def test_data_set_without_training_people(lfw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--config", "inpaint", "--config", "paper/lfw", "--run", str(tmp_path / "run"), f"{FACES}.root", str(lfw)]
    with pytest.raises(SystemExit):
        run_deocc("fit", *run, *QUICK, *TINY_STAGE1)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("deocc: ")]
    assert "LfwFaces" in line
    assert "data.face_set" in line


@pytest.mark.parametrize(
    ("class_path", "settings", "folder"),
    [
        ("deocc.data.OrlFaces", {"split": "standard", "fold": None}, ""),
        ("deocc.data.OrlFaces", {"split": "standard", "fold": 1}, "test-orl"),
        ("deocc.data.LfwFaces", {"root": "data/lfw"}, "test-lfw"),
    ],
)
def test_results_on_other_faces_stay_apart(
    class_path: str, settings: dict[str, Any], folder: str, tmp_path: Path
) -> None:
    own = {"class_path": "deocc.data.OrlFaces", "init_args": {"split": "standard", "fold": None}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": {"face_set": own}}))
    namespace: Any = Namespace  # untyped
    face_set = namespace(class_path=class_path, init_args=namespace(**settings))
    config = namespace(run="from_checkpoint", data=namespace(face_set=face_set), trainer=namespace())
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    assert _evaluation_folder(config, checkpoint, "test") == tmp_path / folder
    config.run = str(tmp_path / "elsewhere")
    assert _evaluation_folder(config, checkpoint, "test") == tmp_path / "elsewhere"


def test_face_set_with_a_class_as_setting_is_its_own(tmp_path: Path) -> None:
    namespace: Any = Namespace  # untyped
    crop = {"class_path": "my_faces.Crop", "init_args": {"side": 64}}
    own = {"class_path": "my_faces.MyFaces", "init_args": {"root": "faces", "crop": crop}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": {"face_set": own}}))
    nested = namespace(class_path="my_faces.Crop", init_args=namespace(side=64))
    face_set = namespace(class_path="my_faces.MyFaces", init_args=namespace(root="faces", crop=nested))
    config = namespace(run="from_checkpoint", data=namespace(face_set=face_set), trainer=namespace())
    assert _evaluation_folder(config, tmp_path / "checkpoints" / "last.ckpt", "test") == tmp_path


def test_stage1_of_a_model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace: Any = Namespace  # untyped
    (tmp_path / "config.json").touch()
    monkeypatch.setattr(model_folder, "PRETRAINED", tmp_path)
    for named in ("pretrained", str(tmp_path)):
        model = namespace(init_args=namespace(inpainting_checkpoint=named))
        _choose_earlier_run(model, "inpainting_checkpoint", "InpaintingModule")
        assert model.init_args.inpainting_checkpoint == str(tmp_path)
    monkeypatch.setattr(model_folder, "PRETRAINED", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no pretrained model"):
        _choose_earlier_run(
            namespace(init_args=namespace(inpainting_checkpoint="pretrained")), "inpainting_checkpoint", ""
        )
