"""`cmray.load`: what a model does in Python is what the command line does, from any thread; a bad call is told."""

from __future__ import annotations

import itertools
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import CPU, checkpoint, go, small

import cmray
from cmray.core.errors import CheckpointError, CmrayError
from cmray.core.precond import to_pixels
from cmray.engine.model import load_model
from cmray.engine.searched import searched_times
from cmray.engine.trained import TrainedModel
from cmray.samplers import samplers
from cmray.tracking.records import Evaluation, Provenance, Search, SearchPoint


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> Path:
    """Trials of the experiment "e": a consistency model, a teacher, and a class-conditional consistency model."""
    folder = tmp_path_factory.mktemp("storage")
    runs = {
        "ct": small({"train.ema": [0.9, 0.5], "train.steps": 20}),
        "edm": small({"objective": {"name": "edm"}}),
        "labels": small({"net.class_conditional": True, "train.steps": 20}),
    }
    for name, run in runs.items():
        go(run, folder / "e" / name)
        (folder / "e" / name / "config.yaml").write_text("seed: 0\n")
    return folder


def load(storage: Path, name: str = "ct", **more) -> TrainedModel:
    return cmray.load(f"e/{name}", storage, device="cpu", **more)


# ---------------------------------------------------------------- sample


def test_samples_are_those_of_the_checkpoint_in_range(storage):
    model, plain = load(storage), load_model(checkpoint(storage / "e" / "ct"), CPU)
    found = model.sample(70, seed=3)
    assert (found.dtype, found.shape, found.device) == (torch.float32, (70, 1, 8, 8), CPU)
    assert torch.equal(found, plain.images(plain.sampler(1), range(3, 73)).clamp(-1, 1))
    assert torch.equal(model.sample(70, seed=3, uint8=True), to_pixels(found))
    assert torch.equal(model.sample(3, seed=[72, 3, 10]), found[[69, 0, 7]])
    assert (model.sample(1, seed=3, block=1) - found[:1]).abs().max() < 1e-5
    two = model.sample(2, times=[80, 1], seed=3)
    assert not torch.equal(two, found[:2])
    assert torch.equal(two, model.sample(2, times=[80, 1], nfe=2, sampler="multistep", seed=3))


def test_labels_are_taken_in_turn(storage):
    model = load(storage, "labels")
    threes, ones = model.sample(6, labels=3), model.sample(6, labels=[1])
    mixed = model.sample(6, labels=[3, 1])
    assert torch.equal(mixed[::2], threes[::2])
    assert torch.equal(mixed[1::2], ones[1::2])
    assert not torch.equal(threes, ones)
    assert model.num_classes == 10


def test_a_teacher_takes_18_heun_steps_or_any_sampler(storage):
    model = load(storage, "edm")
    assert (model.kind, model.sampler().title, model.sampler().nfe) == ("denoiser", "edm-heun", 35)
    assert torch.equal(model.sample(2), model.sample(2, nfe=35, sampler={"name": "edm-heun"}))
    assert not torch.equal(model.sample(2, nfe=9, sampler="euler"), model.sample(2, nfe=9))


def test_threads_share_a_model(storage):
    model = load(storage)
    expected = model.sample(40, times=[80, 10, 1])
    with ThreadPoolExecutor(8) as threads:
        loaded = list(threads.map(lambda _: load(storage), range(16)))
        found = list(threads.map(lambda i: loaded[i % 16].sample(5, seed=i, times=[80, 10, 1]), range(36)))
    assert {id(m) for m in loaded} == {id(model)}
    for i, images in enumerate(found):
        assert torch.equal(images, expected[i : i + 5]), i


# ---------------------------------------------------------------- denoise


def test_a_consistency_function_is_the_identity_at_sigma_min(storage):
    """f(x, sigma_min) = x exactly, whatever the network says   (Consistency Models, Eq. 5)."""
    model = load(storage)
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.denoise(x, model.sigma_min), x)
    assert not torch.equal(model.denoise(x, 1.0), x)


def test_denoise_takes_a_level_for_each_image_and_is_what_one_step_asks(storage):
    model = load(storage, "labels")
    x, labels = torch.randn(4, 1, 8, 8, dtype=torch.float64), [2, 5]
    levels = torch.tensor([0.1, 1.0, 10.0, 80.0])
    together = model.denoise(x, levels, labels)
    assert together.dtype == torch.float32
    for i, level in enumerate(levels):
        one = model.denoise(x[i : i + 1], float(level), labels[i % 2])
        torch.testing.assert_close(one, together[i : i + 1], rtol=1e-5, atol=1e-6)
    ct = load(storage)
    moments, images = ct.trajectory(3, seed=5)
    (start,) = moments
    torch.testing.assert_close(ct.denoise(start.noisy, 80.0), images, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- trajectory


@pytest.mark.parametrize("name", samplers.names())
def test_a_trajectory_leads_to_the_samples(storage, name):
    """Of every sampler: watching changes no bit, the levels descend from sigma_max, and D is asked where x is."""
    model = load(storage, "ct" if samplers.get(name).of_consistency else "edm")
    nfe = 1 if name == "one-step" else next(n for n in range(7, 12) if _takes(model, n, name))
    moments, images = model.trajectory(5, nfe=nfe, sampler=name, seed=2)
    assert torch.equal(images.clamp(-1, 1), model.sample(5, nfe=nfe, sampler=name, seed=2))
    levels = [m.sigma for m in moments]
    assert levels[0] == pytest.approx(80)
    assert all(a > b for a, b in itertools.pairwise(levels))
    for sigma, noisy, said in moments:
        assert noisy.shape == said.shape == (5, 1, 8, 8)
        torch.testing.assert_close(model.denoise(noisy, min(sigma, 80.0)), said, rtol=1e-4, atol=1e-5)
    if name in ("one-step", "multistep", "edm-heun", "euler"):
        assert torch.equal(moments[-1].said, images)


def _takes(model: TrainedModel, nfe: int, name: str) -> bool:
    try:
        model.sampler(nfe, sampler=name)
    except CmrayError:
        return False
    return True


# ---------------------------------------------------------------- what it is, and how it is found


def test_a_model_says_what_it_is(storage):
    model = load(storage)
    assert (model.name, model.shape, model.num_classes, model.kind) == ("e/ct", (1, 8, 8), 0, "consistency")
    assert (model.sigma_min, model.sigma_max, model.weights) == (0.002, 80.0, "ema 0.9")
    assert model.run.train.steps == 20
    assert model.searched() == {}
    assert repr(model) == "<cmray model e/ct: consistency, 1x8x8, ema 0.9 on cpu>"
    assert load(storage, weights="student").weights == "student"
    assert not torch.equal(load(storage, weights="ema 0.5").sample(1), model.sample(1))


def test_every_way_to_name_it_gives_the_same_object_until_it_is_trained_again(storage, tmp_path, monkeypatch):
    model = load(storage)
    for name in ("ct", storage / "e" / "ct", checkpoint(storage / "e" / "ct")):
        assert cmray.load(name, storage, "cpu").sample(1).equal(model.sample(1))
    monkeypatch.setenv("CMRAY_STORAGE", str(storage))
    assert cmray.load("e/ct", device="cpu") is model
    copy = Path(shutil.copytree(storage, tmp_path / "copy"))
    before = load(copy)
    shutil.rmtree(copy / "e" / "ct" / "checkpoints")
    go(small({"train.ema": [0.9, 0.5], "train.steps": 20, "seed": 1}), copy / "e" / "ct2")
    shutil.copytree(copy / "e" / "ct2" / "checkpoints", copy / "e" / "ct" / "checkpoints")
    assert load(copy).weights_sha256 != before.weights_sha256


WRONG = [
    ("ct", lambda m: m.sample(0), "n is 0"),
    ("ct", lambda m: m.sample(2, seed=[1]), "1 seeds are given for 2 images"),
    ("ct", lambda m: m.sample(1, seed=-1), "0 to 2**63 - 1"),
    ("ct", lambda m: m.sample(1, labels=3), "not class-conditional"),
    ("labels", lambda m: m.sample(1, labels=10), "labels are 0 to 9, found [10]"),
    ("labels", lambda m: m.sample(1, labels=[]), "labels are 0 to 9"),
    ("labels", lambda m: m.denoise(torch.zeros(1, 1, 8, 8), 1.0), "labels are missing"),
    ("ct", lambda m: m.sample(1, nfe=3, times=[80, 1]), "nfe is 3, but 2 times"),
    ("ct", lambda m: m.sample(1, times=[81, 1]), "at most sigma_max 80"),
    ("ct", lambda m: m.sample(1, times="best"), "times is 'best'"),
    ("ct", lambda m: m.sample(1, times="searched"), "no times were searched for e/ct (ema 0.9)"),
    ("edm", lambda m: m.sample(1, times="searched"), "e/edm is a denoiser"),
    ("edm", lambda m: m.sample(1, nfe=4, sampler="edm-heun"), "cannot take nfe 4"),
    ("ct", lambda m: m.sample(1, block=0), "block is 0"),
    ("ct", lambda m: m.trajectory(65), "64 images at most"),
    (
        "ct",
        lambda m: m.denoise(torch.zeros(1, 8, 8), 1.0),
        "x is float32 [1, 8, 8]; this model takes float [B, 1, 8, 8]",
    ),
    ("ct", lambda m: m.denoise(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), 1.0), "x is uint8"),
    ("ct", lambda m: m.denoise(torch.zeros(3, 1, 8, 8), torch.ones(2)), "sigma is [2]"),
    ("ct", lambda m: m.denoise(torch.zeros(1, 1, 8, 8), 0.001), "0.002 to 80.0"),
    ("ct", lambda m: m.denoise(torch.zeros(1, 1, 8, 8), float("nan")), "0.002 to 80.0"),
]


@pytest.mark.parametrize(("name", "call", "words"), WRONG, ids=[words for _, _, words in WRONG])
def test_what_cannot_be_is_one_sentence(storage, name, call, words):
    with pytest.raises(CmrayError) as error:
        call(load(storage, name))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


X = torch.zeros(1, 1, 8, 8)
#: (call, a part of the sentence); what is asked of a "ct" model
WRONG_KINDS = [
    (lambda m: m.sample(2.5), "n is 2.5; give a whole number"),
    (lambda m: m.sample("2"), "n is '2'; give a whole number"),
    (lambda m: m.sample(True), "n is True"),
    (lambda m: m.sample(None), "n is None"),
    (lambda m: m.sample([1]), "n is [1]"),
    (lambda m: m.sample(1, seed=2.0), "seed is 2.0"),
    (lambda m: m.sample(1, seed="4"), "seed is '4'"),
    (lambda m: m.sample(1, seed=None), "seed is None"),
    (lambda m: m.sample(2, seed=[1, 2.5]), "seed is 2.5"),
    (lambda m: m.sample(2, seed=torch.zeros(2)), "seed is tensor(0.)"),
    (lambda m: m.sample(2, seed=np.array([4])), "1 seeds are given for 2 images"),
    (lambda m: m.sample(1, seed={"a": 1}), "seed is {'a': 1}"),
    (lambda m: m.sample(1, seed=torch.rand(9, 9)), "seed is tensor"),
    (lambda m: m.sample(1, seed=[]), "0 seeds are given for 1 images"),
    (lambda m: m.sample(1, labels="3"), "labels is '3'"),
    (lambda m: m.sample(1, times=80), "times is 80; give a list of numbers"),
    (lambda m: m.sample(1, times=80.0), "times is 80.0"),
    (lambda m: m.sample(1, times=["a"]), "times is 'a'; give a number"),
    (lambda m: m.sample(1, times=[None]), "times is None"),
    (lambda m: m.sample(1, times=[]), "nfe is 0; a sample takes at least 1"),
    (lambda m: m.sample(1, times=[80, float("nan")]), "nan"),
    (lambda m: m.sample(1, times=[float("inf"), 1]), "inf"),
    (lambda m: m.sample(1, times=b"searched"), "times is b'searched'"),
    (lambda m: m.sample(1, nfe="2"), "nfe is '2'; give a whole number"),
    (lambda m: m.sample(1, nfe=2.0), "nfe is 2.0"),
    (lambda m: m.sample(1, nfe=0), "nfe"),
    (lambda m: m.sample(1, nfe=1, sampler=5), "found 5"),
    (lambda m: m.sample(1, nfe=1, sampler=["multistep"]), "a sampler is a name"),
    (lambda m: m.sample(1, nfe=1, sampler={"name": 5}), "a sampler is a name"),
    (lambda m: m.sample(1, nfe=1, sampler={}), "a sampler is a name"),
    (lambda m: m.sample(1, block=2.5), "block is 2.5; give a whole number"),
    (lambda m: m.sample(1, block="8"), "block is '8'"),
    (lambda m: m.trajectory(2.5), "n is 2.5"),
    (lambda m: m.trajectory(0), "n is 0"),
    (lambda m: m.trajectory("a"), "n is 'a'"),
    (lambda m: m.trajectory(1, times=5), "times is 5"),
    (lambda m: m.trajectory(1, seed="x"), "seed is 'x'"),
    (lambda m: m.denoise(np.zeros((1, 1, 8, 8)), 1.0), "x is a float64 ndarray; give a torch.Tensor"),
    (lambda m: m.denoise(None, 1.0), "x is a NoneType"),
    (lambda m: m.denoise([0.0], 1.0), "x is a list"),
    (lambda m: m.denoise(X[:0], 1.0), "x is float32 [0, 1, 8, 8]"),
    (lambda m: m.denoise(X, "a"), "sigma is 'a'"),
    (lambda m: m.denoise(X, None), "sigma is None"),
    (lambda m: m.denoise(X, [1.0, "a"]), "sigma is "),
    (lambda m: m.denoise(X, [[1.0], [1.0, 2.0]]), "sigma is "),
    (lambda m: m.denoise(X, 1 + 1j), "sigma is "),
    (lambda m: m.denoise(X, torch.full((9, 9), 0.5)), "sigma is [9, 9]"),
    (lambda m: m.denoise(X.expand(50, 1, 8, 8), torch.zeros(50)), "noise levels are 0.002 to 80.0"),
    (lambda m: m.edit("stroke", [[0.0]]), "images is a list; give a tensor or an array"),
    (lambda m: m.edit("stroke", "digits"), "images is a str"),
    (lambda m: m.edit("stroke", X[:0]), "images is without images"),
    (lambda m: m.edit("stroke", np.zeros((0, 1, 8, 8))), "images is without images"),
    (lambda m: m.edit("stroke", torch.tensor(1.0)), "give a tensor or an array [N,C,H,W]"),
    (lambda m: m.edit("stroke", np.array(1.0)), "give a tensor or an array [N,C,H,W]"),
    (lambda m: m.edit("stroke", np.array(["a"])), "give a tensor or an array [N,C,H,W]"),
    (lambda m: m.edit("stroke", X[0]), "the images are "),
    (lambda m: m.edit("stroke", X * 1j), "give a tensor or an array [N,C,H,W]"),
    (lambda m: m.edit("stroke"), "stroke needs images"),
    (lambda m: m.edit("stroke", X, times=5), "times is 5; give a list of numbers"),
    (lambda m: m.edit("stroke", X, times=[]), "noise levels must descend"),
    (lambda m: m.edit("stroke", X, times=[5, float("nan")]), "nan"),
    (lambda m: m.edit("stroke", X, steps=2.5), "steps is 2.5"),
    (lambda m: m.edit("stroke", X, num="3"), "num is '3'"),
    (lambda m: m.edit("stroke", X, num=0), "num is 0"),
    (lambda m: m.edit("stroke", X, seed=[1]), "seed is [1]"),
    (lambda m: m.edit("stroke", X, num=2, seed=2**63 - 1), "2**63 - 1"),
    (lambda m: m.edit("stroke", X, labels="a"), "labels is 'a'"),
    (lambda m: m.edit("stroke", X, level="high"), "stroke: level"),
    (lambda m: m.edit(5, X), "5"),
    (lambda m: m.edit(None, X), "None"),
]


@pytest.mark.parametrize(
    ("call", "words"), WRONG_KINDS, ids=[f"{i} {words}" for i, (_, words) in enumerate(WRONG_KINDS)]
)
def test_an_argument_of_another_kind_is_one_sentence(storage, call, words):
    with pytest.raises(CmrayError) as error:
        call(load(storage))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_numbers_of_numpy_and_torch_are_numbers(storage):
    model = load(storage)
    expected = model.sample(3, seed=4, times=[80, 1], block=8)
    for four in (np.int64(4), torch.tensor(4), np.array(4)):
        found = model.sample(np.int32(3), seed=four, nfe=np.int64(2), times=np.array([80.0, 1.0]), block=np.int64(8))
        assert torch.equal(found, expected)
    for seeds in (np.array([4, 5, 6]), torch.tensor([4, 5, 6]), (4, 5, 6), range(4, 7)):
        assert torch.equal(model.sample(3, seed=seeds, times=torch.tensor([80.0, 1.0]), block=8), expected)
    way = model.trajectory(np.int64(3), seed=np.int64(4), times=(80, np.float32(1)))[1]
    torch.testing.assert_close(way.clamp(-1, 1), expected, rtol=1e-5, atol=1e-5)
    labelled = load(storage, "labels")
    threes = labelled.sample(2, labels=3)
    for three in (np.int64(3), torch.tensor(3), np.array([3]), torch.tensor([3, 3])):
        assert torch.equal(labelled.sample(2, labels=three), threes)
    edited = model.edit("stroke", X, num=2, seed=4, times=[2.0], uint8=True)
    assert torch.equal(model.edit("stroke", X.numpy(), num=np.int64(2), seed=torch.tensor(4), times=np.array([2.0]),
                                  uint8=True), edited)  # fmt: skip


def test_the_last_seeds_can_be_edited_with(storage):
    model = load(storage)
    last = model.edit("stroke", X, num=2, seed=2**63 - 2)
    assert torch.equal(last[:, 1:], model.edit("stroke", X, num=1, seed=2**63 - 1))


@pytest.mark.parametrize("run", [None, 5, ["e", "ct"], b"e/ct"])
def test_a_run_that_is_no_name_is_one_sentence(storage, run):
    with pytest.raises(CmrayError, match="give EXPERIMENT/TRIAL, a run id, or a folder"):
        cmray.load(run, storage)


def test_what_is_not_there_is_one_sentence(storage):
    with pytest.raises(CmrayError, match="did you mean 'e/labels'"):
        load(storage, "lables")
    with pytest.raises(CheckpointError, match=r"has no weights 'ema 0.1'; it has: student, ema 0.9, ema 0.5"):
        load(storage, weights="ema 0.1")
    with pytest.raises(CmrayError, match="device 'tpu9' cannot be used"):
        cmray.load("e/ct", storage, device="tpu9")


# ---------------------------------------------------------------- searched times


def search(
    nfe: int, second: float, value: float, *, key: str, n: int = 64, sha: str = "w", when: float = 0.0
) -> Search:
    times = [80.0, *(second / 10**i for i in range(nfe - 1))]
    return Search(
        key=key, nfe=nfe, times=times, value=value, points=[SearchPoint(index=0, sigma=second, value=value)],
        rounds=[1], provenance=provenance(times, n, 1, sha, False), seconds=1, time=when,
    )  # fmt: skip


def provenance(times: list[float], n: int, seed: int, sha: str, searched: bool) -> Provenance:
    return Provenance(
        metric="fd/digits", extractor="digits", extractor_sha256="x", reference_sha256="r", dataset="digits",
        split="all", reference_n=1797, n=n, seed_first=seed, seed_block=32, sampler="multistep", nfe=len(times),
        times=times, weights="ema 0.9", weights_sha256=sha, searched=searched,
    )  # fmt: skip


def keep(folder: Path, *records: Search | Evaluation) -> None:
    for record in records:
        place = folder / ("searches" if isinstance(record, Search) else "evaluations")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{record.key}.json").write_text(record.model_dump_json())


def number(of: Search, value: float, n: int = 500) -> Evaluation:
    p = provenance(of.times, n, 99, of.provenance.weights_sha256, True)
    return Evaluation(key=f"{of.key}-{n}", value=value, provenance=p, seconds=1, time=0)


def test_the_best_searched_times_are_the_best_reported_ones(tmp_path):
    a, b = search(2, 0.8, 3.0, key="a"), search(2, 2.5, 2.0, key="b")
    keep(tmp_path, a, b)
    assert searched_times(tmp_path, "w")[2].times == (80.0, 2.5), (
        "the search's own values decide where nothing else does"
    )
    keep(tmp_path, number(a, 4.0), number(b, 5.0))
    best = searched_times(tmp_path, "w")[2]
    assert (best.times, best.value, best.n, best.reported) == ((80.0, 0.8), 4.0, 500, True)
    keep(tmp_path, search(2, 7.0, 0.1, key="c"))
    assert searched_times(tmp_path, "w")[2].times == (80.0, 0.8), (
        "a value that is not reported is not compared with them"
    )
    keep(tmp_path, number(b, 3.9, n=9000))
    assert searched_times(tmp_path, "w")[2].times == (80.0, 2.5), "more samples say more"


def test_searches_of_other_weights_and_budgets_are_others(tmp_path):
    keep(
        tmp_path, search(2, 0.8, 3.0, key="a"), search(3, 2.0, 9.0, key="b"), search(2, 0.1, 1.0, key="c", sha="other")
    )
    found = searched_times(tmp_path, "w")
    assert {nfe: t.times for nfe, t in found.items()} == {2: (80.0, 0.8), 3: (80.0, 2.0, 0.2)}
    assert searched_times(tmp_path, "unknown") == {}


def test_values_of_different_protocols_are_never_compared(tmp_path):
    """A search on few samples with a low value does not beat one on many."""
    keep(tmp_path, search(2, 0.8, 3.0, key="a", n=10_000), search(2, 2.5, 1.0, key="b", n=64, when=5.0))
    assert searched_times(tmp_path, "w")[2].times == (80.0, 0.8)
    keep(tmp_path, search(2, 5.0, 2.9, key="d", n=10_000))
    assert searched_times(tmp_path, "w")[2].times == (80.0, 5.0)


def test_of_protocols_with_as_many_samples_the_one_that_was_searched_last_counts(tmp_path):
    """Their values are of different references and cannot be compared: when they were made is all that tells."""

    def by(reference: str, of: Search) -> Search:
        return of.model_copy(update={"provenance": of.provenance.model_copy(update={"reference_sha256": reference})})

    old, new = search(2, 0.8, 1.0, key="a", when=3.0), search(2, 2.5, 9.0, key="b", when=5.0)
    keep(tmp_path, old, by("other", new))
    assert searched_times(tmp_path, "w")[2].times == (80.0, 2.5)
    keep(tmp_path, search(2, 7.0, 2.0, key="c", when=1.0), by("other", search(2, 6.0, 10.0, key="d", when=2.0)))
    assert searched_times(tmp_path, "w")[2].times == (80.0, 2.5), "the newest of a protocol says when it was used last"
    keep(tmp_path, search(2, 7.0, 2.0, key="e", when=6.0))
    assert searched_times(tmp_path, "w")[2].times == (80.0, 0.8), "and then the lowest of its values counts"
