import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import load_file

import deocc
from deocc.data import LfwFaces, MaskedFaceDataModule
from deocc.evaluation.thresholds import CONDITIONS, covered_share
from deocc.inference import model_folder
from deocc.inference.export import embedded_faces
from deocc.inference.model_card import licences, model_card, training_facts
from deocc.inference.model_folder import write_model
from deocc.modules import DistillationModule
from tests.random_model import make_dlib_pipeline

FILES = ["README.md", "config.json", "model.safetensors"]
SHIPPED = model_folder.PRETRAINED


def read_thresholds(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "checkpoints" / "last.thresholds.json").read_text())["thresholds"]
    return found


def test_folder_has_three_files_and_no_teacher(tested: Path) -> None:
    assert sorted(path.name for path in (tested / "model").iterdir()) == FILES
    names = {name.split(".")[0] for name in load_file(tested / "model" / "model.safetensors")}
    assert names == {"student", "deoccluder", "center"}


def test_weights_are_stored_in_half_precision(tested: Path) -> None:
    stored = load_file(tested / "model" / "model.safetensors")
    halves = {name for name, value in stored.items() if value.dtype == torch.float16}
    assert halves == {name for name, value in stored.items() if value.ndim > 1}
    assert stored["center"].dtype == torch.float32
    assert sum(stored[name].numel() for name in halves) > 0.98 * sum(value.numel() for value in stored.values())
    state = deocc.load(tested / "model").network.state_dict()
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert all(torch.equal(value, stored[name].float()) for name, value in state.items())


def test_weights_beyond_half_precision(tested: Path, tmp_path: Path) -> None:
    pipeline = deocc.load(tested / "checkpoints" / "last.ckpt")
    name, weight = next((name, value) for name, value in pipeline.network.state_dict().items() if value.ndim > 1)
    weight[0, -1] = 70_000.25
    write_model(tmp_path, pipeline.config, pipeline.network, "")
    assert load_file(tmp_path / "model.safetensors")[name].dtype == torch.float32
    assert torch.equal(deocc.load(tmp_path).network.state_dict()[name], weight)


def test_half_precision_keeps_similarities(tmp_path: Path) -> None:
    pipeline = make_dlib_pipeline(24)
    faces = embedded_faces(pipeline, "val", 3)
    pipeline.network.center.copy_(pipeline.network.student(faces.face, faces.face, faces.face[:, :1]).mean(0))
    size = write_model(tmp_path, pipeline.config, pipeline.network, "")
    images = torch.cat([faces.face, faces.masked_face])
    before, after = (each.embed_faces(images) for each in (pipeline, deocc.load(tmp_path)))
    assert float((before * after).sum(1).min()) > 0.9999
    assert float((before @ before.T - after @ after.T).abs().max()) < 3e-3
    assert size < 16_000_000


def test_config_describes_input_and_origin(tested: Path) -> None:
    config, results = (json.loads((tested / name).read_text()) for name in ("model/config.json", "results.json"))
    assert config["format_version"] == 3
    assert config["teacher"] == config["student"]["name"] == "dlib_resnet"
    assert (config["face"]["size"], config["face"]["color_order"], len(config["face"]["template"])) == (64, "RGB", 5)
    assert config["thresholds"] == results["thresholds"] == read_thresholds(tested)
    for name in ("training_data_hash", "data_hash", "manifest_hash", "credit"):
        assert config["training"][name] == results[name] is not None
    assert "CC0" in config["licences"]["teacher"]
    assert "AT&T" in config["licences"]["data"]


def test_card_has_header_figures_and_duties(tested: Path) -> None:
    card = (tested / "model" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert (header["library_name"], header["license"]) == ("deocc", "other")
    results = json.loads((tested / "results.json").read_text())
    assert f"| {100 * results['rows']['student_predicted_mask']['eer']:.2f} |" in card
    headings = ("Use", "Data", "Figures", "Thresholds", "Intended use", "Limits", "Responsible use")
    for heading in (*headings, "Licences and credits"):
        assert f"\n## {heading}\n" in card
    for part in ("It is for research.", "must not be used", "deocc.load(", "AT&T Laboratories Cambridge", "CC0"):
        assert part in card
    assert card.count("FAR % (95 %)") == 2
    assert "masked-masked" in card
    report = (tested / "report.html").read_text()
    assert "test FAR % (95 %)" in report and "all pairs of test people" in report


def test_card_of_lfw_states_terms_and_limits(tested: Path) -> None:
    results = {**json.loads((tested / "results.json").read_text()), "data": "LfwFaces", "credit": LfwFaces.credit}
    pipeline = deocc.load(tested)
    config = {**pipeline.config, "training": training_facts(results), "licences": licences("dlib_resnet", "LfwFaces")}
    card = model_card(config, results, pipeline.thresholds)
    origin = "photographs of people in the news, a public research set"
    for part in ("Labeled Faces in the Wild", origin, "under CC0", "far more men than"):
        assert part in card


def embed(module: DistillationModule, data: MaskedFaceDataModule, loader: int) -> dict[str, NDArray[Any]]:
    columns: dict[str, list[torch.Tensor]] = {"embedding": [], "identity": [], "index": [], "covered": []}
    for batch in data.val_dataloader()[loader]:
        masked = data.on_after_batch_transfer(batch, loader)
        with torch.no_grad():
            predicted = module.predict_step(masked, 0)
        columns["embedding"].append(predicted["embedding"])
        columns["identity"].append(masked["identity"])
        columns["index"].append(masked["index"])
        columns["covered"].append(covered_share(predicted["mask"]))
    return {name: torch.cat(column).numpy() for name, column in columns.items()}


def test_thresholds_are_those_of_validation_people(tested: Path) -> None:
    """Rates recomputed from embeddings of photos with predicted masks."""
    module = DistillationModule.load_from_checkpoint(tested / "checkpoints" / "last.ckpt", map_location="cpu").eval()
    data = MaskedFaceDataModule(size=64, eval_batch_size=8, kinds=("surgical", "sunglasses"))
    seen = {name: embed(module, data, number) for number, name in enumerate(("clean", "masked"))}
    thresholds = read_thresholds(tested)
    for condition in CONDITIONS:
        first, second = (seen[name] for name in condition.split("-"))
        similarity = first["embedding"] @ second["embedding"].T
        other = first["identity"][:, None] != second["identity"][None]
        same = ~other & (first["index"][:, None] != second["index"][None])
        assert thresholds["thresholds"][condition]
        for entry in thresholds["thresholds"][condition]:
            # A similarity equal to the limit may be rounded to either side, which moves a rate by a pair.
            validation, accepted = entry["validation"], np.mean(similarity[other] >= entry["same"])
            rejected = np.mean(similarity[same] < entry["same"])
            assert accepted == pytest.approx(validation["false_accept_rate"], abs=2.1 / other.sum())
            assert rejected == pytest.approx(validation["false_reject_rate"], abs=2.1 / same.sum())
            assert validation["people"] == 4
            assert validation["false_accept_rate"] <= entry["target"] + 1e-12
            assert entry["test"]["people"] > 1
            for rates in (validation, entry["test"]):
                assert rates["interval"][0] <= rates["false_accept_rate"] <= rates["interval"][1]
    masked = thresholds["masked"]
    assert np.mean(seen["clean"]["covered"] >= masked["limit"]) == pytest.approx(masked["clean_called_masked"])
    assert np.mean(seen["masked"]["covered"] < masked["limit"]) == pytest.approx(masked["masked_called_clean"])
    assert thresholds["data_hash"] == data.face_set.fingerprint("val")


def test_testing_leaves_the_checkpoint_unchanged(tested: Path, stage2: Path) -> None:
    after, before = (run / "checkpoints" / "last.ckpt" for run in (tested, stage2))
    assert after.read_bytes() == before.read_bytes()
    assert after.stat().st_mtime_ns == before.stat().st_mtime_ns
    assert sorted(path.name for path in after.parent.iterdir()) == ["last.ckpt", "last.thresholds.json"]


@pytest.mark.parametrize("inside", ["model", "."])
def test_install_pretrained(
    model: Path, tmp_path: Path, inside: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(model, tmp_path / "run" / inside, dirs_exist_ok=True)
    target = tmp_path / "package/pretrained"
    monkeypatch.setattr(model_folder, "PRETRAINED", target)
    model_folder.main([str(tmp_path / "run")])
    assert sorted(path.name for path in target.iterdir()) == FILES
    size = (model / "model.safetensors").stat().st_size / 1e6
    assert f"pretrained model: {target} (model.safetensors {size:.2f} MB" in capsys.readouterr().out
    found, expected = deocc.load(device="cpu"), deocc.load(model)
    assert (found.config, found.thresholds) == (expected.config, expected.thresholds)
    assert found.thresholds is not None


def test_install_pretrained_refuses(
    model: Path, untested_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_folder, "PRETRAINED", tmp_path / "out")
    with pytest.raises(ValueError, match="has no thresholds for any condition"):
        model_folder.main([str(untested_model)])
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors in .*deocc test --checkpoint"):
        model_folder.main([str(tmp_path)])
    monkeypatch.setattr(model_folder, "MOST_BYTES", 11_000_000)
    with pytest.raises(ValueError, match=r"has 11\.\d MB, at most 11 MB are allowed"):
        model_folder.main([str(model)])
    assert not (tmp_path / "out").exists()


def test_install_pretrained_reports_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deocc.inference.model_folder", str(tmp_path / "nowhere")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("deocc: no model.safetensors in ") and ended.stderr.count("\n") == 1


@pytest.mark.skipif(not (SHIPPED / "config.json").is_file(), reason="this checkout has no pretrained model")
def test_pretrained_model_is_complete() -> None:
    pipeline = deocc.load()
    assert sorted(path.name for path in SHIPPED.iterdir()) == FILES
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= model_folder.MOST_BYTES
    assert pipeline.thresholds is not None
    for row in pipeline.thresholds.thresholds.values():
        measured = {entry.target: entry.test for entry in row}
        for target in (1e-2, 1e-3):
            test = measured[target]
            assert test is not None
            assert test.interval is not None
            assert 0.5 * target <= test.false_accept_rate <= 2 * target
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    for part in ("It is for research.", "must not be used", "under CC0", "Labeled Faces in the Wild"):
        assert part in card
