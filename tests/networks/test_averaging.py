"""The running average of a network, buffers included."""

import copy

import pytest
import torch
from torch import nn

from deocc.networks import WeightAverage


@pytest.mark.parametrize("interpolation", [1.0, 0.5])
def test_running_statistics_follow_the_network(interpolation: float) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    start: nn.BatchNorm2d = copy.deepcopy(network[1])  # type: ignore[assignment]
    average = WeightAverage(network, decay=0.9, interpolation=interpolation)
    for _ in range(3):
        network(torch.randn(5, 3, 2, 2) * 4 + 7)
        average.update(network)
    current, averaged = network[1], average.network[1]  # type: ignore[index]
    for name in ("running_mean", "running_var"):
        began, now = getattr(start, name), getattr(current, name)
        assert not torch.allclose(began, now)
        torch.testing.assert_close(getattr(averaged, name), began + interpolation * (now - began))
    assert averaged.num_batches_tracked == 3


def test_at_decay_0_the_average_embeds_as_the_network_does() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    average = WeightAverage(network, decay=0.0)
    network(torch.randn(5, 3, 2, 2) * 4 + 7)
    average.update(network)
    image = torch.randn(2, 3, 2, 2)
    torch.testing.assert_close(average.network(image), network.eval()(image))
