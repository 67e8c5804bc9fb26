"""Batches: the same whatever the threads, the resume and the number of processes."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masks_store import Preprocess, pixels
from trainer.batches import batch_sizes, eval_batches, train_batches
from trainer.data import Split, load_source

from .samples import classes_tree, encoded, picture, write_folder

PREPROCESS = Preprocess(resize=16, size=16)
EPOCH: dict[str, Any] = {"seed": 1, "task": "pets", "phase": "train", "epoch": 2, "batch_size": 8}


@pytest.fixture(scope="module")
def train(tmp_path_factory) -> Split:
    tree = classes_tree("val/", each=3, first=5000)
    for label, first in (("cat", 0), ("dog", 100)):
        for n in range(22):
            tree[f"train/{label}/{n:02}.png"] = encoded(picture(first + n, (14 + n % 9, 12 + n % 14)))
    return load_source(write_folder(tmp_path_factory.mktemp("set"), tree), preprocess=PREPROCESS).splits["train"]


def collect(batches) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(batches)


def same(one, other) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True)
    )


def test_an_epoch_holds_every_picture_once_in_even_batches(train):
    epoch = collect(train_batches(train, PREPROCESS, **EPOCH))
    assert [len(labels) for _, labels in epoch] == [8, 8, 7, 7, 7, 7]
    assert torch.bincount(torch.cat([labels for _, labels in epoch])).tolist() == [22, 22]
    for images, labels in epoch:
        assert images.dtype == torch.uint8
        assert images.shape == (len(labels), 3, 16, 16)
        assert images.is_contiguous()
        assert labels.dtype == torch.int64


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(2, 128))
def test_no_batch_is_left_with_a_single_picture(samples, batch_size):
    sizes = batch_sizes(samples, batch_size)
    assert sizes == [len(part) for part in np.array_split(np.arange(samples), len(sizes))]
    assert sum(sizes) == samples
    assert max(sizes) <= max(batch_size, 3 if samples % 2 else 2)
    assert min(sizes) > 1 or samples == 1


@pytest.mark.parametrize("threads", [0, 1, 3, 8])
def test_threads_change_nothing(train, threads):
    one = collect(train_batches(train, PREPROCESS, **EPOCH, threads=0, flip=True))
    assert same(one, collect(train_batches(train, PREPROCESS, **EPOCH, threads=threads, flip=True)))


def test_a_picture_has_its_crop_whatever_batch_it_stands_in(train):
    one, other = (
        torch.cat([images for images, _ in train_batches(train, PREPROCESS, **{**EPOCH, "batch_size": size})])
        for size in (8, 5)
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("start", [0, 1, 5, 6])
def test_an_epoch_resumes_at_any_batch(train, start, augment):
    whole = collect(train_batches(train, PREPROCESS, **EPOCH, augment=augment))
    assert same(whole[start:], collect(train_batches(train, PREPROCESS, **EPOCH, augment=augment, start=start)))


@pytest.mark.parametrize("change", [{"seed": 2}, {"task": "birds"}, {"phase": "retrain"}, {"epoch": 3}])
def test_each_epoch_phase_task_and_seed_has_an_order_and_crops_of_its_own(train, change):
    one = collect(train_batches(train, PREPROCESS, **EPOCH))
    other = collect(train_batches(train, PREPROCESS, **{**EPOCH, **change}))
    assert not torch.equal(torch.cat([y for _, y in one]), torch.cat([y for _, y in other]))


def test_without_augmentation_batches_are_the_squares_of_evaluation(train):
    plain = {bytes(pixels(train.image(i), PREPROCESS)) for i in range(len(train))}
    seen = [
        bytes(x.permute(1, 2, 0).contiguous().numpy())
        for xs, _ in train_batches(train, PREPROCESS, **EPOCH, augment=False)
        for x in xs
    ]
    assert set(seen) == plain
    assert len(seen) == len(train)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("augment", [False, True])
def test_processes_share_every_batch_of_one_process_without_overlap(train, world, augment):
    epoch: dict[str, Any] = {**EPOCH, "batch_size": 7, "augment": augment}
    whole = collect(train_batches(train, PREPROCESS, **epoch))
    parts = [collect(train_batches(train, PREPROCESS, **epoch, rank=r, world=world)) for r in range(world)]
    assert [len(labels) for _, labels in whole] == batch_sizes(44, 7)
    for number, (images, labels) in enumerate(whole):
        for rank, part in enumerate(parts):
            assert torch.equal(part[number][0], images[rank::world])
            assert torch.equal(part[number][1], labels[rank::world])
    assert {len(part) for part in parts} == {len(whole)}


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sees_every_picture_once_in_order_as_serving_does(train, world):
    for rank in range(world):
        batches = collect(eval_batches(train, PREPROCESS, batch_size=5, rank=rank, world=world))
        images, labels = (torch.cat(column) for column in zip(*batches, strict=True))
        own = range(rank, len(train), world)
        assert labels.tolist() == train.labels[rank::world].tolist()
        for image, index in zip(images, own, strict=True):
            assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels(train.image(index), PREPROCESS))


def test_a_run_that_stops_in_the_middle_of_an_epoch_leaves_no_thread_behind(train):
    before = threading.active_count()
    batches = train_batches(train, PREPROCESS, **EPOCH, threads=3)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_a_picture_that_breaks_while_training_is_told_where_it_is_needed(tmp_path):
    source = load_source(write_folder(tmp_path, classes_tree()))
    (tmp_path / source.splits["train"].names[0]).write_bytes(b"")
    with pytest.raises(Exception, match="not a picture"):
        collect(train_batches(source.splits["train"], PREPROCESS, **EPOCH))
