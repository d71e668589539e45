"""The epoch's order is the same for any number of processes, and everything random follows from seed, epoch and position."""

import hashlib

import pytest
import torch.distributed

from deocc.data.loader import EpochSampler, ItemKey, ShareSampler, item_seed


def _order(monkeypatch: pytest.MonkeyPatch, length: int, rank: int, processes: int) -> list[ItemKey]:
    """What one of several processes goes through."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: processes > 1)
        patch.setattr(torch.distributed, "get_rank", lambda: rank)
        patch.setattr(torch.distributed, "get_world_size", lambda: processes)
        sampler = EpochSampler(length, seed=3)
        order = list(sampler)
        assert len(order) == len(sampler)
        return order


def _of_epoch(epoch: int, seed: int = 0, shuffle: bool = True) -> list[ItemKey]:
    sampler = EpochSampler(50, seed, shuffle)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_one_process_sees_every_item_once_and_its_epoch() -> None:
    order = _of_epoch(4)
    assert sorted(order) == [(4, position) for position in range(50)]
    assert order != sorted(order)


def test_two_processes_together_follow_the_order_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = _order(monkeypatch, 8, 0, 1)
    shares = [_order(monkeypatch, 8, rank, 2) for rank in (0, 1)]
    assert [key for pair in zip(*shares, strict=True) for key in pair] == alone


@pytest.mark.parametrize(("length", "processes"), [(7, 2), (10, 4), (1, 4), (2, 5)])
def test_every_process_gets_equally_many_and_together_they_see_all(
    monkeypatch: pytest.MonkeyPatch, length: int, processes: int
) -> None:
    shares = [_order(monkeypatch, length, rank, processes) for rank in range(processes)]
    assert {len(share) for share in shares} == {-(-length // processes)}
    assert {position for share in shares for _, position in share} == set(range(length))


def test_epochs_and_seeds_differ_and_each_repeats_itself() -> None:
    assert _of_epoch(1, seed=5) == _of_epoch(1, seed=5)
    positions = [[position for _, position in _of_epoch(epoch, seed)] for epoch, seed in ((0, 5), (1, 5), (0, 6))]
    assert positions[0] != positions[1]
    assert positions[0] != positions[2]


@pytest.mark.parametrize(("length", "processes"), [(1, 3), (7, 2), (64, 4), (50, 1)])
def test_the_order_is_that_of_plain_lists(monkeypatch: pytest.MonkeyPatch, length: int, processes: int) -> None:
    generator = torch.Generator().manual_seed(item_seed(3, "order", 0))
    order = torch.randperm(length, generator=generator).tolist()
    padded = (order * processes)[: -(-length // processes) * processes]
    for rank in range(processes):
        assert _order(monkeypatch, length, rank, processes) == [(0, position) for position in padded[rank::processes]]


def test_an_epoch_begun_keeps_its_number_and_gives_plain_integers() -> None:
    sampler = EpochSampler(5, 0)
    epoch = iter(sampler)
    sampler.set_epoch(1)
    items = list(epoch)
    assert {number for number, _ in items} == {0}
    assert {type(value) for item in items for value in item} == {int}


def test_without_shuffling_the_order_is_kept() -> None:
    assert _of_epoch(2, shuffle=False) == [(2, position) for position in range(50)]


def test_item_seed_is_blake2b_of_its_parts_on_every_machine() -> None:
    digest = hashlib.blake2b(b"1/order/2", digest_size=8).hexdigest()
    assert item_seed(1, "order", 2) == int(digest, 16) // 2
    assert item_seed(1, "order", 2) == 5971170691884857887


def test_item_seeds_of_neighbours_neither_collide_nor_share_bits() -> None:
    seeds = [item_seed(seed, epoch, index) for seed in range(8) for epoch in range(8) for index in range(64)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    shares = [sum(seed >> bit & 1 for seed in seeds) / len(seeds) for bit in range(63)]
    assert all(abs(share - 0.5) < 0.04 for share in shares)  # five standard deviations of 4096 fair coins


@pytest.mark.parametrize(("length", "processes"), [(7, 2), (10, 4), (6, 1), (2, 5)])
def test_an_evaluation_is_shared_out_without_repeating_anything_but_to_who_would_have_nothing(
    monkeypatch: pytest.MonkeyPatch, length: int, processes: int
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: processes)
    shares = []
    for rank in range(processes):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        shares.append(list(ShareSampler(length)))
        assert len(ShareSampler(length)) == len(shares[-1])
    seen = sorted(position for share in shares for position in share)
    assert seen == sorted([*range(length), *[0] * max(0, processes - length)])
