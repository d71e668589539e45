"""What of a student is trained, and in which precision it embeds."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deocc.networks import Student, create_embedder

LOW = torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("blocks", [0, 2, 14, None])
def test_the_widened_layer_is_trained_whatever_the_number_of_blocks(blocks):
    student = Student(create_embedder("dlib_resnet", pretrained=False), 128, "both", mask_channel=True)
    trained = [id(parameter) for parameter in student.trainable(blocks)]
    assert len(trained) == len(set(trained))
    network = student.embedder.network
    assert id(network.stem[0].weight) in trained and id(network.head.weight) in trained
    assert (id(network.stem[1].weight) in trained) == (blocks is None)


def test_a_layer_that_is_not_widened_is_not_trained():
    student = Student(create_embedder("dlib_resnet", pretrained=False), 128, "completed")
    assert {id(parameter) for parameter in student.trainable(0)} == {id(student.embedder.network.head.weight)}


@pytest.mark.parametrize(
    ("name", "head"), [("dlib_resnet", "head"), ("iresnet18", "fc"), ("inception_resnet_v1", "last_linear")]
)
def test_under_autocast_the_layers_run_low_and_the_head_in_full_precision(name, head):
    torch.manual_seed(0)
    embedder = create_embedder(name, pretrained=False).eval()
    layer = embedder.network.get_submodule(head)
    seen: list[tuple[Tensor, Tensor]] = []
    layer.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output)))
    face = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        embedder(face)
        with LOW:
            embedding = embedder(face)
        (full_features, _), (features, output) = seen
        assert embedding.dtype == output.dtype == torch.float32
        assert not torch.allclose(features.float(), full_features, rtol=1e-4)
        torch.testing.assert_close(output, F.linear(features.float(), layer.weight, layer.bias))


def test_the_heads_gradient_is_that_of_full_precision():
    embedder = create_embedder("dlib_resnet", pretrained=False)
    head = embedder.network.head
    features = torch.rand(3, 256)
    gradients = []
    for low in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = head(features).square().sum()
        gradients.append(torch.autograd.grad(loss, head.weight)[0])
    torch.testing.assert_close(*gradients)


def test_a_projection_is_not_rounded_by_autocast():
    torch.manual_seed(0)
    student = Student(create_embedder("dlib_resnet", pretrained=False), 16, "masked")
    embedding = torch.rand(2, 128)
    with torch.no_grad(), LOW:
        low = student.projection(embedding)
    torch.testing.assert_close(low, embedding @ student.projection.map.weight.T)
