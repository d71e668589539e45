"""A draft of a file of rows: who writes it, when it gets its name, what happens on a full disk."""

from pathlib import Path

import numpy as np

from deocc.modules.teacher_cache import Draft, map_rows


def test_a_disk_that_fills_up_on_the_way_is_noted_and_nothing_is_raised(tmp_path: Path) -> None:
    draft = Draft(tmp_path / "draft", (3, 2))
    assert draft.error is None and draft._file is not None
    draft._file.close()
    draft._file = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
    for _ in range(2):
        draft.write(np.array([0, 2]), np.ones((2, 2), np.float32))
    draft.close()
    assert "No space left" in str(draft.error)
    draft.discard()
    assert list(tmp_path.iterdir()) == []


def test_of_two_who_ask_for_a_draft_one_writes_it(tmp_path: Path) -> None:
    first, second = (Draft(tmp_path / "draft", (4, 2)) for _ in range(2))
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    for draft, sign in ((first, 1), (second, -1)):
        draft.write(np.array([2, -1, 0]), sign * rows)
        draft.close()
    for draft in (second, first):
        draft.publish(tmp_path / "whole")
        draft.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    found = map_rows(tmp_path / "whole", (4, 2))
    assert found is not None and found.tolist() == [[4, 5], [0, 0], [0, 1], [0, 0]]
    np.testing.assert_array_equal(np.load(tmp_path / "whole"), found)
