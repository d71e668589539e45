"""Add model and runtime to the page that compares two faces in a browser: `python -m bench.browser_page`.

The page is `docs/pages/browser/`, and the result, by default `build/site/browser/`, runs on any static web server. The
files are kept in `build/browser/` until the pretrained model changes; delete that folder after a change of the export.
`--measure` times the page in a headless Chromium.
"""

import argparse
import base64
import hashlib
import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor, nn

import deocc
from bench import chromium
from deocc.data import OrlFaces
from deocc.detection.mtcnn import SIDES, WEIGHTS_FILE, apply_network, read_weights
from deocc.files import checksum, write_file
from deocc.inference.export import export
from deocc.inference.export_formats import METADATA, OPSET
from deocc.inference.model_folder import PRETRAINED

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs/pages/browser"
KEPT: Final = ROOT / "build/browser"
SITE: Final = ROOT / "build/site/browser"
RUNTIME: Final = "onnxruntime-web@1.30.0"
RUNTIME_FILES: Final = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
_RUNTIME_SHA512: Final = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
_DETECTOR_KEY: Final = "detector_sha256"  # in model.json: of the detector's weights
_LICENCE: Final = WEIGHTS_FILE.with_name("mtcnn_licence.txt")
_NPM_SECONDS: Final = 300
PATIENCE: Final = 300.0
"""Seconds to wait for a page on a busy machine."""


class LeftOutError(RuntimeError):
    """The page cannot be completed here."""


def build(folder: Path) -> None:
    """Write the page with everything that it loads.

    Raises:
        LeftOutError: npm, its registry or onnx is not available.
        ValueError: the package of onnxruntime-web is not the known one.
    """
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise LeftOutError(f'{" and ".join(missing)} not installed: pip install "deocc[onnx]"')
    if not all((KEPT / name).is_file() for name in RUNTIME_FILES):
        _fetch_runtime()
    if not _is_current():
        _export()
    folder.mkdir(parents=True, exist_ok=True)
    for file in (*PAGE.iterdir(), *KEPT.iterdir(), _LICENCE):
        shutil.copy(file, folder)


def _fetch_runtime() -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise LeftOutError("npm is not installed")
    with tempfile.TemporaryDirectory() as folder:
        argv = [npm, "pack", RUNTIME, "--pack-destination", folder, "--fetch-retries=0"]
        try:
            subprocess.run(argv, cwd=folder, check=True, capture_output=True, timeout=_NPM_SECONDS)
        except (OSError, subprocess.SubprocessError):
            raise LeftOutError(f"npm cannot fetch {RUNTIME}") from None
        (archive,) = Path(folder).glob("*.tgz")
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != _RUNTIME_SHA512:
            raise ValueError(f"npm's {RUNTIME} has the SHA-512 {found}, expected {_RUNTIME_SHA512}")
        KEPT.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as members:
            for name in RUNTIME_FILES:
                member = members.extractfile(f"package/dist/{name}")
                if member is None:
                    raise ValueError(f"npm's {RUNTIME} has no file {name}")
                write_file(KEPT / name, member.read())


def _is_current() -> bool:
    """Return whether the kept export is of the pretrained model and the packaged detector."""
    try:
        kept = json.loads((KEPT / "model.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    current = json.loads((PRETRAINED / "config.json").read_text(encoding="utf-8"))
    names = ("weights_sha256", "thresholds", "face")
    same_model = all(kept[name] == current[name] for name in names) and kept["deocc_version"] == deocc.__version__
    return same_model and kept.get(_DETECTOR_KEY) == checksum(WEIGHTS_FILE)


def _export() -> None:
    """Export model and face detector; `model.json` is written last."""
    import onnx

    KEPT.mkdir(parents=True, exist_ok=True)
    weights = read_weights(WEIGHTS_FILE)
    for name, side in SIDES.items():
        axes = {0: "batch"} if name != "proposal" else {2: "height", 3: "width"}
        network, images = _DetectorNetwork(weights, name), torch.zeros(1, 3, side, side)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                (images,),
                KEPT / f"{name}.onnx",
                dynamo=False,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["faces"],
                dynamic_axes={"images": axes, "faces": axes},
            )
    content = export(deocc.load().to("cpu"), "onnx", "fp16").content
    write_file(KEPT / "model.onnx", content)
    metadata = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
    model = {**json.loads(metadata[METADATA]), _DETECTOR_KEY: checksum(WEIGHTS_FILE)}
    write_file(KEPT / "model.json", json.dumps(model))


class _DetectorNetwork(nn.Module):
    def __init__(self, weights: dict[str, Tensor], name: str) -> None:
        super().__init__()
        self._weights, self._name = weights, name

    def forward(self, images: Tensor) -> Tensor:
        return apply_network(self._weights, self._name, images)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder on a free local port; yields the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_SilentHandler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


class _SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def measure(folder: Path, repetitions: int = 5) -> None:
    """Print the page's seconds for a face in a photo, by one WASM thread of a headless Chromium."""
    with tempfile.TemporaryDirectory() as temporary, serving(folder) as address:
        photo, picture = Path(temporary, "photo.png"), Image.fromarray(OrlFaces().image(0))
        picture = picture.resize((8 * picture.width, 8 * picture.height))
        picture.save(photo)
        with chromium.browsing(Path(temporary, "profile")) as browser:
            browser.open(address, 1280)
            browser.wait("document.querySelector('#loading')?.innerText.includes('is loaded')", PATIENCE)
            browser.ask("Performance.enable", timeDomain="threadTicks")
            rows = []
            for _ in range(repetitions + 1):
                browser.run("document.querySelector('.time').innerText = ''")
                before = _thread_seconds(browser)
                browser.upload(".card input", photo)
                browser.wait("document.querySelector('.time').innerText", PATIENCE)
                words = browser.run("document.querySelector('.time').innerText").split()
                rows.append((float(words[0]), float(words[6]), _thread_seconds(browser) - before))
    print(f"photo of {picture.width} x {picture.height} pixels; seconds to find the face, to complete it, and of CPU")
    for name, row in (("first", rows[0]), ("median", tuple(map(statistics.median, zip(*rows[1:], strict=True))))):
        print(f"  {name:6}  {row[0]:.2f} + {row[1]:.2f}  CPU {row[2]:.2f}")


def _thread_seconds(browser: chromium.Browser) -> float:
    """Return the CPU seconds of the page's thread."""
    metrics = browser.ask("Performance.getMetrics")["metrics"]
    return next(float(entry["value"]) for entry in metrics if entry["name"] == "ThreadTime")


def main() -> int:
    """Build the page, and measure it with --measure."""
    parser = argparse.ArgumentParser(prog="python -m bench.browser_page", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=SITE, help="folder of the page (default: build/site/browser)")
    parser.add_argument("--measure", action="store_true", help="time the page in a headless Chromium")
    chosen = parser.parse_args()
    try:
        build(chosen.out)
    except LeftOutError as error:
        print(f"the browser page is left out, it lacks model and runtime: {error}")
        return 0
    size = sum(file.stat().st_size for file in chosen.out.iterdir()) / 2**20
    print(f"browser page: {chosen.out} ({size:.0f} MB); serve it with python -m http.server")
    if chosen.measure:
        measure(chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
