"""The sources of permuted MNIST."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks.learning.permuted import MEAN, STD, Cut, grey_backbone, write_tasks
from masks_store import normalise, read_backbone

from .digits import SIDE, write_digits

CUT = Cut(tasks=3, val_images=18)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("permuted")
    write_digits(made / "mnist.npz")
    return made


def _load(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def test_a_task_holds_every_digit_once_with_its_pixels_in_one_fixed_order(folder):
    whole = _load(folder / "mnist.npz")
    digits = sorted(image.tobytes() for image in np.sort(whole["train_images"].reshape(90, -1), axis=1))
    orders = set()
    for path in write_tasks(folder / "mnist.npz", folder, 0, CUT):
        task = _load(path)
        assert task["train_images"].shape == (72, SIDE, SIDE, 1)
        both = np.concatenate([task["train_images"], task["val_images"]]).reshape(90, -1)
        assert sorted(image.tobytes() for image in np.sort(both, axis=1)) == digits, "the same pixels, in another order"
        tests, original = task["test_images"].reshape(30, -1), whole["test_images"].reshape(30, -1)
        order = [int(np.flatnonzero((column == original.T).all(axis=1))[0]) for column in tests.T]
        assert sorted(order) == list(range(SIDE * SIDE)), "one order for all pictures"
        orders.add(tuple(order))
        assert np.array_equal(task["test_labels"], whole["test_labels"])
    assert len(orders) == 3


def test_validation_is_the_same_digits_for_all_tasks_and_a_cut_leaves_it_alone(folder):
    labels = [_load(path)["val_labels"] for path in write_tasks(folder / "mnist.npz", folder, 0, CUT)]
    cut = Cut(tasks=1, train_images=20, val_images=18)
    less = _load(write_tasks(folder / "mnist.npz", folder, 0, cut)[0])
    assert all(np.array_equal(labels[0], other) for other in [*labels, less["val_labels"]])
    assert len(less["train_labels"]) == 20
    other = _load(write_tasks(folder / "mnist.npz", folder, 1, cut)[0])
    assert not np.array_equal(other["val_images"], less["val_images"])


def test_a_cut_without_test_pictures_has_the_others_as_they_were_and_no_test_split(folder):
    cut = Cut(tasks=2, val_images=18)
    whole = [_load(path) for path in write_tasks(folder / "mnist.npz", folder, 0, cut)]
    cut = dataclasses.replace(cut, test_images=0)
    chosen_on = [_load(path) for path in write_tasks(folder / "mnist.npz", folder, 0, cut)]
    for with_test, without in zip(whole, chosen_on, strict=True):
        assert set(with_test) - set(without) == {"test_images", "test_labels"}
        assert all(np.array_equal(with_test[name], without[name]) for name in without)


def test_the_network_reads_one_channel_scaled_by_mnists_mean_and_deviation():
    backbone = read_backbone(grey_backbone("mlp-5", SIDE, keep=0.0, seed=0))
    assert backbone.tensors["fc1.weight"].shape == (5, SIDE * SIDE)
    assert not any(bool(kept.any()) for kept in backbone.kept.values())
    white = normalise(torch.full((1, 3, SIDE, SIDE), 255, dtype=torch.uint8), backbone.manifest.preprocess)
    assert white.unique().tolist() == pytest.approx([(1 - MEAN) / STD])
