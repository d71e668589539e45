"""The comparison of shares of the mean embeds faces as the network does."""

from typing import cast

import torch
from rich.console import Console

from bench import mean_share
from deocc.inference.network import FaceNetwork
from deocc.networks.embedders.embedder import MEAN_SHARE, Embedder
from tests.inference.test_bare_faces import BY_DLIB, config_of
from tests.modules.training import faces


def test_chosen_share_is_that_of_the_network() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = FaceNetwork(config_of(BY_DLIB))
        network.center.normal_(0, 0.1)
    batch = faces(6)
    bare, masked, identity = batch["face"], batch["masked_face"], torch.arange(6) // 2
    gallery = network(bare, torch.zeros_like(bare[:, :1])).embedding
    expected = mean_share.compare(gallery, network(masked).embedding, identity)
    with (console := Console(width=200)).capture() as capture:
        console.print(mean_share.table_of(network, cast(Embedder, network.teacher), bare, masked, identity))
    (line,) = [line for line in capture.get().splitlines() if f" {MEAN_SHARE:.1f} " in line]
    assert " ".join(expected) in line


def test_compared_pairs() -> None:
    """Photo 0 resembles photo 2 of another person more than photo 1 of its own; a photo is not compared with itself."""
    unit = torch.eye(3)
    second = torch.tensor([[0.0, 1, 0], [0.6, 0.8, 0], [0.8, 0, 0.6]])
    eer, *_ = mean_share.compare(unit, second, torch.tensor([0, 0, 1]))
    assert float(eer) == 25  # at the similarity 0.6 both pairs of one person are accepted, and one of four others
