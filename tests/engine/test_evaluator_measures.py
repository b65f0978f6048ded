"""Several measures from one pass over the samples: the same bits whoever works, whatever else is wanted, and after
any interruption."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import CPU, checkpoint, go, small

from cmray.config.data_facts import facts_of
from cmray.config.metric import parse_metric
from cmray.core.errors import ConfigError, DataError, StorageError
from cmray.core.rng import SEED_BASE
from cmray.datasets import datasets
from cmray.datasets.whole import load_whole, write_shards
from cmray.engine.evaluator import Evaluator, InlinePool
from cmray.engine.images import image_set_of
from cmray.engine.model import make_sampler
from cmray.engine.references import Against, check_metrics, references_for
from cmray.engine.results import Measurement, evaluate, is_recorded, recorded, subject
from cmray.engine.session import one_thread
from cmray.metrics.reference import read_published
from cmray.tracking.records import Evaluation

SHAPE = (1, 8, 8)
NAMES = [
    "fd/digits", "precision/digits", "recall/digits", "density/digits", "coverage/digits", "is/digits", "sfid/digits",
    {"name": "kid/digits", "subset_size": 100, "subsets": 5}, {"name": "fd-infinity/digits", "points": 3},
]  # fmt: skip
METRICS = [parse_metric(name) for name in NAMES]


class Several(InlinePool):
    """As many evaluators as asked for; calls go to any of them, in any order. It counts the chunks really worked."""

    def __init__(self, size: int = 1, shuffle: int | None = None, stop_after: int = 10**9):
        self.evaluators = [Evaluator(CPU) for _ in range(size)]
        self.shuffle, self.stop_after = shuffle, stop_after
        self.calls = self.worked = 0

    def run(self, calls, got=lambda *_: None):
        order = list(enumerate(calls))
        if self.shuffle is not None:
            random.Random(self.shuffle).shuffle(order)
        results = [None] * len(calls)
        for (i, (method, arguments)), evaluator in zip(order, itertools.cycle(self.evaluators), strict=False):
            self.worked += not (arguments[0].keep and Path(arguments[0].keep).is_file())
            with one_thread():
                results[i] = getattr(evaluator, method)(*arguments)
            self.calls += 1
            got(i, results[i])
            if self.calls == self.stop_after:
                raise KeyboardInterrupt
        return results


class Counting(Evaluator):
    """Counts the chunks that were really sampled."""

    sampled = 0

    def _said(self, task, images):
        def counted():
            self.sampled += 1
            yield from images

        return super()._said(task, counted())


def keys(who, references):
    return {m.key(references) for m in wanted(who, METRICS[:1])}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(subject, its data as images, storage) of a small consistency model on prepared digits."""
    storage = tmp_path_factory.mktemp("storage")
    run = small({"train.steps": 200, "objective.num_sigmas": 18, "train.batch_size": 64})
    write_shards(load_whole(datasets.parse("digits")), storage / "datasets" / "digits", 3)
    go(run, storage / "trial")
    who = subject(storage / "trial", checkpoint(storage / "trial"))
    return who, image_set_of(facts_of(run.data, storage)), storage


@pytest.fixture(scope="module")
def references(place):
    _, images, storage = place
    return references_for(METRICS, Against(images), SHAPE, storage)


@pytest.fixture
def who(place, tmp_path):
    return replace(place[0], folder=tmp_path)


def wanted(who, metrics=METRICS, n=300, block=16, **more):
    return [
        Measurement(who, make_sampler(who.run, nfe), n, SEED_BASE["report"], block, metric=m, **more)
        for nfe in (1, 2)
        for m in metrics
    ]


def plain(record: Evaluation | None) -> dict:
    assert record is not None
    return record.model_dump(exclude={"seconds", "time"})


def measured(who, references, pool, metrics=METRICS, **more) -> list[dict]:
    asked = wanted(who, metrics, **more)
    evaluate(asked, references, pool)
    return [plain(recorded(m, references)) for m in asked]


@pytest.fixture(scope="module")
def expected(place, references, tmp_path_factory):
    return measured(replace(place[0], folder=tmp_path_factory.mktemp("expected")), references, Several())


def test_all_measures_come_from_one_pass(who, references, expected):
    pool = Several()
    assert measured(who, references, pool) == expected
    assert pool.calls == 2 * 3, "two samplers, three chunks of 8 blocks of 16"
    assert not (who.folder / "evaluations" / "parts").exists(), "what chunks gave is not kept for ever"


def test_a_measure_gives_the_same_alone(who, references, expected):
    alone = [r for metric in METRICS for r in measured(who, references, Several(), [metric])]
    assert {r["key"]: r for r in alone} == {r["key"]: r for r in expected}
    assert len(alone) == len(expected)


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("shuffle", [0, 1])
def test_any_number_of_workers_in_any_order_gives_the_same_bits(who, references, expected, size, shuffle):
    assert measured(who, references, Several(size, shuffle)) == expected


PAIRS = [
    ("fd/digits,is/digits", "fd/digits,is/digits"),
    ("fd/digits,is/digits", "recall/digits,coverage/digits"),
]


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
def test_two_processes_that_measure_one_model_do_not_disturb_each_other(place, references, tmp_path, pair):
    def start(folder, names):
        worker = Path(__file__).with_name("measure_worker.py")
        command = [sys.executable, worker, place[2], place[0].checkpoint, folder, names]
        path = os.pathsep.join([str(worker.parents[1]), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    processes = [start(tmp_path / "together", names) for names in pair]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        told = [process.communicate(timeout=120) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], [err for _, err in told]
    finally:
        for process in processes:
            process.kill()
    for i, (names, (out, _)) in enumerate(zip(pair, told, strict=True)):
        metrics = [parse_metric(name) for name in names.split(",")]
        alone = measured(replace(place[0], folder=tmp_path / f"alone-{i}"), references, Several(), metrics, n=2000)
        # samples and statistics are the same bits; numpy's own threads, of which a worker has one, round the estimate
        assert json.loads(out) == pytest.approx([r["value"] for r in alone], rel=1e-12)
    assert not (tmp_path / "together" / "evaluations" / "parts").exists()
    assert not list((tmp_path / "together").glob("reference/*/parts*"))


@pytest.mark.parametrize("size", [2, 7])
def test_so_does_the_reference(place, references, tmp_path, size):
    again = references_for(METRICS, Against(place[1]), SHAPE, tmp_path, Several(size, shuffle=3))
    for one, other in zip(again, references, strict=True):
        assert one.sha256 == other.sha256
        np.testing.assert_array_equal(one.sample.features, other.sample.features)
        assert one.sample.spatial.sha256() == other.sample.spatial.sha256()


def test_what_was_sampled_before_an_interruption_is_not_sampled_again(who, references, expected):
    with pytest.raises(KeyboardInterrupt):
        measured(who, references, Several(stop_after=5))
    asked = wanted(who)
    made = [is_recorded(m, references) for m in asked]
    assert made == [True] * len(METRICS) + [False] * len(METRICS), "the first sampler's three chunks were there"
    parts = list((who.folder / "evaluations" / "parts").glob("*/*.npz"))
    assert len(parts) == 2
    rest = Several()
    assert measured(who, references, rest) == expected
    assert rest.worked == 1
    assert not (who.folder / "evaluations" / "parts").exists()


def test_a_restart_that_wants_less_uses_what_is_there(who, references, expected):
    with pytest.raises(KeyboardInterrupt):
        measured(who, references, Several(stop_after=2))
    rest = Several()
    rest.evaluators = [Counting(CPU)]
    assert measured(who, references, rest, METRICS[:1]) == [r for r in expected if r["key"] in keys(who, references)]
    assert rest.evaluators[0].sampled == 4, "two of six chunks were there"
    assert not (who.folder / "evaluations" / "parts").exists()


def test_a_restart_that_wants_more_of_the_samples_works_them_again(who, references, expected):
    with pytest.raises(KeyboardInterrupt):
        measured(who, references, Several(stop_after=2), METRICS[:1])
    rest = Several()
    assert measured(who, references, rest) == expected
    assert rest.calls == 6


def test_a_measure_that_refuses_does_not_take_the_others_with_it(who, references):
    bad = parse_metric({"name": "kid/digits", "subset_size": 301})
    with pytest.raises(DataError, match="subset_size=301"):
        measured(who, references, Several(), [bad, METRICS[0]])
    first, good = wanted(who, [bad, METRICS[0]])[:2]
    assert not is_recorded(first, references)
    assert is_recorded(good, references)
    assert not (who.folder / "evaluations" / "parts").exists(), "nobody waits for them any more"


def test_refused_blocks_of_seeds_leave_nothing_and_are_told_once(who, references):
    bad = parse_metric({"name": "kid/digits", "subset_size": 101})
    with pytest.raises(DataError, match="subset_size=101"):
        measured(who, references, Several(), [bad, METRICS[0]], n=100, seed_blocks=2)
    assert [is_recorded(m, references) for m in wanted(who, [bad, METRICS[0]], n=100, seed_blocks=2)] == [0, 1, 0, 1]
    assert not (who.folder / "evaluations" / "parts").exists()


def test_a_record_tells_what_the_number_depends_on(expected, place, references):
    by = {r["provenance"]["metric"]: r for r in expected[: len(METRICS)]}
    fd, kid, score = by["fd/digits"], by["kid/digits"], by["is/digits"]
    assert fd["low"] < fd["value"] < fd["high"]
    assert fd["error"] > 0
    assert "biased" in fd["note"]
    assert fd["provenance"]["reference_sha256"] == references[0].sha256
    assert fd["provenance"]["reference_n"] == 1797
    assert kid["provenance"]["options"] == {"subset_size": 100, "subsets": 5}
    assert (score["provenance"]["reference_sha256"], score["provenance"]["reference_n"]) == ("", 0)
    assert {name: r["better"] for name, r in by.items()} == {m.name: m.measure.better for m in METRICS}
    assert fd["provenance"]["weights"] == place[0].weights


def test_a_record_tells_how_the_extractor_resizes(place, who, tmp_path):
    class Net(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)

    torch.jit.script(Net()).save(tmp_path / "net.pt")
    found = []
    for resizer in ("clean", "bilinear"):
        extractor = {"name": "torchscript", "path": str(tmp_path / "net.pt"), "size": 4, "resizer": resizer}
        metrics = [parse_metric({"measure": "fd", "extractor": extractor})]
        theirs = references_for(metrics, Against(place[1]), SHAPE, tmp_path)
        found.append(measured(who, theirs, Several(), metrics, n=64)[0])
    assert [r["provenance"]["resizer"] for r in found] == ["clean", "bilinear"]
    assert found[0]["key"] != found[1]["key"]


@pytest.mark.parametrize("text", ["{", "", '{"key": "k"}', "\xff"])
def test_a_damaged_record_is_one_line(who, references, text):
    (asked, _) = wanted(who, METRICS[:1])
    path = asked.record_path(references)
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(StorageError, match=rf"{path.name} is no Evaluation: ") as error:
        recorded(asked, references)
    assert "\n" not in str(error.value)


def test_a_record_of_an_older_version_is_read():
    old = {
        "key": "k", "value": 2.5, "seconds": 1.0, "time": 0.0,
        "provenance": {
            "metric": "fd/digits", "extractor": "digits", "extractor_sha256": "a", "reference_sha256": "b",
            "dataset": "digits", "split": "all", "reference_n": 1797, "n": 10, "seed_first": 0, "seed_block": 256,
            "sampler": "one-step", "nfe": 1, "times": [80.0], "weights": "ema 0.9", "weights_sha256": "c",
            "searched": False,
        },
    }  # fmt: skip
    record = Evaluation.model_validate_json(json.dumps(old))
    assert (record.low, record.spread, record.best) == (None, None, None)


def test_blocks_of_seeds_are_measured_as_if_each_were_alone(who, references):
    (one, _) = measured(who, references, Several(), METRICS[:1], n=100, seed_blocks=3)
    sampler = make_sampler(who.run, 1)
    alone = [Measurement(who, sampler, 100, SEED_BASE["report"] + i * 100, 16, metric=METRICS[0]) for i in range(3)]
    evaluate(alone, references, Several())
    values = [recorded(m, references).value for m in alone]
    assert [b["seed_first"] for b in one["blocks"]] == [m.seed_first for m in alone]
    assert [b["value"] for b in one["blocks"]] == values
    record = recorded(wanted(who, METRICS[:1], n=100, seed_blocks=3)[0], references)
    assert record.value == pytest.approx(np.mean(values), rel=1e-12)
    assert record.spread == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert record.best == min(values)
    assert record.provenance.seed_blocks == 3
    assert len(set(values)) == 3


def test_other_weights_are_another_number(place, who, references):
    student = replace(subject(who.folder, place[0].checkpoint, "student"), folder=who.folder)
    ema, other = (measured(w, references, Several(), METRICS[:1])[0] for w in (who, student))
    assert other["provenance"]["weights"] == "student"
    assert other["provenance"]["weights_sha256"] != ema["provenance"]["weights_sha256"]
    assert other["value"] != ema["value"]


def test_samples_that_are_not_finite_name_the_model(place, who, references):
    class Broken(Evaluator):
        def _model(self, checkpoint, weights=None):
            model = super()._model(checkpoint, weights)
            with torch.no_grad():
                next(iter(model.net.parameters())).fill_(float("nan"))
            return model

    pool = Several()
    pool.evaluators = [Broken(CPU)]
    with pytest.raises(
        DataError, match=r"step-\d+ \(ema .*\): 16 of 16 samples hold NaN .*first has seed 3298534883328"
    ):
        measured(who, references, pool, METRICS[:1])


# ---------------------------------------------------------------- references


def published(path, reference, **more):
    s = reference.statistics
    np.savez(path, mu=s.mean, sigma=s.covariance, **more)
    return read_published(path)


def test_published_statistics_of_the_same_images_give_the_same_distance(place, who, references, tmp_path):
    side = references[0].sample
    file = published(tmp_path / "adm.npz", references[0], mu_s=side.spatial.mean, sigma_s=side.spatial.covariance)
    metrics = [METRICS[0], METRICS[6]]
    against = Against(published=file)
    check_metrics(metrics, against, SHAPE, 300, 16)
    theirs = references_for(metrics, against, SHAPE, tmp_path)
    for one, other in zip(
        measured(who, theirs, Several(), metrics), measured(who, references, Several(), metrics), strict=True
    ):
        assert one["value"] == pytest.approx(other["value"], rel=1e-9)
        p = one["provenance"]
        assert (p["dataset"], p["split"], p["reference_n"]) == ("adm.npz", "published", None)
        assert p["reference_sha256"] == file.sha256


@pytest.mark.parametrize("name", ["kid/digits", "precision/digits", "coverage/digits", "sfid/digits"])
def test_published_statistics_without_what_a_measure_needs_are_refused(references, tmp_path, name):
    file = published(tmp_path / "fid.npz", references[0])
    needed = "spatial" if name == "sfid/digits" else "features"
    with pytest.raises(
        ConfigError, match=rf"{name} needs the {needed} of the reference, but .*fid.npz holds mu and sigma"
    ):
        check_metrics([parse_metric(name)], Against(published=file), SHAPE, 5000, 256)


BROKEN = {
    "other arrays": ({"arr_0": np.zeros((2, 2))}, "holds arr_0; statistics are mu"),
    "shapes": ({"mu": np.zeros(3), "sigma": np.zeros((3, 2))}, r"mu and sigma are \[3\] and \[3, 2\]"),
    "not finite": ({"mu": np.array([np.nan]), "sigma": np.eye(1)}, "must be finite"),
    "integers": ({"mu": np.array([1]), "sigma": np.eye(1)}, "must be finite floating-point"),
    "not symmetric": ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0.4, 1.0]])}, "must be symmetric.* 0.1$"),
    "negative": ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2.0], [2.0, 1.0]])}, "no covariance: .* eigenvalue, -1$"),
    "spatial shapes": ({"mu": np.zeros(1), "sigma": np.eye(1), "mu_s": np.zeros(2), "sigma_s": np.eye(3)}, "mu_s"),
}


@pytest.mark.parametrize(("arrays", "said"), BROKEN.values(), ids=BROKEN)
def test_broken_published_statistics_are_one_line(tmp_path, arrays, said):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=said) as error:
        read_published(tmp_path / "x.npz")
    assert "\n" not in str(error.value)
    assert "x.npz" in str(error.value)


def test_published_covariances_may_be_rounded_and_of_low_rank(tmp_path):
    rows = np.random.default_rng(0).normal(size=(20, 64)) * np.linspace(1, 30, 64)
    sigma = np.cov(rows.T).astype(np.float32)
    sigma[0, 1] *= 1 + 1e-6
    np.savez(tmp_path / "x.npz", mu=rows.mean(0).astype(np.float32), sigma=sigma)
    assert read_published(tmp_path / "x.npz").statistics.dim == 64


def test_what_is_no_npz_is_one_line(tmp_path):
    (tmp_path / "x.npz").write_text("mu")
    np.save(tmp_path / "y.npy", np.zeros(3))
    for name in ("x.npz", "y.npy", "nothing.npz"):
        with pytest.raises(DataError, match=name):
            read_published(tmp_path / name)


def test_statistics_of_other_features_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", mu=np.zeros(32), sigma=np.eye(32))
    with pytest.raises(DataError, match="32-d features, but extractor 'digits' gives 64-d"):
        references_for(METRICS[:1], Against(published=read_published(tmp_path / "x.npz")), SHAPE, tmp_path)


def test_a_damaged_reference_is_made_again(place, references, tmp_path):
    images, metrics = place[1], [METRICS[1]]
    references_for(metrics, Against(images), SHAPE, tmp_path)
    (file,) = tmp_path.glob("reference/*/features.npy")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    pool = Several()
    (found,) = references_for(metrics, Against(images), SHAPE, tmp_path, pool)
    np.testing.assert_array_equal(found.sample.features, references[0].sample.features)
    assert pool.calls
    unused = Several()
    references_for(metrics, Against(images), SHAPE, tmp_path, unused)
    assert not unused.calls, "made once"


def test_a_reference_grows_with_what_is_needed(place, tmp_path):
    images = place[1]
    (first,) = references_for(METRICS[:1], Against(images), SHAPE, tmp_path)
    assert first.sample.features is None
    references_for([METRICS[6]], Against(images), SHAPE, tmp_path)
    (third,) = references_for([METRICS[1]], Against(images), SHAPE, tmp_path)
    assert third.sample.features.shape == (1797, 64)
    assert third.sha256 == first.sha256
    unused = Several()
    references_for([METRICS[6], METRICS[1]], Against(images), SHAPE, tmp_path, unused)
    assert not unused.calls


SIZES = [
    ("kid/digits", 500, "subset_size is 1,000, but there are 500 samples and 1,797 images of digits"),
    ({"name": "kid/digits", "subset_size": 1798}, 5000, "subset_size is 1,798, .* 5,000 samples and 1,797 images"),
    ("is/digits", 9, "splits is 10, but there are 9 samples"),
    ({"name": "precision/digits", "k": 1797}, 5000, "k is 1,797"),
    ("fd-infinity/digits", 64, "points is 5, but there are 64 samples in 4 blocks"),
]


@pytest.mark.parametrize(("metric", "n", "said"), SIZES)
def test_too_few_images_are_told_before_anything_is_sampled(place, metric, n, said):
    with pytest.raises(DataError, match=said):
        check_metrics([parse_metric(metric)], Against(place[1]), SHAPE, n, 16)


def test_a_reference_of_other_images_is_refused(place):
    with pytest.raises(DataError, match=r"samples are 3x8x8 .* but digits has images of 1x8x8"):
        check_metrics(METRICS[:1], Against(place[1]), (3, 8, 8), 100, 16)
    with pytest.raises(ConfigError, match="fd/digits compares with a reference, but there is none"):
        check_metrics(METRICS[:1], Against(), SHAPE, 100, 16)
