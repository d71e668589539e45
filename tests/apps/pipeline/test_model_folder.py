"""What a test on a run's own data writes: the model folder with its card, and thresholds beside the checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import deocc
from deocc.data import LfwFaces, MaskedFaceDataModule
from deocc.evaluation.calibration import CONDITIONS, covered_share
from deocc.inference.export import embedded_faces
from deocc.inference.model_folder import licences, model_card, training_facts, write_model
from deocc.modules import DistillationModule
from deocc.networks import create_embedder
from tests.apps.export.conftest import REAL_STUDENT, make_pipeline


def plain_thresholds(run: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / "checkpoints" / "last.thresholds.json").read_text())["thresholds"]
    return found


def test_the_folder_holds_three_files_and_no_teacher(tested: Path) -> None:
    assert sorted(path.name for path in (tested / "model").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    names = {name.split(".")[0] for name in load_file(tested / "model" / "model.safetensors")}
    assert names == {"student", "deoccluder", "center"}


def test_weights_are_stored_in_half_and_loaded_in_single_precision(tested: Path) -> None:
    stored = load_file(tested / "model" / "model.safetensors")
    halves = {name for name, value in stored.items() if value.dtype == torch.float16}
    assert (
        halves == {name for name, value in stored.items() if value.ndim > 1} and stored["center"].dtype == torch.float32
    )
    assert sum(stored[name].numel() for name in halves) > 0.98 * sum(value.numel() for value in stored.values())
    network = deocc.load(tested / "model").network
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32}
    assert all(torch.equal(value, stored[name].float()) for name, value in network.state_dict().items())


def test_a_weight_beyond_half_precision_keeps_its_own(tested: Path, tmp_path: Path) -> None:
    pipeline = deocc.load(tested / "checkpoints" / "last.ckpt")
    name, weight = next((name, value) for name, value in pipeline.network.state_dict().items() if value.ndim > 1)
    weight[0, -1] = 70_000.25
    write_model(tmp_path, pipeline.config, pipeline.network, "")
    assert load_file(tmp_path / "model.safetensors")[name].dtype == torch.float32
    assert torch.equal(deocc.load(tmp_path).network.state_dict()[name], weight)


def test_half_precision_of_the_weights_hardly_moves_embeddings(tmp_path: Path) -> None:
    """The default student with dlib's own weights, on real faces."""
    pipeline = make_pipeline(REAL_STUDENT, 24, 112)
    pipeline.network.student.embedder.load_state_dict(create_embedder("dlib_resnet").state_dict())
    faces = embedded_faces(pipeline, "val", 3)
    pipeline.network.center.copy_(pipeline.network.student(faces.face, faces.face, faces.face[:, :1]).mean(0))
    size = write_model(tmp_path, pipeline.config, pipeline.network, "")
    before, after = (
        each.embed_faces(torch.cat([faces.face, faces.masked_face])) for each in (pipeline, deocc.load(tmp_path))
    )
    assert float((before * after).sum(1).min()) > 0.9999
    assert float((before @ before.T - after @ after.T).abs().max()) < 3e-3
    assert size < 16_000_000


def test_the_configuration_says_what_the_networks_take_and_where_they_come_from(tested: Path) -> None:
    config, results = (json.loads((tested / name).read_text()) for name in ("model/config.json", "results.json"))
    assert config["format_version"] == 1 and config["teacher"] == config["student"]["name"] == "dlib_resnet"
    assert (
        config["face"]["size"] == 64 and config["face"]["color_order"] == "RGB" and len(config["face"]["template"]) == 5
    )
    assert config["thresholds"] == plain_thresholds(tested)
    assert results["thresholds"] == plain_thresholds(tested)
    for name in ("training_data_hash", "data_hash", "manifest_hash", "credit"):
        assert config["training"][name] == results[name] is not None
    assert "CC0" in config["licences"]["teacher"] and "AT&T" in config["licences"]["data"]


def test_the_card_has_the_hubs_header_the_figures_and_the_duties(tested: Path) -> None:
    card = (tested / "model" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "deocc" and header["license"] == "other"
    results = json.loads((tested / "results.json").read_text())
    assert f"| {100 * results['rows']['student_predicted_mask']['eer']:.2f} |" in card
    for heading in (
        "Use",
        "Data",
        "Figures",
        "Thresholds",
        "Intended use",
        "Limits",
        "Responsible use",
        "Licences and credits",
    ):
        assert f"\n## {heading}\n" in card
    assert "It is for research." in card and "must not be used" in card
    assert card.count("FAR % (95 %)") == 2
    assert "deocc.load(" in card and "AT&T Laboratories Cambridge" in card and "CC0" in card and "masked-masked" in card


def test_the_thresholds_are_those_of_the_validation_people_by_predicted_masks(tested: Path) -> None:
    module = DistillationModule.load_from_checkpoint(tested / "checkpoints" / "last.ckpt", map_location="cpu").eval()
    data = MaskedFaceDataModule(size=64, eval_batch_size=8, kinds=("surgical", "sunglasses"))
    seen = {name: _embedded(module, data, number) for number, name in enumerate(("clean", "masked"))}
    thresholds = plain_thresholds(tested)
    for condition, row in zip(CONDITIONS, map(thresholds["thresholds"].get, CONDITIONS), strict=True):  # type: ignore[attr-defined]
        first, second = (seen[name] for name in condition.split("-"))
        similarity = first["embedding"] @ second["embedding"].T
        other = first["identity"][:, None] != second["identity"][None]
        same = ~other & (first["index"][:, None] != second["index"][None])
        assert row
        for entry in row:
            # A similarity on the limit may fall on either side by rounding: it moves the share by a pair.
            near = 2.1 / other.sum()
            assert np.mean(similarity[other] >= entry["same"]) == pytest.approx(
                entry["validation"]["false_accept_rate"], abs=near
            )
            assert np.mean(similarity[same] < entry["same"]) == pytest.approx(
                entry["validation"]["false_reject_rate"], abs=2.1 / same.sum()
            )
            assert (
                entry["validation"]["people"] == 4
                and entry["validation"]["false_accept_rate"] <= entry["target"] + 1e-12
            )
            assert entry["test"]["people"] > 1
            for rates in (entry["validation"], entry["test"]):
                assert rates["interval"][0] <= rates["false_accept_rate"] <= rates["interval"][1]
    limit, errors = thresholds["masked"]["limit"], thresholds["masked"]  # type: ignore[index]
    assert np.mean(seen["clean"]["covered"] >= limit) == pytest.approx(errors["clean_called_masked"])
    assert np.mean(seen["masked"]["covered"] < limit) == pytest.approx(errors["masked_called_clean"])
    assert thresholds["data_hash"] == data.face_set.fingerprint("val")


def _embedded(module: DistillationModule, data: MaskedFaceDataModule, loader: int) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    rows = []
    for batch in data.val_dataloader()[loader]:
        masked = data.on_after_batch_transfer(batch, loader)  # type: ignore[arg-type]
        with torch.no_grad():
            predicted = module.predict_step(masked, 0)
        covered = covered_share(predicted["mask"])
        rows.append((predicted["embedding"], masked["identity"], masked["index"], covered))
    return {
        name: torch.cat(column).numpy()
        for name, column in zip(("embedding", "identity", "index", "covered"), zip(*rows, strict=True), strict=True)
    }


def test_a_test_leaves_the_checkpoint_as_it_is(tested: Path, stage2: Path) -> None:
    files = [run / "checkpoints" / "last.ckpt" for run in (tested, stage2)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].stat().st_mtime_ns == files[1].stat().st_mtime_ns
    assert sorted(path.name for path in files[0].parent.iterdir()) == ["last.ckpt", "last.thresholds.json"]


def test_the_report_shows_the_thresholds(tested: Path) -> None:
    report = (tested / "report.html").read_text()
    assert "test FAR % (95 %)" in report and "all pairs of test people" in report


def test_the_card_of_a_model_of_lfw_states_photographs_terms_and_limits(tested: Path) -> None:
    results = {**json.loads((tested / "results.json").read_text()), "data": "LfwFaces", "credit": LfwFaces.credit}
    pipeline = deocc.load(tested)
    config = {**pipeline.config, "training": training_facts(results), "licences": licences("dlib_resnet", "LfwFaces")}
    card = model_card(config, results, pipeline.thresholds)
    for part in (
        "Labeled Faces in the Wild",
        "photographs of people in the news, a public research set",
        "under CC0",
        "far more men than",
    ):
        assert part in card
