"""torchvision and what imports it can be imported beside a torch whose compiled operators do not match."""

import importlib.util
import os
import subprocess
import sys
from importlib.machinery import PathFinder

import pytest

from deocc import _environment


def _guards() -> list[object]:
    return [finder for finder in sys.meta_path if isinstance(finder, _environment._TorchvisionGuard)]


@pytest.fixture
def before_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if neither the guard had been installed nor torchvision been imported."""
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if finder not in _guards()])
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)


def test_torchvision_timm_and_lightning_import_after_deocc() -> None:
    code = "import deocc, torchvision, timm, pytorch_lightning; torchvision.transforms.Resize(8)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.usefixtures("before_torchvision")
def test_preparing_twice_adds_one_finder() -> None:
    _environment.prepare()
    _environment.prepare()
    assert len(_guards()) == 1


@pytest.mark.usefixtures("before_torchvision")
def test_the_guard_declares_the_operators_once_and_hides_no_other_finder(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(_environment, "_declare_torchvision_operators", lambda: calls.append(1))
    _environment.prepare()
    monkeypatch.setattr(sys, "meta_path", [_guards()[0], PathFinder])  # the path finder comes directly after the guard
    assert importlib.util.find_spec("torchvision") is not None
    assert importlib.util.find_spec("torchvision") is not None
    assert len(calls) == 1


def test_albumentations_is_told_not_to_ask_for_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_ALBUMENTATIONS_UPDATE", raising=False)
    _environment.prepare()
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"


def test_the_users_own_choice_about_updates_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "0")
    _environment.prepare()
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "0"
