"""Every checkpoint has a fingerprint; a loaded one that does not fit is refused or told of, and one that fits passes in silence."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from deocc import runs
from deocc.callbacks.provenance import FINGERPRINT, Difference, Fingerprint, FingerprintCallback
from tests.callbacks.test_mismatch import fingerprint
from tests.conftest import SMALL, run_deocc

FEW = ["--data.kinds", "[surgical]", "--data.test_seeds", "[1]", "--trainer.limit_test_batches", "4"]


def trainer(action: str, **changes: Any) -> Any:
    """As the callback sees it in the first process."""
    strategy = SimpleNamespace(broadcast=lambda found: found)
    state = SimpleNamespace(fn=SimpleNamespace(value=action))
    return SimpleNamespace(
        **{"strategy": strategy, "state": state, "is_global_zero": True, "ckpt_path": "last.ckpt", **changes}
    )


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch) -> Fingerprint:
    """The present state, which the test may change."""
    state = fingerprint()
    monkeypatch.setattr("deocc.callbacks.fingerprint.build", lambda *_: state)
    return state


def load(callback: FingerprintCallback, action: str, saved: Any, present: Fingerprint) -> None:
    given = trainer(action, datamodule=None)
    callback.setup(given, SimpleNamespace(), action)  # type: ignore[arg-type]
    callback.on_load_checkpoint(given, SimpleNamespace(), {FINGERPRINT: saved})  # type: ignore[arg-type]


def test_a_mismatch_is_said_and_refused_or_only_said(present: Fingerprint, capsys: pytest.CaptureFixture[str]) -> None:
    present["size"], present["code"] = 64, {"version": "1.0", "hash": "c9"}
    with pytest.raises(
        ValueError, match=r"^last\.ckpt does not fit: crop size 112 -> 64 .*--fingerprint\.mismatch warn"
    ):
        load(FingerprintCallback(), "test", fingerprint(), present)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("deocc: warning: last.ckpt: code hash c0 -> c9 ")
    load(FingerprintCallback("warn"), "test", fingerprint(), present)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "crop size 112 -> 64 (saved -> present): embeddings mean something else" in said[1]


def test_nothing_is_said_where_all_fits_or_by_another_process(
    present: Fingerprint, capsys: pytest.CaptureFixture[str]
) -> None:
    load(FingerprintCallback(), "test", fingerprint(), present)
    told = [Difference("size", 112, 64, "refuse")]
    other = trainer("test", is_global_zero=False, strategy=SimpleNamespace(broadcast=lambda _: told))
    with pytest.raises(ValueError, match="crop size"):
        FingerprintCallback().on_load_checkpoint(other, SimpleNamespace(), {})  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""


def test_what_a_resumed_training_passed_over_stays_in_its_checkpoints(present: Fingerprint) -> None:
    earlier = asdict(Difference("code.hash", "b", "c0", "warn"))
    present["seeds"] = {"seed_everything": 0, "data": 1}
    callback, checkpoint = FingerprintCallback("warn"), dict[str, Any]()
    load(callback, "fit", fingerprint(resumed=[earlier]), present)
    callback.on_save_checkpoint(trainer("fit"), SimpleNamespace(), checkpoint)  # type: ignore[arg-type]
    assert checkpoint[FINGERPRINT]["resumed"] == [earlier, asdict(Difference("seeds.data", 0, 1, "refuse"))]


def last(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


def keep_code(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever edits the package while its tests run shall not fail them."""
    known = content[FINGERPRINT]["code"]["hash"]
    monkeypatch.setattr("deocc.callbacks.provenance.source_hash", lambda: known)


@pytest.fixture
def tampered(
    stage2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """Makes a copy of the stage-2 run whose checkpoint was changed."""

    def make(change: Callable[[dict[str, Any]], object]) -> Path:
        run = tmp_path / "run"
        shutil.copytree(stage2, run)
        content = torch.load(last(run), weights_only=True)
        keep_code(content, monkeypatch)
        change(content)
        torch.save(content, last(run))
        return run

    return make


def test_a_checkpoint_carries_every_field_as_plain_values(stage1: Path, stage2: Path) -> None:
    for run in (stage1, stage2):
        found = torch.load(last(run), weights_only=True)[FINGERPRINT]
        assert set(found) == Fingerprint.__required_keys__ and json.loads(json.dumps(found)) == found
        assert not [field for field, value in found.items() if value is None] and found["resumed"] == []
        assert yaml.safe_load(found["config"]) == yaml.safe_load((run / runs.CONFIG).read_text())
        assert found["size"] == 64 and found["seeds"] == {"seed_everything": 0, "data": 0}


@pytest.mark.slow
def test_a_test_that_fits_says_nothing_and_reports_the_fingerprint(
    stage1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(last(stage1), weights_only=True)
    keep_code(content, monkeypatch)
    run_deocc("test", "--checkpoint", str(stage1), "--run", str(tmp_path), *SMALL, "--trainer.limit_test_batches", "1")
    assert "warning: " not in capsys.readouterr().err
    results = json.loads((tmp_path / runs.RESULTS).read_text())
    reported, saved = results[FINGERPRINT], content[FINGERPRINT]
    assert reported == {
        "checkpoint": {key: value for key, value in saved.items() if key != "config"},
        "differences": [],
    }
    assert results["manifest_hash"] == saved["masks"]


@pytest.mark.slow
def test_a_test_under_other_masks_and_packages_warns_and_goes_on(
    tampered: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tampered(lambda content: content[FINGERPRINT]["packages"].update(torch="0.1"))
    run_deocc("test", "--checkpoint", str(run), "--run", str(tmp_path / "out"), *SMALL, *FEW)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("deocc: warning: ")]
    assert len(said) == 2 and f"packages torch 0.1 -> {torch.__version__} " in said[0] and "evaluation masks" in said[1]
    differences = json.loads((tmp_path / "out" / runs.RESULTS).read_text())[FINGERPRINT]["differences"]
    assert [(each["field"], each["severity"]) for each in differences] == [
        ("packages.torch", "warn"),
        ("masks", "warn"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "change", "said"),
    [
        (["test"], {"teacher": "0" * 16}, "teacher 0000000000000000 -> "),
        (["fit"], {"training_data": "0" * 16}, "training data 0000000000000000 -> "),
    ],
    ids=["test", "resume"],
)
def test_what_must_not_differ_ends_the_command_in_a_line(
    words: list[str],
    change: dict[str, Any],
    said: str,
    tampered: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tampered(lambda content: content[FINGERPRINT].update(change))
    resumed = [
        "--config",
        str(run / runs.CONFIG),
        "--ckpt_path",
        str(last(run)),
        "--run",
        str(run),
        "--trainer.max_epochs",
        "2",
    ]
    with pytest.raises(SystemExit) as stopped:
        run_deocc(*words, *(["--checkpoint", str(run)] if words == ["test"] else resumed))
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2 and error.startswith(f"deocc: {last(run)} does not fit: {said}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words", "said"),
    [
        (lambda content: content.pop(FINGERPRINT), [], "fingerprint none -> 1 "),
        (
            lambda content: content[FINGERPRINT].update(teacher="t0"),
            ["--fingerprint.mismatch", "warn"],
            "teacher t0 -> ",
        ),
    ],
    ids=["older checkpoint", "asked to go on"],
)
def test_what_is_not_refused_is_one_warning(
    change: Callable[[dict[str, Any]], object],
    words: list[str],
    said: str,
    tampered: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tampered(change)
    run_deocc("validate", "--checkpoint", str(run), "--trainer.limit_val_batches", "2", *words)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("deocc: warning: ")]
    assert line.startswith(f"deocc: warning: {last(run)}: {said}")
