"""torchvision and what imports it can be imported beside a CPU-only torch."""

import os
import subprocess
import sys

import pytest

_PROGRAMS = {
    "alone": "import deocc._torchvision, torchvision; torchvision.transforms.Resize(8)",
    "networks": "import deocc.networks, timm",
    "evaluation": "import deocc.evaluation, torchmetrics",
    "data": "import deocc.data, pytorch_lightning",
    "training": "import deocc.training",
}


_FORKED = """
import os, sys, torch  # torch itself takes longest and is shared
for name, program in {programs!r}.items():
    child = os.fork()
    if child == 0:
        exec(program)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(name)
"""


def test_each_room_imports_first() -> None:
    """Each in a new process, in which no other room has declared torchvision's operators."""
    program = _FORKED.format(programs=_PROGRAMS)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_import_installs_no_import_hook() -> None:
    program = "import sys; before = list(sys.meta_path); import deocc._torchvision; assert sys.meta_path == before"
    subprocess.run([sys.executable, "-c", program], check=True)


NAMES = ("NO_ALBUMENTATIONS_UPDATE", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "1 passive 1000"),
        ({"NO_ALBUMENTATIONS_UPDATE": "0"}, "0 passive 1000"),
        ({"OMP_WAIT_POLICY": "active"}, "1 active None"),
        ({"OMP_WAIT_POLICY": "passive"}, "1 passive None"),
        ({"GOMP_SPINCOUNT": "7"}, "1 passive 7"),
    ],
)
def test_import_sets_environment(given: dict[str, str], expected: str) -> None:
    """Before torch is loaded, and unless the user has set another value."""
    program = f"import deocc, os, sys; print(*map(os.environ.get, {NAMES}), 'torch' in sys.modules)"
    unset = {key: value for key, value in os.environ.items() if key not in NAMES}
    shown = subprocess.check_output([sys.executable, "-c", program], env={**unset, **given}, text=True)
    assert shown == f"{expected} False\n"
