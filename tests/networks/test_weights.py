"""Weight files: what loads, and what is refused in which words."""

import pytest
import safetensors.torch
import torch
from torch import nn

from deocc.networks import create_embedder
from deocc.networks.weights import load_weights, read_state_dict


def _small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


@pytest.mark.parametrize(
    "prefix", ["", "module.", "backbone.", "model.", "module.backbone.", "network.", "model.module."]
)
@pytest.mark.parametrize("container", [None, "state_dict", "model"])
def test_weights_load_whatever_wraps_them(tmp_path, prefix, container):
    source, target = _small(), _small()
    state = {f"{prefix}{key}": value for key, value in source.state_dict().items()}
    path = tmp_path / "weights.pt"
    torch.save(state if container is None else {container: state, "epoch": 3}, path)
    load_weights(target, read_state_dict(path), path)
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value)


def test_safetensors_load(tmp_path):
    source, target = _small(), _small()
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(source.state_dict(), path)
    load_weights(target, read_state_dict(path), path)
    assert torch.equal(target[0].weight, source[0].weight)


def test_wrong_weights_name_the_first_three_keys_of_each_problem(tmp_path):
    state = _small().state_dict() | {f"surplus{i}": torch.zeros(1) for i in range(5)}
    state["0.weight"] = torch.zeros(4, 2)
    del state["1.bias"]
    with pytest.raises(ValueError) as caught:
        load_weights(_small(), state, tmp_path / "wrong.pt")
    message = str(caught.value)
    assert "1 missing: 1.bias" in message
    assert "5 unexpected: surplus0, surplus1, surplus2" in message and "surplus3" not in message
    assert "0.weight (4, 2) instead of (2, 2)" in message
    assert "\n" not in message


def test_wrong_weights_change_nothing(tmp_path):
    network = _small()
    before = network[0].weight.clone()
    with pytest.raises(ValueError, match=r"1 missing: 0\.bias"):
        load_weights(
            network, {key: value + 1 for key, value in network.state_dict().items() if key != "0.bias"}, tmp_path
        )
    assert torch.equal(network[0].weight, before)


class _Opaque:
    """What a file of plain tensors must not hold."""


@pytest.mark.parametrize("name", ["garbage.pt", "cut.pt", "objects.pt", "garbage.safetensors", "number.pt", "empty.pt"])
def test_a_file_that_holds_no_plain_tensors_is_refused_in_one_line(tmp_path, name):
    path = tmp_path / name
    torch.save({"objects": {"opaque": _Opaque()}, "number": 3, "empty": {}}.get(path.stem, _small().state_dict()), path)
    if path.stem == "garbage":
        path.write_bytes(b"not a weight file, whatever its name says")
    if path.stem == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=path.name) as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["iresnet18", "inception_resnet_v1", "timm/resnet18", "onnx"])
def test_a_missing_weights_file_says_where_it_looked_and_what_to_do(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"no weights file at {tmp_path}/none.pt: (get|give|download) "):
        create_embedder(name, weights=str(tmp_path / "none.pt"))
