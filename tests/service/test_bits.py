"""What an engine keeps is what the slow twins say, bit for bit; and a single bit that flips anywhere in it is found.

Logits tell too little of it: a low bit of one weight is far below the bound that they are held to.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from torch import Tensor

from . import rig, ways
from .ought import Ought

FLIPS = 100


@cache
def full(way: str, dtype: str) -> tuple[rig.Rig, Ought]:
    """A rig with every view in a slot."""
    own = ways.made(way, dtype)
    ought = Ought(own)
    for name in own.tasks:
        own.run([name], [rig.pictures(own.backbone, 1, 0)])
    return own, ought


def all_in_slots(own: rig.Rig, ought: Ought) -> None:
    keys = {slot.key for slot in own.engine.slots._slots if slot.ready}
    assert keys == {key for key in ought.views if key != (own.backbone.digest, "")}, "the base needs no slot"
    assert len(keys) > 10


@contextmanager
def flipped(memory: Tensor, at: int, bit: int) -> Generator[None]:
    """One bit of the `at`-th number is the other one in the block."""
    held = memory.view(-1).view(torch.uint8).numpy()
    byte = at * memory.element_size() + bit // 8
    held[byte] ^= 1 << bit % 8
    try:
        yield
    finally:
        held[byte] ^= 1 << bit % 8


def bit_of(draw: random.Random, memory: Tensor) -> int:
    return draw.randrange(8 * memory.element_size())


@pytest.mark.parametrize(("way", "dtype"), ways.EVERY)
def test_views_that_are_evicted_and_written_again_in_any_order_stay_the_reference_s_bits(way: str, dtype: str) -> None:
    own = ways.made(way, dtype, slot_bytes=3 * ways.made(way, dtype).engine.shared.layout(dtype).nbytes)
    ought, draw = Ought(own), random.Random(0)
    for _ in range(60):
        name = draw.choice(sorted(own.tasks))
        beside = [other for other in own.tasks if own.sight(other) == own.sight(name)]
        asked = [name, *draw.choices(beside, k=draw.randrange(4))]
        own.run(asked, [rig.pictures(own.backbone, 1, 0)] * len(asked))
        assert ought.faults() == []
    assert own.engine.slots.eviction_age_seconds.read().count > 20


@pytest.mark.parametrize(("way", "dtype"), ways.EVERY)
def test_a_bit_that_flips_in_a_written_view_is_found(way: str, dtype: str) -> None:
    """Of weights that are seen; and of those that are hidden, which are zeros in every bit."""
    own, ought = full(way, dtype)
    all_in_slots(own, ought)
    draw = random.Random(0)
    for number in range(FLIPS):
        slot = draw.choice(own.engine.slots._slots)
        layer = draw.choice(sorted(slot.weights.memory))
        memory = slot.weights.memory[layer]
        if number % 4 == 0:
            at = draw.randrange(len(memory))
        else:
            at = draw.choice(memory.nonzero().view(-1).tolist())
        with flipped(memory, at, bit_of(draw, memory)):
            assert ought.faults() == [f"slot {slot.key}: {layer}"]
    assert ought.faults() == []


@pytest.mark.parametrize(("way", "dtype"), ways.EVERY)
def test_a_bit_that_flips_in_the_shared_weights_is_found(way: str, dtype: str) -> None:
    own, ought = full(way, dtype)
    draw = random.Random(1)
    for _ in range(FLIPS):
        what = draw.choice(["base", "pool"])
        held = own.engine.shared.base(dtype) if what == "base" else own.engine.shared.pool(dtype)
        layer = draw.choice(sorted(held.memory))
        memory = held.memory[layer]
        with flipped(memory, draw.choice(memory.nonzero().view(-1).tolist()), bit_of(draw, memory)):
            assert ought.faults() == [f"{what}: {layer}"]
    assert ought.faults() == []


def test_a_bit_that_flips_in_who_owns_a_position_is_found() -> None:
    own, ought = full("plain", "fp32")
    owners, draw = own.engine.shared._owners, random.Random(2)
    for _ in range(FLIPS):
        layer = draw.choice(sorted(owners))
        with flipped(owners[layer], draw.randrange(owners[layer].numel()), bit_of(draw, owners[layer])):
            assert ought.faults() == [f"owners: {layer}"]
    assert ought.faults() == []


def test_a_bit_that_flips_in_what_a_task_sees_is_found() -> None:
    own, ought = full("plain", "fp32")
    masked, draw = sorted(name for name, task in own.loaded.items() if task.shown is not None), random.Random(3)
    for _ in range(FLIPS):
        name = draw.choice(masked)
        shown = own.loaded[name].shown
        assert shown is not None
        with flipped(shown, draw.randrange(len(shown)), bit_of(draw, shown)):
            assert ought.faults() == [f"sees: {name}"]
    assert ought.faults() == []


def test_a_view_that_was_written_by_a_flipped_bit_is_found_when_the_bit_is_right_again() -> None:
    own, ought = full("plain", "fp32")
    shown, sight = own.loaded["packnet"].shown, own.sight("packnet").key
    assert shown is not None
    slot = next(slot for slot in own.engine.slots._slots if slot.key is not None and slot.key[0] == sight)
    layer, memory = next(iter(slot.weights.memory.items()))
    bit = own.engine.shared.layout("fp32").offsets[layer] + int(memory.nonzero()[0])
    own.engine.slots.drop(sight)
    with flipped(shown, bit // 8, bit % 8):
        own.run(["packnet"], [rig.pictures(own.backbone, 1, 0)])
    assert [fault.endswith(f"): {layer}") for fault in ought.faults()] == [True]
    own.engine.slots.drop(sight)
    assert ought.faults() == []


def test_a_bit_that_flips_in_a_slot_s_key_is_found() -> None:
    """Of the digest that names the weights, or the one that names the norm."""
    own, ought = full("direct", "fp32")
    all_in_slots(own, ought)
    draw = random.Random(5)
    for _ in range(FLIPS):
        slot = draw.choice(own.engine.slots._slots)
        assert slot.key is not None
        key, which = slot.key, draw.randrange(2) if slot.key[1] else 0
        at, bit = draw.randrange(len(key[which])), draw.randrange(7)
        text = key[which][:at] + chr(ord(key[which][at]) ^ 1 << bit) + key[which][at + 1 :]
        slot.key = (text, key[1]) if which == 0 else (key[0], text)
        assert ought.faults() == [f"slot of nobody: {slot.key}"]
        slot.key = key
    assert ought.faults() == []


def test_slots_that_change_their_tasks_are_found() -> None:
    own, ought = full("direct", "fp32")
    all_in_slots(own, ought)
    for one, other in itertools.combinations(own.engine.slots._slots, 2):
        one.key, other.key = other.key, one.key
        told = {fault.partition("): ")[0] + ")" for fault in ought.faults()}
        assert told == {f"slot {one.key}", f"slot {other.key}"}
        one.key, other.key = other.key, one.key
    assert ought.faults() == []


def test_claims_that_change_their_versions_are_found() -> None:
    own, ought = full("plain", "fp32")
    numbers = own.engine.shared._ids
    assert len(numbers) > 3
    for one, other in itertools.combinations(sorted(numbers), 2):
        numbers[one], numbers[other] = numbers[other], numbers[one]
        assert {fault.partition(":")[0] for fault in ought.faults()} == {"owners"}
        numbers[one], numbers[other] = numbers[other], numbers[one]
    assert ought.faults() == []
