"""Scores of volumes, eyes and patients out of those of their images."""

from pathlib import Path

import numpy as np
import pytest

from keepfit_clip.data.records import Record
from keepfit_clip.errors import ConfigError
from keepfit_clip.evaluate.pooling import check_pooling, keys_of, pool_answers

LABELS = np.array([0, 0, 0, 1, 1, 0])
PROBABILITIES = np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9], [0.2, 0.8], [0.6, 0.4], [1.0, 0.0]])
KEYS = ["a", "a", "a", "b", "b", "c"]


@pytest.mark.parametrize(
    ("by", "first", "second"),
    [("mean", [0.5, 0.5], [0.4, 0.6]), ("max", [0.5, 0.5], [0.6 / 1.4, 0.8 / 1.4]), ("top-2", [0.5, 0.5], [0.4, 0.6])],
)
def test_by_hand(by, first, second):
    labels, probabilities, mixed = pool_answers(LABELS, PROBABILITIES, KEYS, by)
    assert labels.tolist() == [0, 1, 0]
    assert probabilities[0] == pytest.approx(first)
    assert probabilities[1] == pytest.approx(second)
    assert probabilities[2] == pytest.approx([1, 0])
    assert mixed == 0


def test_top_k_of_each_class():
    _, probabilities, _ = pool_answers(np.zeros(3, int), np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]]), "xxx", "top-2")
    assert probabilities[0] == pytest.approx(np.array([0.85, 0.55]) / 1.4)


def test_what_has_several_labels_is_left_out_and_counted():
    labels, probabilities, mixed = pool_answers(np.array([0, 1, 1]), PROBABILITIES[:3], ["a", "a", "b"])
    assert (labels.tolist(), len(probabilities), mixed) == ([1], 1, 1)


def test_what_records_belong_to():
    def record(**fields):
        return Record(1, Path("x.png"), **fields)

    assert keys_of([record(patient="p", eye="left")], "eye") == [(None, "p", "left", None)]
    first, second = keys_of([record(patient="p", eye="left", visit=visit) for visit in ("1", "2")], "eye")
    assert first != second
    assert keys_of([record(patient="p", dataset="d")], "patient") == [("d", "p")]
    one, same, of_another = (record(volume="v", patient=patient) for patient in ("p", "p", "q"))
    assert len(set(keys_of([one, same, of_another], "volume"))) == 2
    with pytest.raises(ConfigError, match=r"1 rows say no patient or eye .*row 1.*--patient-column"):
        keys_of([record(patient="p")], "eye")
    with pytest.raises(ConfigError, match="--volume-column"):
        keys_of([record()], "volume")
    for pool, by in (("person", "mean"), ("eye", "median"), ("eye", "top-0")):
        with pytest.raises(ConfigError, match="--pool"):
            check_pooling(pool, by)
