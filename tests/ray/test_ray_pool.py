"""On a real Ray: the pool's numbers do not depend on where and how often they are made, and data arrives whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
from cli_run import CT, apart, good, here, write

from cmray.cluster.connect import connected, local_capacity
from cmray.cluster.data import resident_dataset
from cmray.cluster.evaluate import EvaluatorPool
from cmray.cluster.resources import DATA_CPUS, Capacity
from cmray.core.errors import CheckpointError, CmrayError, DataError
from cmray.datasets import ImageDataset
from cmray.datasets.manifest import MANIFEST
from cmray.datasets.shards import read_shards
from cmray.datasets.whole import write_shards
from cmray.engine.evaluator import Call, InlinePool, chunks
from cmray.engine.measure import Wanted
from cmray.engine.session import default_device, prepare_process


@pytest.fixture(scope="module")
def started() -> Iterator[Capacity]:
    children = set(psutil.Process().children(recursive=True))
    with connected(None) as capacity:
        yield capacity
    _, alive = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - children, timeout=20)
    assert not alive, f"Ray was shut down, but there is still {alive}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, str]:
    """Storage folder, EXPERIMENT/TRIAL."""
    folder = tmp_path_factory.mktemp("trained")
    file = write(folder / "run.yaml", CT)
    told = good(here("train", file, "--storage", folder / "storage", "--tracking-uri", "none", "--json")).json
    return folder / "storage", told["trial"]


@pytest.fixture(scope="module")
def calls(trained) -> list[Call]:
    """Eight chunks of a measurement that takes a while, and some images."""
    storage, trial = trained
    (checkpoint,) = (storage / trial / "checkpoints").iterdir()
    sigmas = tuple(float(s) for s in np.geomspace(0.01, 80, 60))
    sampler = {"name": "multistep", "sigmas": sigmas, "sigma_min": 0.002}
    wanted = Wanted("digits", "digits", ("features", "probabilities", "spatial"))
    tasks = chunks(checkpoint, sampler, [wanted], 1000, 8 * 8 * 32 - 5, 32)
    assert len(tasks) == 8
    return [*(("measure", (t,)) for t in tasks), ("images", (str(checkpoint), sampler, [3, 1, 2]))]


@pytest.fixture(scope="module")
def expected(calls) -> list:
    prepare_process(1)
    return InlinePool(default_device()).run(calls)


def same(found: list, expected: list) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found[:-1], expected[:-1], strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
    np.testing.assert_array_equal(found[-1], expected[-1])


def pids(pool: EvaluatorPool) -> list[int]:
    return ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in pool._actors])


def test_ray_has_a_cpu_more_than_trials_may_take(started):
    assert started.free_cpus == local_capacity().free_cpus
    assert ray.cluster_resources()["CPU"] == started.cpus == started.free_cpus + DATA_CPUS


@pytest.mark.parametrize("size", [1, 2])
def test_statistics_have_the_same_bits_on_any_number_of_actors(started, calls, expected, size):
    pool, told = EvaluatorPool(size), {}
    try:
        same(pool.run(calls, told.__setitem__), expected)
        same([told[i] for i in range(len(calls))], expected)
        same(pool.run(calls[3:4] + calls[-1:]), expected[3:4] + expected[-1:])
    finally:
        pool.close()


@pytest.mark.slow
def test_actors_killed_in_the_middle_change_nothing(started, calls, expected):
    """The first finished call finds one actor busy and one idle: both die."""
    pool = EvaluatorPool(2)
    try:
        before = pids(pool)

        told: list[int] = []

        def kill(call: int, _: object) -> None:
            told.append(call)
            if len(told) == 1:
                for pid in before:
                    os.kill(pid, signal.SIGKILL)

        same(pool.run(calls, kill), expected)
        assert sorted(told) == list(range(len(calls))), "a result was told twice or not at all"
        assert not set(pids(pool)) & set(before), "the dead actors were not replaced"
    finally:
        pool.close()


@pytest.mark.slow
def test_a_call_that_kills_every_actor_is_given_up(started):
    pool = EvaluatorPool(1)
    try:
        with pytest.raises(CmrayError, match="evaluators died 4 times on the same samples"):
            pool.run([("__ray_call__", (lambda _: os._exit(1),))])
    finally:
        pool.close()


def test_the_error_of_a_call_is_the_one_the_user_sees(started, calls):
    task = calls[0][1][0]
    pool = EvaluatorPool(1)
    try:
        with pytest.raises(CheckpointError, match="/nowhere does not exist"):
            pool.run([("measure", (type(task)(**{**vars(task), "checkpoint": "/nowhere"}),))])
    finally:
        pool.close()


def test_a_closed_pool_leaves_no_actor(started):
    pool = EvaluatorPool(2)
    processes = [psutil.Process(pid) for pid in pids(pool)]
    pool.close()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive


# ---------------------------------------------------------------- data


@pytest.mark.parametrize("kind", ["digits", "colour without labels"])
def test_ray_data_brings_the_same_dataset_as_reading_it(started, tmp_path, kind):
    if kind == "digits":
        good(here("data", "prepare", "digits", "--out", tmp_path / "data", "--shards", 5))
    else:
        images = np.random.default_rng(0).integers(0, 256, (101, 3, 4, 6), dtype=np.uint8)
        write_shards(ImageDataset("noise", "all", "made by a test", images, None, ()), tmp_path / "data", 7)
    through, plain = resident_dataset(tmp_path / "data"), read_shards(tmp_path / "data")
    np.testing.assert_array_equal(through.images, plain.images)
    assert (through.labels is None) == (plain.labels is None)
    if plain.labels is not None:
        np.testing.assert_array_equal(through.labels, plain.labels)
    assert (through.name, through.classes, through.digest()) == (plain.name, plain.classes, plain.digest())


def test_ray_data_notices_content_that_the_manifest_does_not_vouch_for(started, tmp_path):
    good(here("data", "prepare", "digits", "--out", tmp_path / "data"))
    manifest = tmp_path / "data" / MANIFEST
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**values, "digest": "0" * 64}))
    with pytest.raises(DataError, match="does not match the manifest's digest"):
        resident_dataset(tmp_path / "data")
    shard = next((tmp_path / "data").glob("*.parquet"))
    shard.unlink()
    with pytest.raises(DataError, match=f"lacks {shard.name}, which its manifest lists"):
        resident_dataset(tmp_path / "data")


# ---------------------------------------------------------------- a cluster that is there already


@pytest.mark.slow
def test_a_command_joins_a_running_cluster_and_leaves_it_running(started, trained, tmp_path):
    storage, trial = trained
    address = ray.get_runtime_context().gcs_address
    metrics = ("--metric", "fd/digits,recall/digits,is/digits,sfid/digits")
    more = ("--storage", storage, "--num-samples", 600, "--nfe", "1", *metrics, "--json")
    token = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH_")}
    joined = apart(tmp_path, "evaluate", trial, *more, "--address", address, "--parallel", 2, **token)
    assert joined.code == 0, joined.err
    assert ray.get(ray.remote(lambda: 1).remote()) == 1, "the cluster did not survive its guest"
    records = list((storage / trial / "evaluations").glob("*.json"))
    assert len(records) == 4
    for record in records:
        record.unlink()
    shutil.rmtree(storage / "reference")
    alone = good(here("evaluate", trial, *more))
    assert alone.json == joined.json
