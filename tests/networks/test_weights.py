"""Weights files: what loads, and the messages for what does not."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from deocc.networks.weights import load_weights, read_state_dict


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


@pytest.mark.parametrize(
    "prefix", ["", "module.", "backbone.", "model.", "module.backbone.", "network.", "model.module."]
)
@pytest.mark.parametrize("container", [None, "state_dict", "model", "safetensors"])
def test_wrapped_weights_load(tmp_path: Path, prefix: str, container: str | None) -> None:
    source, target, path = small(), small(), tmp_path / "weights.pt"
    state = {f"{prefix}{key}": value for key, value in source.state_dict().items()}
    if container == "safetensors":
        path = tmp_path / "weights.safetensors"
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state if container is None else {container: state, "epoch": 3}, path)
    load_weights(target, read_state_dict(path), path)
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value)


def test_mismatch_names_first_three_keys(tmp_path: Path) -> None:
    state = small().state_dict() | {f"surplus{i}": torch.zeros(1) for i in range(5)}
    state["0.weight"] = torch.zeros(4, 2)
    del state["1.bias"]
    with pytest.raises(ValueError) as caught:
        load_weights(small(), state, tmp_path / "wrong.pt")
    message = str(caught.value)
    assert "1 missing: 1.bias" in message
    assert "5 unexpected: surplus0, surplus1, surplus2" in message and "surplus3" not in message
    assert "0.weight (4, 2) instead of (2, 2)" in message
    assert "\n" not in message


def test_mismatch_changes_nothing(tmp_path: Path) -> None:
    network = small()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = {key: value + 1 for key, value in before.items() if key != "0.bias"}
    with pytest.raises(ValueError, match=r"1 missing: 0\.bias"):
        load_weights(network, state, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class Opaque:
    """Object that is not a plain tensor."""


@pytest.mark.parametrize("name", ["garbage.pt", "cut.pt", "objects.pt", "garbage.safetensors", "number.pt", "empty.pt"])
def test_file_without_plain_tensors(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    torch.save({"objects": {"opaque": Opaque()}, "number": 3, "empty": {}}.get(path.stem, small().state_dict()), path)
    if path.stem == "garbage":
        path.write_bytes(b"not a weights file")
    if path.stem == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=path.name) as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)
