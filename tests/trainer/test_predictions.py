"""What a run keeps of its artifact's answers, and reads back."""

from __future__ import annotations

import numpy as np
import pytest

from masks_store import InvalidInput
from trainer.predictions import Predictions, as_csv, from_csv
from trainer.results import Row
from trainer.results import as_csv as rows_csv
from trainer.results import from_csv as rows_from_csv


def _predictions(count: int = 50) -> Predictions:
    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, 300, (2, count))
    confidence, losses = random.random((2, count)).astype(np.float32)
    return Predictions(labels, predicted, confidence, losses)


def test_predictions_read_back_bit_for_bit():
    written = _predictions()
    read = from_csv(as_csv(written), "here")
    for name in ("labels", "predicted", "confidence", "losses"):
        assert getattr(read, name).dtype == getattr(written, name).dtype
        assert getattr(read, name).tobytes() == getattr(written, name).tobytes()


def test_accuracy_and_loss_are_means_over_pictures():
    told = Predictions(
        np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2]), np.ones(4, np.float32), np.array([0, 0, 3, 1], np.float32)
    )
    assert (told.top1, told.loss) == (0.75, 1.0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "label,predicted,confidence,loss\n",
        "label,predicted\n1,2\n",
        "label,predicted,confidence,loss\n1,2,0.5\n",
        "label,predicted,confidence,loss\n1,two,0.5,0.1\n",
        "label,predicted,confidence,loss\n-1,2,0.5,0.1\n",
    ],
)
def test_another_file_is_refused_by_name(text):
    with pytest.raises(InvalidInput, match=r"predictions-test\.csv: not a file of predictions"):
        from_csv(text, "predictions-test.csv")


def test_rows_of_results_read_back():
    rows = [
        Row("train", 1, 0.1, 1.5, 0.25, 1.25, 0.5, True, 2.5, 100.0, 4.75),
        Row("retrain", 0, 0.0, None, None, 1.5, 0.4, False, 0.5, 0.0),
    ]
    assert rows_from_csv(rows_csv(rows)) == rows


def test_rows_that_were_written_before_cpu_time_was_counted_read_without_it():
    row = Row("train", 1, 0.1, 1.5, 0.25, 1.25, 0.5, True, 2.5, 100.0)
    old = "".join(line.rpartition(",")[0] + "\n" for line in rows_csv([row]).splitlines())
    assert "cpu_seconds" not in old
    assert rows_from_csv(old) == [row]


@pytest.mark.parametrize(
    "spoil", [lambda text: "", lambda text: text + "train,2\n", lambda text: text.replace("epoch", "time")]
)
def test_rows_of_another_file_are_refused(spoil):
    text = rows_csv([Row("train", 1, 0.1, 1.5, 0.25, 1.25, 0.5, True, 2.5, 100.0)])
    with pytest.raises(ValueError, match=r"columns|cells"):
        rows_from_csv(spoil(text))
