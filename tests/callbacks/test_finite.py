"""A step whose loss or gradient is not finite is told, and ends the training or moves nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deocc.callbacks import FiniteCallback
from deocc.callbacks.faults import FOLDER
from tests.callbacks.small_training import Small, fit

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
QUIET: dict[str, Any] = {"enable_checkpointing": False}


def infinite(loss: Tensor, step: int) -> Tensor:
    return loss * torch.inf if step == 1 else loss


def steep(loss: Tensor, step: int) -> Tensor:
    """A finite loss whose gradient is none: the root's slope at 0."""
    return (0 * loss).sqrt() + 1 if step == 1 else loss


@pytest.mark.parametrize("spoil", [infinite, steep])
def test_the_training_stops_and_tells_of_the_batch(spoil: Any, tmp_path: Path) -> None:
    module = Small(spoil)
    with pytest.raises(ValueError, match=r"not finite at step 1 \(square .*\).*--non_finite.action skip"):
        fit(module, tmp_path, FiniteCallback(), **QUIET)
    (file,) = (tmp_path / FOLDER).iterdir()
    told = json.loads(file.read_text())
    assert told["index"] == told["seed"] == [4, 5, 6, 7] and told["step"] == 1 and "square" in told["terms"]
    assert all(value.isfinite().all() for value in module.state_dict().values())


@pytest.mark.parametrize("spoil", [infinite, steep])
def test_a_step_that_is_left_out_moves_neither_weights_nor_statistics(spoil: Any, tmp_path: Path) -> None:
    module, callback = Small(spoil), FiniteCallback("skip")
    fit(module, tmp_path, callback, **QUIET)
    assert callback.skipped == 1 and len(module.seen) == 4
    before, after, later = module.seen[1:4]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(after["layer.weight"], later["layer.weight"]) and not torch.equal(
        after["norm.running_mean"], later["norm.running_mean"]
    )


def test_twenty_steps_in_a_row_are_no_accident(tmp_path: Path) -> None:
    module = Small(lambda loss, step: loss * torch.nan if step != 3 else loss)
    with pytest.raises(ValueError, match="not finite at step 24"):
        fit(module, tmp_path, FiniteCallback("skip"), steps=30, **QUIET)


def test_gradients_that_overflow_under_a_scaler_are_its_own_affair(tmp_path: Path) -> None:
    from pytorch_lightning.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    fit(Small(), tmp_path, FiniteCallback(), plugins=[precision], **QUIET)
    assert scaler.get_scale() < 2.0**100 and not (tmp_path / FOLDER).exists()


def test_a_folder_that_cannot_be_written_to_hides_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / FOLDER).write_text("in the way")
    with pytest.raises(ValueError, match="not finite at step 1"):
        fit(Small(infinite), tmp_path, FiniteCallback(), **QUIET)
    assert f"cannot write to {tmp_path / FOLDER}" in capsys.readouterr().err


def test_unknown_actions_are_refused() -> None:
    with pytest.raises(ValueError, match="'ignore': choose stop or skip"):
        FiniteCallback("ignore")  # type: ignore[arg-type]
