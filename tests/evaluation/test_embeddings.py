import pytest
import torch

from deocc.evaluation.embeddings import EmbeddingBank, EmbeddingSet


def _add(bank: EmbeddingBank, members: EmbeddingSet) -> None:
    bank.update(members.embedding, members.identity, members.index, members.kind, members.seed)


def _fields(members: EmbeddingSet) -> list[tuple[int, ...]]:
    return torch.stack([members.index, members.kind, members.seed, members.identity], 1).tolist()


def test_bank_removes_duplicates_in_any_order(make_sets) -> None:
    _, probe = make_sets(1.0)
    order = torch.randperm(len(probe), generator=torch.Generator().manual_seed(0))
    shuffled, plain = EmbeddingBank(), EmbeddingBank()
    for part in order.split(17):
        _add(shuffled, probe.take(part))
    _add(shuffled, probe.take(order[:9]))  # what a distributed sampler repeats
    _add(plain, probe)
    assert len(shuffled.compute()) == len(probe)
    assert _fields(shuffled.compute()) == _fields(plain.compute()) == sorted(_fields(probe))
    torch.testing.assert_close(shuffled.compute().embedding, plain.compute().embedding)


def test_bank_keeps_first_duplicate() -> None:
    bank, one = EmbeddingBank(), torch.tensor([1])
    for row in ([1.0, 0.0], [0.0, 1.0]):
        bank.update(torch.tensor([row]), one, one, one, one)
    bank.update(torch.tensor([[1.0, 0.0]]), one, one + 1, one, one)
    assert bank.compute().embedding.tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_bank_of_fewer_than_two_faces_says_so() -> None:
    bank, one = EmbeddingBank(), torch.tensor([1])
    bank.update(torch.tensor([[1.0, 0.0]]), one, one, one, one)
    with pytest.raises(ValueError, match="fewer than two faces"):
        bank.compute()


def test_bank_stores_float32() -> None:
    bank, ids = EmbeddingBank(), torch.arange(2)
    bank.update(torch.eye(2, dtype=torch.bfloat16), ids, ids, ids, ids)
    assert bank.compute().embedding.dtype == torch.float32


def test_coverage_defaults_to_nan() -> None:
    bank, ids = EmbeddingBank(), torch.tensor([3, 1])
    bank.update(torch.eye(2), ids, ids, ids, ids, coverage=torch.tensor([0.3, 0.1], dtype=torch.float64))
    bank.update(torch.eye(2), ids + 10, ids + 10, ids, ids)
    bank.update(torch.eye(2), ids, ids, ids, ids, coverage=torch.tensor([0.5, 0.6]))  # repeated: the first stays
    members = bank.compute()
    assert members.coverage.dtype == torch.float32
    torch.testing.assert_close(members.coverage, torch.tensor([0.1, 0.3, torch.nan, torch.nan]), equal_nan=True)
    torch.testing.assert_close(members.take(members.kind == 3).coverage, torch.tensor([0.3, torch.nan]), equal_nan=True)


def _masks(index: list[int], kind: list[int], seed: list[int]) -> EmbeddingSet:
    images = torch.tensor(index)
    return EmbeddingSet(torch.eye(len(index)), images, images, torch.tensor(kind), torch.tensor(seed))


def test_draws_count_masks_by_image_and_kind() -> None:
    members = _masks([7, 7, 7, 7, 3, 3, 3, 3], [0, 0, 1, 1, 0, 0, 1, 1], [50, 20, 90, 95, 10, 30, 70, 60])
    assert members.draw().tolist() == [1, 0, 0, 1, 0, 1, 1, 0]
    assert members.groups().tolist() == [[7, 0], [7, 0], [7, 1], [7, 1], [3, 0], [3, 0], [3, 1], [3, 1]]


def test_draw_counts_mixed_kinds_by_image() -> None:
    members = _masks([7, 7, 7, 3, 3, 3], [0, 0, 1, 1, 1, 1], [50, 20, 30, 10, 40, 15])
    assert members.draw().tolist() == [2, 0, 1, 0, 2, 1]
    assert members.groups().tolist() == [[7, -1]] * 3 + [[3, -1]] * 3
    assert members.take(members.kind == 1).draw().tolist() == [0, 0, 2, 1]  # of one kind, but not equally often
    assert _masks([1, 2, 3], [0, 4, 4], [9, 5, 7]).draw().tolist() == [0, 0, 0]


@pytest.mark.parametrize("row", [[2.0, 0.0], [float("nan"), 0.0], [0.0, 0.0]])
def test_embedding_set_rejects_other_norms(row: list[float]) -> None:
    ids = torch.arange(2)
    with pytest.raises(ValueError, match="1 of 2 embeddings are not finite unit vectors"):
        EmbeddingSet(torch.tensor([[1.0, 0.0], row]), ids, ids, ids, ids)


def test_bank_merge_removes_duplicates(make_sets) -> None:
    _, probe = make_sets(1.0)
    probe.coverage = torch.linspace(0, 1, len(probe))
    one, other = EmbeddingBank(), EmbeddingBank()
    for bank, part in ((one, slice(0, 100)), (other, slice(90, len(probe)))):
        bank.update(
            *(
                value[part]
                for value in (probe.embedding, probe.identity, probe.index, probe.kind, probe.seed, probe.coverage)
            )
        )
    one.merge_state(other)
    assert len(one.compute()) == len(probe)
    assert one.compute().coverage.sort().values.tolist() == probe.coverage.tolist()
