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


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("0", "0")])
def test_albumentations_asks_no_server(given: str | None, expected: str) -> None:
    """Unless the user wants it to."""
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    environment |= {} if given is None else {"NO_ALBUMENTATIONS_UPDATE": given}
    program = "import deocc, os; print(os.environ['NO_ALBUMENTATIONS_UPDATE'])"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{expected}\n"


@pytest.mark.parametrize(("given", "expected"), [(None, "passive"), ("active", "active")])
def test_openmp_waits_passively(given: str | None, expected: str) -> None:
    """Unless the user wants another policy."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    program = "import deocc, os, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{expected} False\n"
