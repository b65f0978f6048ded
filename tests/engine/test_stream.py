"""Streamed data: every image once an epoch whatever the number of workers, in an order that a resumed run continues."""

import itertools
import threading
import time
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_run import CPU, checkpoint, digits, go, small

from cmray.config.checkpoint_facts import read_checkpoint_facts
from cmray.core.errors import DataError
from cmray.datasets import ImageDataset
from cmray.datasets.location import Location
from cmray.datasets.manifest import Block, Manifest
from cmray.datasets.mapped import LARGE, map_shards
from cmray.datasets.shards import Unit
from cmray.datasets.whole import write_shards
from cmray.datasets.writer import table_of
from cmray.engine.batches import ArrayBatches, Batches, all_images, open_batches
from cmray.engine.session import PlainSession
from cmray.engine.stream import StreamBatches, StreamedDataset, StreamOrder, Window, read_here

#: images that stay together where a test says nothing else
CELL = 10


def numbered(count: int, classes: int = 0) -> ImageDataset:
    """Images whose pixels are their number."""
    images = np.zeros((count, 1, 1, 2), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
    labels = np.arange(count) % classes if classes else None
    return ImageDataset("numbered", "all", "a test", images, labels, tuple(map(str, range(classes))))


def numbers(images: np.ndarray) -> list[int]:
    return (images[:, 0, 0, 0].astype(int) + 256 * images[:, 0, 0, 1].astype(int)).tolist()


def streamed(folder: Path, data: ImageDataset, shards: int) -> StreamedDataset:
    return StreamedDataset(Location(folder), write_shards(data, folder, shards))


def blocks_of(sizes: list[int]) -> list[Block]:
    firsts = np.cumsum([0, *sizes])
    return [Block(i, 0, int(first), rows) for i, (first, rows) in enumerate(zip(firsts, sizes, strict=False))]


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    world=st.integers(1, 5),
    window=st.integers(1, 40),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
)
def test_an_epoch_is_the_dataset_for_any_number_of_workers(sizes, world, window, seed, epoch):
    if sum(sizes) < world:
        with pytest.raises(DataError, match=f"{sum(sizes)} images cannot be streamed to {world} workers"):
            StreamOrder(blocks_of(sizes), 4, seed, 0, world, window)
        return
    seen = []
    for rank in range(world):
        order = StreamOrder(blocks_of(sizes), 4, seed, rank, world, window)
        windows = order.windows(epoch)
        assert windows, "no worker is without images"
        assert all(w.rows < window + 4 for w in windows)
        for each in windows:
            rows = [u.block.first + i for u in each.units for i in range(u.start, u.stop)]
            seen += [rows[i] for i in order.permutation(each)]
    assert Counter(seen) == Counter(range(sum(sizes)))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    window=st.integers(1, 20),
    positions=st.lists(st.integers(0, 200), min_size=1, max_size=5),
)
def test_a_position_is_the_same_wherever_the_walk_to_it_began(sizes, window, positions):
    order = StreamOrder(blocks_of(sizes), 4, 7, 0, 1, window)
    steps = ((each.epoch, each.number, offset) for each in order.after(0, 0) for offset in range(each.rows))
    walk = list(itertools.islice(steps, 201))
    for position in positions:
        assert order.locate(position) == walk[position]


def test_two_runs_of_a_seed_see_the_same_and_another_seed_does_not(tmp_path):
    data = streamed(tmp_path / "set", numbered(300, classes=3), 7)

    def epoch(seed: int) -> list[int]:
        rows = StreamBatches(data, 30, StreamOrder(data.manifest.blocks(), CELL, seed, 0, 1, 64))
        seen = [rows.host(step, 0, 1) for step in range(10)]
        rows.close()
        for images, labels in seen:
            assert labels.tolist() == [n % 3 for n in numbers(images)], "labels stay with their images"
        return [n for images, _ in seen for n in numbers(images)]

    assert epoch(0) == epoch(0)
    assert epoch(0) != epoch(1)
    assert Counter(epoch(1)) == Counter(range(300))


def test_the_next_epoch_has_another_order_and_blocks_are_mixed(tmp_path):
    data = streamed(tmp_path / "set", numbered(300), 10)
    rows = StreamBatches(data, 300, StreamOrder(data.manifest.blocks(), CELL, 0, 0, 1, 100))
    first, second = (numbers(rows.host(step, 0, 1)[0]) for step in range(2))
    rows.close()
    assert Counter(first) == Counter(second) == Counter(range(300))
    assert first != second
    assert len({n // 30 for n in first[:20]}) > 2, "the first batch mixes the blocks of its window"


@settings(max_examples=25, deadline=None)
@given(
    workers=st.integers(1, 3),
    accumulate=st.integers(1, 2),
    window=st.integers(1, 70),
    steps=st.lists(st.integers(0, 40), min_size=1, max_size=4),
)
def test_a_batch_depends_on_its_step_alone(small_set, workers, accumulate, window, steps):
    """Any walk over steps gives what a fresh reader gives: so a resumed run goes on exactly where it was."""
    parts, batch = workers * accumulate, 6 * workers * accumulate
    for rank in range(workers):
        order = StreamOrder(small_set.manifest.blocks(), CELL, 3, rank, workers, window)
        used = StreamBatches(small_set, batch, order)
        for step in steps:
            for part in range(rank * accumulate, (rank + 1) * accumulate):
                fresh = StreamBatches(small_set, batch, order)
                assert numbers(used.host(step, part, parts)[0]) == numbers(fresh.host(step, part, parts)[0])
                fresh.close()
        used.close()
    assert not [t for t in threading.enumerate() if t.name == "cmray-stream"], "closing ends the threads"


@pytest.fixture(scope="module")
def small_set(tmp_path_factory) -> StreamedDataset:
    return streamed(tmp_path_factory.mktemp("small") / "set", numbered(101), 5)


def test_workers_in_step_see_every_image_once_an_epoch(small_set):
    """33 or 34 images are each worker's share of 101; whose is the larger one changes."""
    seen: Counter[int] = Counter()
    shares = []
    for rank in range(3):
        order = StreamOrder(small_set.manifest.blocks(), CELL, 0, rank, 3, 16)
        shares.append([sum(window.rows for window in order.windows(epoch)) for epoch in range(3)])
        rows = StreamBatches(small_set, 3, order)
        seen.update(n for step in range(shares[-1][0]) for n in numbers(rows.host(step, rank, 3)[0]))
        rows.close()
    assert seen == Counter(range(101))
    assert sorted(shares) == [[33, 34, 34], [34, 33, 34], [34, 34, 33]]


@pytest.mark.parametrize("world", [1, 3, 8])
def test_global_batches_cover_the_dataset_before_they_repeat(world):
    orders = [StreamOrder(blocks_of([100] * 20), 64, 0, rank, world, 300) for rank in range(world)]
    seen: list[int] = []
    for order in orders:
        mine = [w for epoch in range(2) for w in order.windows(epoch)]
        rows = [n for w in mine for n in row_numbers(order, w)]
        seen += rows[: 2000 // world]
    assert 2000 - len(set(seen)) <= world, "the shares differ by one image"


def row_numbers(order: StreamOrder, window: Window) -> list[int]:
    rows = [u.block.first + i for u in window.units for i in range(u.start, u.stop)]
    return [rows[i] for i in order.permutation(window)]


@pytest.mark.parametrize("sizes", [[300], [100, 100, 100], [7, 150, 1, 142], [50] * 6])
def test_the_order_does_not_depend_on_the_shards(sizes):
    whole, cut = (StreamOrder(blocks_of(each), 64, 5, 1, 2, 100) for each in ([300], sizes))
    for epoch in range(2):
        both = [[n for w in order.windows(epoch) for n in row_numbers(order, w)] for order in (whole, cut)]
        assert both[0] == both[1]


def test_cells_and_windows_are_shuffled_anew_each_time():
    order = StreamOrder(blocks_of([320]), 10, 0, 0, 1, 160)
    first, second = order.windows(0), order.windows(1)
    assert [len(first), len(second)] == [2, 2]
    cells = [[u.start for w in windows for u in w.units] for windows in (first, second)]
    assert cells[0] != cells[1] != sorted(cells[1])
    permutations = [order.permutation(w).tolist() for w in (*first, *second)]
    assert all(permutations[i] != permutations[j] for i in range(4) for j in range(i))
    one_window = StreamOrder(blocks_of([50]), 50, 0, 0, 1, 50)
    assert one_window.permutation(one_window.windows(0)[0]).tolist() != (
        one_window.permutation(one_window.windows(1)[0]).tolist()
    )


def test_no_more_than_a_window_is_read_ahead(tmp_path):
    """One in use, one that is ready; a reader may have the unit after it."""
    data = streamed(tmp_path / "set", numbered(400), 4)
    asked: list[Unit] = []

    def counting(place, manifest, units):
        for unit in units:
            asked.append(unit)
            yield from read_here(place, manifest, iter([unit]))

    rows = StreamBatches(replace(data, read=counting), 10, StreamOrder(data.manifest.blocks(), CELL, 0, 0, 1, 40))
    rows.host(0, 0, 1)
    time.sleep(0.3)
    assert sum(unit.rows for unit in asked) <= 2 * 40 + CELL
    rows.close()


def test_chunks_of_any_size_keep_labels_with_their_images(tmp_path):
    data = streamed(tmp_path / "set", numbered(200, classes=7), 3)

    def in_sevens(place, manifest, units):
        images, labels = (np.concatenate(c) for c in zip(*read_here(place, manifest, islice(units, 60)), strict=True))
        for i in range(0, len(images), 7):
            yield images[i : i + 7], labels[i : i + 7]

    rows = StreamBatches(replace(data, read=in_sevens), 10, StreamOrder(data.manifest.blocks(), CELL, 0, 0, 1, 33))
    seen = [rows.host(step, 0, 1) for step in range(20)]
    rows.close()
    assert Counter(n for images, _ in seen for n in numbers(images)) == Counter(range(200))
    assert all(labels.tolist() == [n % 7 for n in numbers(images)] for images, labels in seen)


def test_a_batch_larger_than_the_dataset(tmp_path):
    data = streamed(tmp_path / "set", numbered(5), 2)
    rows = StreamBatches(data, 20, StreamOrder(data.manifest.blocks(), CELL, 0, 0, 1, 100))
    assert Counter(numbers(rows.host(0, 0, 1)[0])) == Counter(list(range(5)) * 4)
    rows.close()


def test_a_shard_that_goes_missing_ends_the_run_with_its_name(tmp_path):
    data = streamed(tmp_path / "set", numbered(50), 5)
    (tmp_path / "set" / data.manifest.shards[3].file).unlink()
    rows = StreamBatches(data, 10, StreamOrder(data.manifest.blocks(), CELL, 0, 0, 1, 10))
    for _ in range(2):  # whoever asks again is told again
        with pytest.raises(DataError, match=r"shard-00003\.parquet cannot be read"):
            [rows.host(step, 0, 1) for step in range(5)]
    rows.close()


# ---------------------------------------------------------------- training

STREAM = {"data.feed": "stream", "data.shuffle_buffer": 100, "train.steps": 12, "train.checkpoint_every": 4}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("prepared") / "digits"
    return folder, write_shards(digits(), folder, 9)


class Interrupted(PlainSession):
    """Asked to stop at a step."""

    def __init__(self, at: int):
        super().__init__(CPU)
        self.left = at

    def should_stop(self) -> bool:
        self.left -= 1
        return self.left <= 0


def weights(folder: Path) -> dict[str, str]:
    return read_checkpoint_facts(checkpoint(folder)).files


@pytest.mark.parametrize("stop", [1, 5, 11])
def test_a_streamed_run_that_was_interrupted_ends_with_the_same_bits(tmp_path, prepared, stop):
    data = StreamedDataset(Location(prepared[0]), prepared[1])
    run = small(STREAM)
    go(run, tmp_path / "whole", data=data)
    notes: list[str] = []
    outcome = go(run, tmp_path / "parts", data=data, session=Interrupted(stop))
    assert (outcome.status, outcome.step) == ("stopped", stop)
    go(run, tmp_path / "parts", data=data, warn=notes.append)
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")
    assert len(notes) == 1
    assert "streaming goes on in epoch 1, window" in notes[0]
    assert f"the {stop * 8 % 100:,} images of that window that were seen are read again" in notes[0]


def test_the_window_counts(tmp_path, prepared):
    data = StreamedDataset(Location(prepared[0]), prepared[1])
    for window in (100, 700):
        go(small({**STREAM, "data.shuffle_buffer": window}), tmp_path / str(window), data=data)
    assert weights(tmp_path / "100") != weights(tmp_path / "700")


def test_data_in_memory_has_nothing_to_say_on_resuming(tmp_path):
    notes: list[str] = []
    go(small({"train.steps": 4}), tmp_path, session=Interrupted(2))
    go(small({"train.steps": 4}), tmp_path, warn=notes.append)
    assert notes == []


def test_another_number_of_workers_goes_on_and_says_what_it_means(tmp_path, prepared):
    data = StreamedDataset(Location(prepared[0]), prepared[1])
    go(small(STREAM), tmp_path, data=data, session=Interrupted(4))
    facts = checkpoint(tmp_path) / "meta.json"
    text = facts.read_text()
    assert '"workers": 1' in text
    facts.write_text(text.replace('"workers": 1', '"workers": 2'))  # as two workers would have left it
    notes: list[str] = []
    assert go(small(STREAM), tmp_path, data=data, warn=notes.append).status == "finished"
    assert notes == [
        "streaming goes on in epoch 1, window 1; 2 workers trained it before and 1 do now, so this epoch is dealt out "
        "anew: some of its images may come twice and some not at all"
    ]


def test_a_mapped_dataset_trains_to_the_same_bits_as_one_in_memory(tmp_path, prepared):
    mapped = map_shards(*prepared, tmp_path / "cache")
    again = map_shards(*prepared, tmp_path / "cache")
    left = {p.name for p in (tmp_path / "cache").iterdir()}
    assert left == {".lock", mapped.path.name, mapped.path.with_suffix(".json").name}, "nothing half-written"
    data = again.open()
    assert not data.images.flags.writeable
    assert np.array_equal(data.images, digits().images)
    assert np.array_equal(data.labels, digits().labels)
    go(small(), tmp_path / "mapped", data=data)
    go(small(), tmp_path / "resident")
    assert weights(tmp_path / "mapped") == weights(tmp_path / "resident")


def test_a_mapped_file_that_changed_is_made_again(tmp_path, prepared):
    mapped = map_shards(*prepared, tmp_path)
    whole = mapped.path.read_bytes()
    mapped.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"\.arrow cannot be mapped: .*; remove it"):
        mapped.open()
    raw = bytearray(whole)
    raw[len(raw) // 2] ^= 1
    mapped.path.write_bytes(raw)
    assert np.array_equal(map_shards(*prepared, tmp_path).open().images, digits().images)


def test_shards_that_are_not_the_manifests_are_not_mapped(tmp_path, prepared):
    folder, manifest = prepared
    with pytest.raises(DataError, match="does not match the manifest's digest"):
        map_shards(folder, manifest.model_copy(update={"digest": "0" * 64}), tmp_path / "cache")
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.slow
def test_a_file_of_more_than_two_gigabytes_of_pixels_can_be_mapped(tmp_path):
    """One image more than Arrow's usual limit; the pixels are zeros, and nothing is copied."""
    images = np.zeros((2**31 // 3072 + 1, 3, 32, 32), np.uint8)
    batch = table_of(0, images, None).to_batches()[0]
    with (tmp_path / "x").open("wb") as out, pa.ipc.new_file(out, batch.schema, options=LARGE) as writer:
        writer.write_batch(batch)
    back = pa.ipc.open_file(pa.memory_map(str(tmp_path / "x"))).get_batch(0)
    assert back.num_rows == len(images)
    (tmp_path / "x").unlink()


def test_references_see_all_images_in_order_however_they_are_kept(prepared):
    data = StreamedDataset(Location(prepared[0]), prepared[1])
    assert np.array_equal(np.concatenate(list(all_images(data))), digits().images)
    assert np.array_equal(np.concatenate(list(all_images(digits()))), digits().images)


# ---------------------------------------------------------------- on the device


def test_flips_mirror_half_of_the_images_by_seed_step_and_part():
    data = ArrayBatches(digits(), 256, 0)
    plain, flipping = Batches(data, 0, CPU), Batches(data, 0, CPU, flip=True)

    def mirrored(batches: Batches, *where: int) -> list[bool]:
        straight, _ = plain.batch(*where)
        x0, _ = batches.batch(*where)
        out = []
        for a, b in zip(straight, x0, strict=True):
            assert torch.equal(b, a) or torch.equal(b, a.flip(-1))
            out.append(not torch.equal(b, a))
        return out

    one = mirrored(flipping, 0, 0, 1)
    assert 90 < sum(one) < 166, "a fair coin: 128 +- 4.75 standard deviations"
    assert one == mirrored(flipping, 0, 0, 1)
    assert one != mirrored(flipping, 1, 0, 1)
    assert one != mirrored(Batches(data, 1, CPU, flip=True), 0, 0, 1)
    assert mirrored(flipping, 0, 0, 2) != mirrored(flipping, 0, 1, 2)


def test_dequantisation_fills_the_levels_and_keeps_the_image():
    data = ArrayBatches(digits(), 512, 0)
    pixels, _ = data.host(0, 0, 1)
    x0, _ = Batches(data, 0, CPU, dequantize=True).batch(0, 0, 1)
    within = (x0 + 1) * 128 - torch.from_numpy(pixels)
    assert x0.min() >= -1
    assert x0.max() < 1
    assert within.min() >= 0
    assert within.max() <= 1
    assert abs(float(within.mean()) - 0.5) < 0.01
    assert within.std() == pytest.approx(12**-0.5, abs=0.005)
    noisy = Batches(Same(), 0, CPU, dequantize=True)
    draws = [noisy.batch(*where)[0] for where in ((0, 0, 2), (0, 1, 2), (1, 0, 2))]
    assert not any(torch.equal(draws[i], draws[j]) for i in range(3) for j in range(i))
    assert torch.equal(draws[0], noisy.batch(0, 0, 2)[0])


class Same:
    """The same pixels at every step."""

    def host(self, step: int, part: int, parts: int):
        return np.full((4, 1, 8, 8), 100, np.uint8), None

    def close(self) -> None:
        pass


def test_open_batches_takes_flip_dequantize_and_window_from_the_run(prepared):
    data = StreamedDataset(Location(prepared[0]), prepared[1])
    run = small({**STREAM, "data.flip": True, "data.dequantize": True})
    batches = open_batches(run, data, PlainSession(CPU))
    assert (batches.flip, batches.dequantize) == (True, True)
    assert batches.rows.order.window_rows == 100
    batches.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["array", "stream"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_batches_that_are_fetched_ahead_to_a_gpu_are_those_of_the_cpu(prepared, kind, accumulate):
    data = StreamedDataset(Location(prepared[0]), prepared[1])
    sides = []
    for device in (CPU, torch.device("cuda:0")):
        order = StreamOrder(data.manifest.blocks(), CELL, 0, 0, 1, 300)
        rows = ArrayBatches(digits(), 64, 0) if kind == "array" else StreamBatches(data, 64, order)
        sides.append(Batches(rows, 0, device, mine=range(accumulate)))
    for step in (0, 1, 2, 7, 8, 3):  # in order, with a jump ahead and one back
        for part in range(accumulate):
            (x0, label), (moved, moved_label) = (side.batch(step, part, accumulate) for side in sides)
            assert moved.device.type == "cuda"
            assert torch.equal(moved.cpu(), x0)
            assert torch.equal(moved_label.cpu(), label)
    for side in sides:
        side.close()
