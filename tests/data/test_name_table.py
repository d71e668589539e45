"""A table of names is the list of them, in two arrays."""

import pickle

import pytest

from deocc.data.identities import NameTable

_NAMES = ["ann/1.jpg", "", "Zoë/ü.png", "broken\udcff.png", "ann/1.jpg"]


def test_a_table_reads_as_the_list_of_its_names() -> None:
    table = NameTable(iter(_NAMES))
    assert list(table) == _NAMES
    assert [table[at] for at in (0, 2, -1, -5)] == [_NAMES[at] for at in (0, 2, -1, -5)]
    assert list(table[1:4]) == _NAMES[1:4]
    assert list(table[::-2]) == _NAMES[::-2]
    assert (len(table), table.index("Zoë/ü.png"), "x" in table) == (5, 2, False)
    assert list(pickle.loads(pickle.dumps(table))) == _NAMES
    assert list(NameTable([])) == []


def test_tables_are_equal_to_sequences_of_the_same_names_alone() -> None:
    table = NameTable(["a", "bc"])
    assert table == NameTable(["a", "bc"])
    assert table == ["a", "bc"]
    assert table != NameTable(["ab", "c"])
    assert table != ["a"]
    assert NameTable(["a", "b"]) != "ab"


@pytest.mark.parametrize("place", [2, -3])
def test_a_place_beyond_the_end_is_refused(place: int) -> None:
    with pytest.raises(IndexError):
        NameTable(["a", "b"])[place]
