"""The cost of a test is measured on a real one."""

from typing import Any

import pytest
import torch

from bench import testing
from bench.testing import seconds_of_test, timed


def test_forward_is_timed() -> None:
    network: Any = torch.nn.Linear(4, 4)
    face, spent = torch.ones(2, 4), list[float]()
    expected = network(face)
    network.forward = timed(network, spent)
    assert torch.equal(network(face), expected) and len(spent) == 1 and spent[0] >= 0


@pytest.mark.slow
def test_networks_are_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing, "PEOPLE", 2)
    total, networks = seconds_of_test()
    assert 0 < networks < total
