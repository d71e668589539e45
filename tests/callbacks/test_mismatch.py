"""What differs from a checkpoint's fingerprint is graded by what the checkpoint is loaded for, and said in a line a field."""

from typing import Any

import pytest

from deocc.callbacks.provenance import Action, Fingerprint, compare, describe, refuse


def fingerprint(**changes: Any) -> Fingerprint:
    return {
        "version": 1,
        "config": "data: {}",
        "code": {"version": "1.0", "hash": "c0"},
        "packages": {"python": "3.11", "torch": "2.12.0", "timm": "1.0"},
        "seeds": {"seed_everything": 0, "data": 0},
        "face_set": "ORL",
        "training_data": "d0",
        "template": {"canonical": "a0", "teacher": "a1"},
        "size": 112,
        "masks": "m0",
        "teacher": "t0",
        "resumed": [],
        **changes,
    }


OTHER: dict[str, Any] = {
    "config": "data: {size: 9}",
    "code": {"version": "1.0", "hash": "c9"},
    "packages": {"python": "3.11", "torch": "2.13.0", "numpy": "2.0"},
    "seeds": {"seed_everything": 0, "data": 9},
    "training_data": "d9",
    "template": {"canonical": "a9", "teacher": "a1"},
    "size": 64,
    "masks": "m9",
    "teacher": "t9",
    "resumed": [{"field": "size"}],
}
REFUSED = {"teacher": "refuse", "template.canonical": "refuse", "size": "refuse"}
WARNED = {"code.hash": "warn", "packages.torch": "warn", "packages.timm": "warn", "packages.numpy": "warn"}


@pytest.mark.parametrize(
    ("changes", "action", "expected"),
    [
        ({}, "fit", REFUSED | WARNED | {"training_data": "refuse", "seeds.data": "refuse", "masks": "warn"}),
        ({}, "test", REFUSED | WARNED | {"training_data": "warn", "masks": "warn"}),
        ({}, "validate", REFUSED | WARNED | {"training_data": "warn"}),
        ({}, "predict", REFUSED | WARNED | {"training_data": "warn"}),
        ({"face_set": "LFW"}, "test", REFUSED | WARNED),
        ({"face_set": "LFW", "training_data": None}, "test", REFUSED | WARNED),
        (
            {"face_set": "LFW"},
            "fit",
            REFUSED | WARNED | {"training_data": "refuse", "seeds.data": "refuse", "masks": "warn"},
        ),
        ({"training_data": None, "masks": None}, "test", REFUSED | WARNED),
        ({"masks": None}, "fit", REFUSED | WARNED | {"training_data": "refuse", "seeds.data": "refuse"}),
    ],
    ids=[
        "resume",
        "test",
        "validate",
        "predict",
        "other set",
        "set of test people",
        "resume on other set",
        "nobody",
        "resume, no masks",
    ],
)
def test_what_differs_is_graded_by_what_the_checkpoint_is_loaded_for(
    changes: dict[str, Any], action: Action, expected: dict[str, str]
) -> None:
    found = compare(fingerprint(), fingerprint(**OTHER | changes), action)
    assert {each.field: each.severity for each in found} == expected


@pytest.mark.parametrize("action", ["fit", "validate", "test", "predict"])
def test_nothing_differs_where_all_fits(action: Action) -> None:
    assert compare(fingerprint(), fingerprint(), action) == []
    no_test = fingerprint(masks=None)
    assert compare(no_test, fingerprint(), action) == [], "there was nothing to differ from"


@pytest.mark.parametrize(
    "saved", [None, {}, "text", fingerprint(version=2)], ids=["none", "empty", "no mapping", "newer"]
)
def test_a_fingerprint_that_is_missing_or_of_another_format_is_one_warning(saved: object) -> None:
    (found,) = compare(saved, fingerprint(), "fit")
    assert (found.field, found.severity) == ("fingerprint", "warn")


def test_a_line_a_field_names_only_what_differs() -> None:
    changed = {"packages": {"python": "3.11", "torch": "2.13.0", "timm": None}, "masks": "m9"}
    assert describe(compare(fingerprint(), fingerprint(**changed), "test")) == [
        "packages torch 2.12.0 -> 2.13.0, timm 1.0 -> none (saved -> present): other versions may give other figures",
        "evaluation masks m0 -> m9 (saved -> present): figures cannot be compared with those under the run's own masks",
    ]


def test_a_refusal_is_one_line_with_a_way_out_for_each_field() -> None:
    found = compare(fingerprint(), fingerprint(size=64, teacher="t9"), "test")
    assert refuse(found) == (
        "crop size 112 -> 64, teacher t0 -> t9 (saved -> present): set data.size as it was; give the teacher that it was trained with; "
        "--fingerprint.mismatch warn goes on anyway"
    )


def test_every_difference_has_its_words() -> None:
    found = compare(fingerprint(), fingerprint(**OTHER), "fit")
    assert len(describe(found)) == 8 and refuse([each for each in found if each.severity == "refuse"])
