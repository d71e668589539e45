"""Pair scores and perceptual distances equal those computed directly, whatever the order of the callbacks."""

import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deocc.callbacks import FingerprintCallback, PanelCallback, ResultsCallback
from deocc.callbacks.calibration import CalibrationCallback
from deocc.evaluation.embeddings import EmbeddingSet
from deocc.evaluation.results import CLEAN_ROWS, ROWS, Results, build_results
from deocc.evaluation.thresholds import THRESHOLDS
from deocc.evaluation.verification import CLEAN_SCORES, SCORES, read_scores
from tests.callbacks.test_calibration import small_calibration
from tests.callbacks.test_dashboards import trainer_with


def noisy_embeddings(seed: int, kind: int) -> EmbeddingSet:
    """Embeddings of six identities with three images each."""
    index, generator = torch.arange(18), torch.Generator().manual_seed(seed)
    noisy = torch.eye(6)[index % 6] + 0.5 * torch.randn(18, 6, generator=generator)
    unit = torch.nn.functional.normalize(noisy, dim=1)
    return EmbeddingSet(unit, index % 6, index, torch.full_like(index, kind), index * 0)


@pytest.fixture
def tested() -> Results:
    rows = {name: noisy_embeddings(seed, -1 if name in CLEAN_ROWS else 0) for seed, name in enumerate(ROWS)}
    return build_results(rows, {}, ["box"], {"kinds": ["box"], "training_kinds": ["box"]}, replicates=1)


def test_order_of_callbacks_does_not_matter(tested: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CalibrationCallback, "_calibrate", lambda *_: small_calibration())
    monkeypatch.setattr(
        "deocc.callbacks.calibration._embed", lambda module, data, loader: noisy_embeddings(0, len(loader.dataset))
    )
    monkeypatch.setattr(
        "deocc.callbacks.calibration.checkpoint_of_own_test", lambda trainer: tmp_path / "run" / "last.ckpt"
    )
    monkeypatch.setattr("deocc.evaluation.thresholds.write_thresholds", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["/bin/deocc", "test", "--run", "my runs/a"])
    loaders = [SimpleNamespace(dataset=range(2))] * 2
    data = SimpleNamespace(
        write_manifest=lambda path: path.write_text("image,kind,seed"),
        val_dataloader=lambda: loaders,
    )
    module: Any = SimpleNamespace(results=tested, hparams={})
    written = []
    callbacks = [ResultsCallback, CalibrationCallback, PanelCallback, FingerprintCallback]
    for number, order in enumerate(itertools.permutations(callbacks)):
        folder = tmp_path / str(number)
        folder.mkdir()
        trainer = trainer_with(folder=folder)
        trainer.callbacks, trainer.datamodule, trainer.ckpt_path = [kind() for kind in order], data, None
        for hook in ("on_test_epoch_end", "on_test_end"):
            for callback in trainer.callbacks:
                getattr(callback, hook)(trainer, module)
        written.append((folder / "results.json").read_text())
        if number == 0:
            assert sorted(path.name for path in folder.iterdir()) == sorted(
                ["clean_scores.npz", "masks.csv", "report.html", "results.json", "scores.npz"]
            )
            for file, clean in ((SCORES, False), (CLEAN_SCORES, True)):
                expected = {row: pairs for row, pairs in tested.pairs.items() if (row in CLEAN_ROWS) == clean}
                found = read_scores(folder / file)
                assert found.keys() == expected.keys()
                assert all(torch.equal(pairs[0], expected[row][0]) for row, pairs in found.items())
            monkeypatch.setattr("deocc.evaluation.report.write_report", lambda *_: None)
            monkeypatch.setattr("deocc.callbacks.results._draw_figures", lambda *_: {})
    assert len(set(written)) == 1 and json.loads(written[0])[THRESHOLDS]
    assert json.loads(written[0])["command"] == "deocc test --run 'my runs/a'"
