"""Which of the two `predict` commands a line means."""

import pytest

from deocc import cli


@pytest.mark.parametrize("words", ["photos --out a", "--out a photos", "--all --out=a photos", "a.jpg"])
def test_predict_of_photos_is_known_by_its_words_in_any_order(words: str) -> None:
    assert cli._names_photos(["predict", *words.split()])


@pytest.mark.parametrize("words", ["", "--checkpoint runs/distill", "--config a.yaml --data.num_workers 1"])
def test_predict_of_validation_faces_takes_training_options_only(words: str) -> None:
    assert not cli._names_photos(["predict", *words.split()])
    assert not cli._names_photos(["fit", *words.split(), "--out"])
