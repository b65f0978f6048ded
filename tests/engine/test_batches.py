"""Which images a step sees: all of them once an epoch, however many workers share the batch."""

import itertools
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_run import CPU, digits

from cmray.datasets import ImageDataset
from cmray.engine.batches import ResidentBatches, SampleOrder


def walk(order: SampleOrder, steps: int, parts: int) -> list[list[int]]:
    """The global batch of every step, its parts put together."""
    return [[i for p in range(parts) for i in order.indices(s, p, parts).tolist()] for s in range(steps)]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("count", [1, 7, 59, 60, 61, 180, 1797])
def test_an_epoch_is_the_dataset_for_any_number_of_workers(count, world):
    batch = 60  # divides by 1..5; larger than some of the datasets and dividing few of them
    epochs = 5
    steps = -(-count * epochs // batch)
    seen = list(itertools.chain(*walk(SampleOrder(count, batch, 0), steps, world)))
    for epoch in range(epochs):
        assert Counter(seen[epoch * count : (epoch + 1) * count]) == Counter(range(count)), epoch


@pytest.mark.parametrize("world", [2, 3, 4, 5, 6])
def test_the_global_batch_does_not_know_the_number_of_workers(world):
    assert walk(SampleOrder(97, 60, 3), 9, world) == walk(SampleOrder(97, 60, 3), 9, 1)


@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 3), st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_a_step_is_the_same_whichever_steps_were_asked_before(count, batch, seed, steps):
    used = SampleOrder(count, batch, seed)
    for step in steps:
        fresh = SampleOrder(count, batch, seed)
        assert np.array_equal(used.indices(step, 0, 1), fresh.indices(step, 0, 1))


def test_another_seed_another_epoch_another_order():
    def first(order: SampleOrder) -> list[int]:
        return order.indices(0, 0, 1).tolist()

    one = SampleOrder(100, 100, 0)
    assert first(one) == first(SampleOrder(100, 100, 0))
    assert first(one) != first(SampleOrder(100, 100, 1))
    assert first(one) != one.indices(1, 0, 1).tolist()
    assert first(one) != list(range(100))


def test_unequal_parts_are_refused():
    with pytest.raises(ValueError, match="a batch of 10 images has no 3 equal parts"):
        SampleOrder(100, 10, 0).indices(0, 0, 3)


def test_batches_hold_the_images_and_labels_of_the_order():
    batches = ResidentBatches(digits(), 16, 5, CPU)
    x0, label = batches.batch(3, 1, 2)
    index = batches.rows.order.indices(3, 1, 2)
    assert (x0.dtype, x0.shape) == (torch.float32, (8, 1, 8, 8))
    assert torch.equal(label, torch.from_numpy(digits().labels[index]))
    assert np.array_equal(((x0.numpy() + 1) * 127.5).round().astype(np.uint8), digits().images[index])
    assert x0.min() >= -1
    assert x0.max() <= 1


def test_arrays_that_may_not_be_written_make_no_warning_and_stay_as_they_are():
    images, labels = digits().images.copy(), digits().labels.copy()
    images.flags.writeable = labels.flags.writeable = False
    batches = ResidentBatches(ImageDataset("d", "s", "t", images, labels, digits().classes), 16, 5, CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x0, label = batches.batch(0, 0, 1)
    x0.zero_()
    label.zero_()
    assert np.array_equal(images, digits().images)
    assert np.array_equal(labels, digits().labels)
