"""Stage 1 as stage 2 sees it: the generator's own result, as tensors that a student can be trained on."""

import pytest
import torch
from torch import Tensor, nn

from deocc.networks import Deoccluder, Generator, MaskSegmenter
from deocc.networks.generator import complete


@pytest.fixture
def deoccluder() -> Deoccluder:
    torch.manual_seed(0)
    return Deoccluder({"width": 8}, {"width": 8})


def masked_faces() -> tuple[Tensor, Tensor]:
    masked_face = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(2, 1, 40, 40)
    mask[:, :, 10:30, 8:36] = 1
    return masked_face, mask


@torch.no_grad()
def test_it_completes_and_segments_as_its_networks_do(deoccluder: Deoccluder) -> None:
    generator, segmenter = Generator(8), MaskSegmenter(8)  # in the usual order of memory
    generator.load_state_dict(deoccluder.generator.state_dict())
    segmenter.load_state_dict(deoccluder.segmenter.state_dict())
    masked_face, mask = masked_faces()
    torch.testing.assert_close(deoccluder(masked_face, mask), complete(generator, masked_face, mask))
    assert torch.equal(deoccluder.predict_mask(masked_face), segmenter.predict_mask(masked_face))


def test_a_student_can_be_trained_on_what_it_returns(deoccluder: Deoccluder) -> None:
    masked_face, mask = masked_faces()
    student = nn.Conv2d(4, 2, 3)
    seen = torch.cat([deoccluder(masked_face, mask), deoccluder.predict_mask(masked_face)], 1)
    student(seen).sum().backward()
    assert student.weight.grad is not None
    for result in (deoccluder(masked_face, mask), deoccluder.predict_mask(masked_face)):
        assert not result.is_inference() and not result.requires_grad and result.is_contiguous()
        nn.Conv2d(result.shape[1], 1, 3)(result).sum().backward()  # convolutions keep their input for the backward pass


def test_its_layers_run_channels_last_whoever_loads_the_weights(deoccluder: Deoccluder) -> None:
    other = Deoccluder(**deoccluder.config)
    other.load_state_dict({key: value.contiguous() for key, value in deoccluder.state_dict().items()})
    orders: list[bool] = []
    layer = other.generator.fill[0]
    layer.register_forward_hook(lambda _, given, __: orders.append(given[0].is_contiguous(memory_format=torch.channels_last)))
    other(*masked_faces())
    assert orders == [True]


def test_the_compiled_generator_completes_alike_under_the_same_names(deoccluder: Deoccluder) -> None:
    masked_face, mask = masked_faces()
    expected, names = deoccluder(masked_face, mask), list(deoccluder.state_dict())
    torch._dynamo.reset()  # where another test has compiled it for other sizes, torch would trace sizes as symbols, and cannot
    deoccluder.generator.compile(backend="aot_eager")  # the graph is traced, and no C++ compiler needed
    torch.testing.assert_close(deoccluder(masked_face, mask), expected)
    assert list(deoccluder.state_dict()) == names
