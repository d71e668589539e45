"""The calculations for many GPUs against sizes of real tensors, and the printed tables."""

import pytest
import torch

from bench import scale
from deocc.losses import pair_relation_loss
from deocc.losses.sharded_identity import ShardedIdentityLoss
from deocc.networks import create_embedder


def test_parameters_of_networks() -> None:
    for name, embedder in (("dlib ResNet", "dlib_resnet"), ("IResNet-50", "iresnet50")):
        state = create_embedder(embedder, pretrained=False).network.state_dict()
        fixed = ("running_mean", "running_var", "num_batches_tracked", "features.weight")
        assert scale.parameters_of(scale.STUDENTS[name]) == sum(
            value.numel() for key, value in state.items() if not key.endswith(fixed)
        )


def test_ring_traffic() -> None:
    assert scale.all_reduced(100, 1) == scale.gathered(100, 1) == 0
    assert scale.all_reduced(100, 2) == 100  # half out, half back
    assert scale.all_reduced(100, 1000) == pytest.approx(200, rel=1e-2)
    assert scale.gathered(100, 4) == 75


def test_sharded_head(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"IDENTITIES": 10, "DIMENSION": 4, "BATCH": 3}.items():
        monkeypatch.setattr(scale, name, value)
    weight = ShardedIdentityLoss(10, 4).weight
    lines = {line[0]: line[1:] for line in scale.head()}
    assert lines["whole: weight, gradient, two moments"][0] == scale.amount(4 * weight.numel() * weight.element_size())
    embeddings, logits = torch.zeros(24, 4), torch.zeros(24, 10)
    assert scale.shard_logits(8, 10) == 2 * logits.numel() * logits.element_size()
    assert scale.head_traffic(1) == 0
    assert scale.head_traffic(8) > 3 * 7 / 8 * embeddings.numel() * embeddings.element_size()


def test_sampled_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"IDENTITIES": 1000, "BATCH": 5, "PEOPLE": 2, "SAMPLE_SHARE": 0.1}.items():
        monkeypatch.setattr(scale, name, value)
    assert scale.sampled_rows(10) == (100 + 90) / 10
    assert scale.sampled_rows(500) == 2  # all identities are in the batch


def test_bytes_of_pair() -> None:
    assert 3 * 8 < scale.bytes_a_pair(pair_relation_loss, 1024) < 30 * 8  # some float64 buffers


@pytest.mark.parametrize(
    ("size", "text"), [(12.0, "12 B"), (2048e3, "2.05 MB"), (8.192e9, "8.19 GB"), (1.5e12, "1,500 GB")]
)
def test_amount(size: float, text: str) -> None:
    assert scale.amount(size) == text


def test_tables_are_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(scale, "bytes_a_pair", lambda loss: 80.0)
    scale.main([])
    printed = capsys.readouterr().out
    tables = [table.splitlines() for table in printed.split("\n\n") if table.startswith("|")]
    assert [len(table) for table in tables] == [2 + 3, 2 + 9, 2 + 7]
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)
    assert "| sharded: rows per process | 125,000 | 15,625 | 1,954 |" in printed
    assert "at a global batch of 31,623." in printed  # sqrt(80e9 / 80)
