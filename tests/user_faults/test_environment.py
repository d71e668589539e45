"""Encodings, proxies, launchers and working folders of other people's machines."""

import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deocc import cli
from deocc.commands.demo import forget_proxies, make_app, private_folder
from tests.conftest import ONE_STEP, SMALL, TINY_STAGE1, run_deocc

INPAINT = ["fit", "--config", "inpaint", *SMALL, *TINY_STAGE1]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1"])
def test_name_outside_of_the_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is printed with escapes, and is not lost."""
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(cli, "_run", lambda argv: print(f"same person: {argv[1]} \udce9") or 0)
    cli.main(["verify", "小红.png"])
    output.flush()
    assert output.buffer.getvalue() == rb"same person: \u5c0f\u7ea2.png \udce9" + b"\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "HTTPS_PROXY"])
def test_demo_without_proxies(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio")
    monkeypatch.setenv(name, "socks5://127.0.0.1:9")
    with private_folder():
        forget_proxies()
        import httpx

        assert name not in os.environ
        httpx.Client().close()  # as Gradio does on import
    assert os.environ[name] == "socks5://127.0.0.1:9"


def test_demo_behind_a_reverse_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only named hosts are accepted; nothing is mounted here, so that they answer "not found"."""
    pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    page, themes = SimpleNamespace(), SimpleNamespace(Default=lambda **_: None)
    gradio = SimpleNamespace(themes=themes, mount_gradio_app=lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "gradio", gradio)  # type: ignore[arg-type]
    client = TestClient(make_app(page, hosts=["demo.example.org"]))  # type: ignore[arg-type]
    for host, status in {"demo.example.org": 404, "localhost": 404, "evil.example": 400}.items():
        assert client.get("/", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--trainer.strategy", "ddp_spawn"], ["ddp_spawn", "choose ddp"]),
        (["--trainer.strategy", "ddp_notebook_find_unused_parameters_true"], ["ddp_notebook", "choose ddp"]),
        (["--trainer.strategy", "ddp_fork"], ["ddp_fork", "choose ddp"]),
        (
            [
                "--trainer.strategy",
                "pytorch_lightning.strategies.DDPStrategy",
                "--trainer.strategy.start_method",
                "spawn",
            ],
            ["spawn", "choose ddp"],
        ),
        (["--trainer.overfit_batches", "2"], ["trainer.overfit_batches", "trainer.limit_train_batches"]),
        (["--trainer.overfit_batches", "0.1"], ["trainer.overfit_batches", "trainer.limit_train_batches"]),
        (["--trainer.accumulate_grad_batches", "2"], ["model.init_args.accumulate", "not trainer.accumulate"]),
        (["--trainer.gradient_clip_val", "1"], ["model.init_args.gradient_clip", "not trainer.gradient_clip_val"]),
    ],
    ids=lambda value: " ".join(value) if str(value[0]).startswith("--") else "",
)
def test_refused_before_the_training(
    argv: list[str], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*INPAINT, *argv, "--run", str(tmp_path / "x")])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("deocc: ")]
    assert ended.value.code == 2 and all(part in line for part in parts), line
    assert not (tmp_path / "x").exists()


def test_own_class_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_faces_of_test.py").write_text(
        "from deocc.data import OrlFaces\n\n\nclass OwnFaces(OrlFaces):\n    'Own faces.'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    run_deocc(*INPAINT, *ONE_STEP, "--data.face_set", "own_faces_of_test.OwnFaces", "--trainer.fast_dev_run=1")
    settings: Any = sys.modules["own_faces_of_test"]
    assert settings.OwnFaces.__name__ == "OwnFaces"
