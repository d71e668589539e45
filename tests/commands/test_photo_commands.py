"""The photo commands of the README run as written, on real faces and with a model that recognises them."""

import shlex
from pathlib import Path

import pytest

from tests.conftest import run_deocc
from tests.fake_sets.faces import save_face
from tests.test_readme import COMMANDS

_OUTPUTS = {
    "mask": "masked/masked_photos/0*.png",
    "predict": "predicted/contact_sheets/001.png",
    "export": "model.onnx",
}
_NAMES = {*_OUTPUTS, "verify", "identify"}


def save(path: str, person: int, image: int) -> None:
    save_face(Path(path), person, image, 240, 260)


@pytest.mark.usefixtures("shared_detector")
@pytest.mark.parametrize(
    "command", sorted(line for line in COMMANDS if line.split()[1] in _NAMES and line != "deocc predict")
)
def test_readme_command(
    command: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save("a.jpg", 0, 0)
    save("b.jpg", 0, 1)
    for person in range(3):
        save(f"gallery/person{person}/1.jpg", person, 2)
        save(f"photos/{person}.jpg", person, 3)
    name, *argv = shlex.split(command)[1:]
    run_deocc(name, *argv, *([] if name == "mask" else ["--checkpoint", str(model)]))
    if name == "verify":
        assert capsys.readouterr().out.startswith("same: ")
    elif name == "identify":
        rows = Path("identified.csv").read_text().splitlines()
        assert all(f"person{number}" in row for number, row in enumerate(rows[1:4]))
    else:
        assert [path.stat().st_size > 0 for path in Path().glob(_OUTPUTS[name])] == [True]
