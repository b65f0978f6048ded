"""Chunks that are cut for a wide pool say what whole ones do, to the bit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from small_run import CPU, digits
from test_parts import IMAGES, Pixels

from cmray.config.metric import parse_metric
from cmray.engine.evaluator import BLOCKS_PER_CHUNK, ImagesTask, InlinePool, chunks, image_chunks
from cmray.engine.images import ImageSet, find_images
from cmray.engine.measure import FINE_DIM, Gathered, Wanted
from cmray.engine.pieces import cut, joined
from cmray.engine.references import Against, references_for
from cmray.engine.results import evaluate_images

WANTED = Wanted("digits", "digits", ())


class Wide(InlinePool):
    """Says that it works on many calls at once, and may be interrupted after some."""

    def __init__(self, size: int, calls: int = 10**9):
        super().__init__(CPU)
        self.size, self.left, self.asked = size, calls, []

    def run(self, calls, got=lambda *_: None):
        self.asked.append([task.count for _, (task, *_) in calls])

        def counted(index, result):
            got(index, result)
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

        return super().run(calls, counted)


@pytest.mark.parametrize("count", [1, 100, 256, 257, 1000, 2048, 2049, 5000])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_pieces_cover_their_chunks_in_whole_blocks(tmp_path, count, size):
    images = ImageSet("npz", "x", "x", "all", count, (1, 8, 8), "digest")
    whole = image_chunks(images, [WANTED], 256, tmp_path)
    pieces = cut(whole, size)
    assert len(pieces) == len(whole)
    for chunk, some in zip(whole, pieces, strict=True):
        starts = [p.first for p in some] + [chunk.first + chunk.count]
        assert starts[0] == chunk.first
        assert [p.count for p in some] == [b - a for a, b in itertools.pairwise(starts)]
        assert all((p.first - chunk.first) % 256 == 0 for p in some)
        assert len({p.keep for p in some}) == len(some)
        assert all(p.fine for p in some) or some == [chunk]
    tasks = sum(map(len, pieces))
    blocks = -(-count // 256)
    assert tasks >= min(blocks, 2 * size) if size > 1 else tasks == len(whole)
    if len(whole) >= 2 * size:
        assert pieces == [[chunk] for chunk in whole], "there were enough"
    samples = chunks(tmp_path, {}, [WANTED], 1000, count, 256, keep=tmp_path)
    assert [[(p.first_seed - 1000, p.count) for p in some] for some in cut(samples, size)] == [
        [(p.first, p.count) for p in some] for some in pieces
    ]


@pytest.mark.parametrize("dim", [FINE_DIM, FINE_DIM + 1])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_what_pieces_say_is_what_the_chunk_says(dim, size):
    wanted = Wanted("pixels", "pixels", ("features",))
    blocks = list(IMAGES.split(15))

    def said(some, fine):
        gathered = Gathered(Pixels(dim), wanted, fine)
        for block in some:
            gathered.add(block)
        return gathered.arrays()

    expected = said(blocks, False)
    found = joined(said(blocks[i : i + size], True) for i in range(0, len(blocks), size))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    again = joined([expected])
    for name, array in expected.items():
        np.testing.assert_array_equal(again[name], array)


def test_numbers_do_not_depend_on_how_many_work(tmp_path):
    metrics = [parse_metric("fd/digits"), parse_metric("recall/digits")]
    np.savez(tmp_path / "x.npz", arr_0=digits().images[:1000].transpose(0, 2, 3, 1))
    images = find_images(str(tmp_path / "x.npz"), tmp_path, "--images")
    against = Against(find_images("digits", tmp_path, "--reference-data"))
    values, asked = {}, {}
    for size in (1, 2, 7):
        pool, storage = Wide(size), tmp_path / str(size)
        references = references_for(metrics, against, images.shape, storage, pool)
        found = evaluate_images(images, metrics, references, storage, pool)
        values[size] = [(e.value, e.low, e.high, e.provenance.reference_sha256) for e in found]
        asked[size] = pool.asked[-1]
    assert values[1] == values[2] == values[7]
    assert asked == {1: [1000], 2: [256, 256, 256, 232], 7: [256, 256, 256, 232]}


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_an_interrupted_pool_may_be_followed_by_one_of_another_size(tmp_path, first, then):
    metric = parse_metric("fd/digits")
    np.savez(tmp_path / "x.npz", arr_0=np.resize(digits().images, (4000, 1, 8, 8)).transpose(0, 2, 3, 1))
    images = find_images(str(tmp_path / "x.npz"), tmp_path, "--images")
    against = Against(find_images("digits", tmp_path, "--reference-data"))
    references = references_for([metric], against, images.shape, tmp_path)
    expected = evaluate_images(images, [metric], references, tmp_path / "expected", InlinePool(CPU))
    with pytest.raises(KeyboardInterrupt):
        evaluate_images(images, [metric], references, tmp_path, Wide(first, calls=1))
    found = evaluate_images(images, [metric], references, tmp_path, Wide(then))
    assert [(e.value, e.low, e.high) for e in found] == [(e.value, e.low, e.high) for e in expected]


def test_a_block_is_never_cut():
    task = ImagesTask(ImageSet("npz", "x", "x", "all", 900, (1, 8, 8), "digest"), (WANTED,), 0, 900, 1000)
    assert cut([task], 64) == [[task]]
    assert BLOCKS_PER_CHUNK == 8
