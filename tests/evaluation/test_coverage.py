import numpy as np
import torch

from deocc.evaluation.results import by_coverage, coverage_deciles, decile_edges


def test_edges_are_numpys_percentiles_of_the_known_coverages() -> None:
    coverage = torch.rand(57, generator=torch.Generator().manual_seed(0))
    coverage[::5] = torch.nan
    np.testing.assert_allclose(
        decile_edges(coverage).numpy(), np.nanpercentile(coverage.double().numpy(), np.arange(0, 101, 10)), atol=1e-12
    )


def test_distinct_coverages_fall_into_ten_equal_parts_by_rank() -> None:
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert coverage_deciles(order / 100).tolist() == (order // 5).tolist()


def test_equal_coverages_are_not_parted() -> None:
    assert coverage_deciles(torch.tensor([0.2] * 30 + [0.4] * 10)).tolist() == [7] * 30 + [9] * 10


def test_unknown_coverages_have_no_decile_and_given_edges_cut_alike() -> None:
    edges = torch.linspace(0.1, 0.6, 11, dtype=torch.float64)
    assert coverage_deciles(torch.tensor([0.0, 0.16, torch.nan, 0.6, 0.9]), edges).tolist() == [0, 1, -1, 9, 9]
    assert coverage_deciles(torch.full((3,), torch.nan)).tolist() == [-1] * 3


def test_without_a_known_coverage_there_are_eleven_unknown_edges() -> None:
    edges = decile_edges(torch.full((3,), torch.nan))
    assert edges.shape == (11,) and edges.dtype == torch.float64 and edges.isnan().all()


def test_given_edges_part_the_probes(make_sets) -> None:
    _, probe = make_sets(1.0)
    probe.coverage = torch.linspace(0.1, 0.5, len(probe))
    assert list(by_coverage(probe, torch.linspace(0.0, 1.0, 11, dtype=torch.float64))) == [1, 2, 3, 4, 5]


def test_by_coverage_parts_the_probes_whose_coverage_is_known(make_sets) -> None:
    _, probe = make_sets(1.0)
    assert by_coverage(probe) == {}
    probe.coverage = torch.linspace(0.1, 0.5, len(probe))
    probe.coverage[:10] = torch.nan
    parts = by_coverage(probe)
    assert list(parts) == list(range(10))
    assert sum(len(part) for part in parts.values()) == len(probe) - 10
    assert all(float(parts[i].coverage.max()) < float(parts[i + 1].coverage.min()) for i in range(9))
