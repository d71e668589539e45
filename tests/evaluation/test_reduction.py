"""What two processes saw, merged as torch.distributed would merge it, is what one process would have seen."""

import pytest
import torch

from deocc.evaluation import EmbeddingBank, RestorationMetric, VerificationMetric


def test_verification_merges() -> None:
    generator = torch.Generator().manual_seed(0)
    similarity, same = torch.rand(60, generator=generator), torch.rand(60, generator=generator) < 0.5
    whole, one, other = (VerificationMetric() for _ in range(3))
    whole.update(similarity, same)
    one.update(similarity[:25], same[:25])
    other.update(similarity[25:], same[25:])
    one.merge_state(other)
    assert one.compute() == pytest.approx(whole.compute(), nan_ok=True)


def test_restoration_merges() -> None:
    generator = torch.Generator().manual_seed(0)
    face, restored = (torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1 for _ in range(2))
    mask, kind = torch.ones(4, 1, 16, 16), torch.tensor([0, 1, 1, 0])
    whole, one, other = (RestorationMetric() for _ in range(3))
    whole.update(restored, face, mask, kind)
    one.update(restored[:1], face[:1], mask[:1], kind[:1])
    other.update(restored[1:], face[1:], mask[1:], kind[1:])
    one.merge_state(other)
    torch.testing.assert_close(one.compute(), whole.compute())


def test_bank_merges_and_drops_what_both_saw(make_sets) -> None:
    _, probe = make_sets(1.0)
    one, other = EmbeddingBank(), EmbeddingBank()
    for bank, part in ((one, slice(0, 100)), (other, slice(90, len(probe)))):
        bank.update(*(value[part] for value in (probe.embedding, probe.identity, probe.index, probe.kind, probe.seed)))
    one.merge_state(other)
    assert len(one.compute()) == len(probe)
