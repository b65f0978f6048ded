"""How much runs at once: never more than fits, always at least one, and a refusal that can be acted on."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmray.cluster.connect import check_room, free_memory, local_capacity
from cmray.cluster.places import FRESH, Places
from cmray.cluster.resources import (
    DATA_CPUS,
    Admission,
    Capacity,
    check_fits,
    check_pool,
    hungriest_first,
    max_concurrent,
)
from cmray.config.run import ResourcesConfig
from cmray.core.errors import ConfigError, DataError

runs = st.builds(
    ResourcesConfig,
    workers=st.integers(1, 9),
    cpus_per_worker=st.sampled_from([0.1, 0.3, 0.5, 1.0, 2.0, 3.0]),
    gpus_per_worker=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
capacities = st.builds(
    Capacity, st.sampled_from([2.0, 3.0, 5.0, 9.0, 33.0]), st.sampled_from([0.0, 1.0, 4.0]), st.just("")
)


def fits(run: ResourcesConfig, capacity: Capacity) -> bool:
    try:
        check_fits(run, capacity, "it")
    except ConfigError:
        return False
    return True


@given(st.lists(runs, min_size=1, max_size=12), capacities, st.none() | st.integers(1, 20))
def test_as_many_run_at_once_as_there_is_room_for_the_smallest(trials, capacity, limit):
    trials = [t for t in trials if fits(t, capacity)] or [ResourcesConfig()]
    n = max_concurrent(trials, capacity, limit)
    assert 1 <= n <= len(trials)
    assert limit is None or n <= limit
    least = sorted(t.workers * t.cpus_per_worker for t in trials)[:n]
    assert sum(least) <= capacity.cpus - DATA_CPUS + 1e-6


clusters = st.lists(st.tuples(st.sampled_from([2.0, 3.0, 5.0]), st.sampled_from([0.0, 2.0])), min_size=1, max_size=4)


@given(st.lists(runs, min_size=1, max_size=15), clusters, st.none() | st.integers(1, 4), st.randoms())
def test_trials_of_any_mix_all_get_their_turn_and_no_node_is_overfull(trials, nodes, limit, luck):
    """A sweep by hand: let in whom there is room for, end one at random, until all are through."""
    capacity = Capacity(sum(n[0] for n in nodes), sum(n[1] for n in nodes), "", tuple(nodes))
    waiting = sorted((t for t in trials if fits(t, capacity)), key=hungriest_first)
    admission, running, free = Admission(capacity, limit), [], capacity.free_nodes()
    while waiting or running:
        for trial in list(waiting):
            placed = admission.admit(trial)
            if placed is not None:
                assert len(placed) == trial.workers
                waiting.remove(trial)
                running.append((trial, placed))
        assert running, "nobody can start and nobody runs: stuck for good"
        assert limit is None or len(running) <= limit
        for i, (cpus, gpus) in enumerate(free):
            assert sum(t.cpus_per_worker * p.count(i) for t, p in running) <= cpus + 1e-6
            assert sum(t.gpus_per_worker * p.count(i) for t, p in running) <= gpus + 1e-6
        trial, placed = running.pop(luck.randrange(len(running)))
        admission.release(trial, placed)


def test_a_small_trial_runs_beside_a_large_one_and_the_machine_is_full():
    one, two = ResourcesConfig(), ResourcesConfig(workers=2)
    admission = Admission(Capacity(3 + DATA_CPUS, 0, "this machine"))
    assert sorted([one, two, one, two], key=hungriest_first) == [two, two, one, one]
    assert admission.admit(two) is not None
    assert admission.admit(two) is None, "only one of the two workers would get a CPU"
    assert admission.admit(one) is not None
    assert admission.admit(one) is None


def test_small_trials_fill_the_tightest_node():
    """On nodes of 2 and 4 cores (one kept for Ray Data) a large trial still finds its three."""
    capacity = Capacity(6, 0, "the cluster at a:1", ((2.0, 0.0), (4.0, 0.0)))
    admission = Admission(capacity)
    assert admission.admit(ResourcesConfig()) == [0]
    assert admission.admit(ResourcesConfig(cpus_per_worker=3)) == [1]


def test_an_elastic_trial_takes_what_there_is_and_is_of_use():
    need = ResourcesConfig(workers=8, min_workers=2)
    admission = Admission(Capacity(4, 0, "", ((2.0, 0.0), (2.0, 0.0))))
    admission.update({"a": (4.0, 0.0), "b": (3.0, 0.0)})
    nodes = admission.admit(need)
    assert nodes is not None
    assert nodes == ["a", "a", "a", "b"], "of six places four, as five and six are no faster"
    assert admission.admit(ResourcesConfig(workers=2)) is not None, "which leaves two to others"
    assert admission.admit(need) is None
    assert admission.room(need, nodes) == 4
    admission.update({"a": (4.0, 0.0)})
    assert admission.room(need, nodes) == 3
    admission.update({"a": (2.0, 0.0)})
    assert admission.room(need, nodes) == 0, "one is too few"
    admission.release(need, nodes)
    admission.update({"a": (4.0, 0.0), "c": (9.0, 0.0)})
    assert len(admission.admit(need) or []) == 8
    with pytest.raises(ConfigError, match=r"x: resources.min_workers 2 x cpus_per_worker 3 needs 6 cpus"):
        check_fits(ResourcesConfig(workers=8, min_workers=2, cpus_per_worker=3), Capacity(4, 0, "it"), "x")
    check_fits(need, Capacity(3, 0, "it"), "x")


def test_places_are_where_the_workers_say_they_are():
    """Ray put both workers on the large node, so a wide worker finds the small ones free."""
    nodes = {"a": (5.0, 0.0), "b": (2.0, 0.0), "c": (2.0, 0.0)}
    places = Places(Admission(Capacity(9, 0, "")), lambda: nodes)
    two, wide = ResourcesConfig(workers=2), ResourcesConfig(workers=2, cpus_per_worker=2)
    assert places.admit("two", two)
    assert places.admit("wide", wide)
    assert not places.admit("more", wide)
    places.stands("two", 1, 2, "a")
    places.stands("two", 0, 2, "a")
    assert places.admit("more", ResourcesConfig(cpus_per_worker=2))
    places.release("two")
    places.release("two")
    places.stands("two", 0, 2, "b")  # a late word of a trial that has ended
    elastic = ResourcesConfig(workers=4, min_workers=1)
    assert places.again("e", elastic) == 2 == places.room("e")
    places.release("more")
    assert places.room("e") == 4
    del nodes["a"]
    places._looked = -FRESH
    assert places.again("e", elastic) == 1


@given(runs, st.integers(1, 12), capacities)
def test_as_many_equal_trials_run_as_there_is_room_for(run, count, capacity):
    n = max_concurrent([run] * count, capacity)
    one_more = n + 1
    room = (
        one_more * run.workers * run.cpus_per_worker <= capacity.cpus - DATA_CPUS
        and one_more * run.workers * run.gpus_per_worker <= capacity.gpus
    )
    assert n == count or not room


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "refused"),
    [(4, 1, 0, None), (5, 1, 0, "cpus"), (2, 2, 0, None), (2, 2.5, 0, "cpus"), (1, 1, 1, "gpus"), (40, 0.1, 0, None)],
)
def test_one_trial_against_four_cores(workers, cpus, gpus, refused):
    """The CPU that is kept for Ray Data is none of the four."""
    run = ResourcesConfig(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)
    capacity = Capacity(4 + DATA_CPUS, 0, "this machine")
    if refused is None:
        check_fits(run, capacity, "study/ct")
    else:
        with pytest.raises(ConfigError) as caught:
            check_fits(run, capacity, "study/ct")
        have = {"cpus": 4, "gpus": 0}[refused]
        assert re.search(rf"study/ct: resources.workers {workers} x {refused}_per_worker", str(caught.value))
        assert str(caught.value).endswith(f"but this machine has {have}")


def test_a_worker_is_on_one_node():
    """Three nodes of four cores have no place for a worker of five, and one of them keeps a core for Ray Data."""
    nodes = ((4.0, 0.0), (4.0, 0.0), (4.0, 2.0))
    capacity = Capacity(12, 2, "the cluster at a:1", nodes)
    cases = [(11, 1, 0, 11), (12, 1, 0, 11), (5, 2, 0, 5), (6, 2, 0, 5), (1, 5, 0, 0), (2, 4, 0, 2), (3, 4, 0, 2)]
    cases += [(2, 1, 1, 2), (4, 1, 0.5, 4), (1, 1, 3, 0)]
    for workers, cpus, gpus, placed in cases:
        assert capacity.workers_that_fit(cpus, gpus) >= min(workers, placed)
        run = ResourcesConfig(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)
        assert fits(run, capacity) == (workers <= placed), run
    with pytest.raises(
        ConfigError, match=r"only 5 workers of 1.8 cpus and 0 gpus fit on the nodes of the cluster at a:1"
    ):
        check_fits(ResourcesConfig(workers=6, cpus_per_worker=1.8), Capacity(12, 0, "the cluster at a:1", nodes), "x")
    assert max_concurrent([ResourcesConfig(workers=2, cpus_per_worker=2)] * 9, capacity) == 2


def test_a_pool_leaves_ray_data_its_cpu():
    check_pool(4, Capacity(4 + DATA_CPUS, 0, "this machine"))
    with pytest.raises(ConfigError, match="--parallel 5 needs 5 cpus, but this machine has 4"):
        check_pool(5, Capacity(4 + DATA_CPUS, 0, "this machine"))


def test_this_machine_has_room_for_one_trial_at_least():
    assert local_capacity().free_cpus >= 1


def test_resident_data_needs_room():
    check_room(0, 0.0, "there is {}")
    check_room(10 * 2**30, 11 * 2**30, "there is {}")
    with pytest.raises(DataError, match=r"10\.0 GiB on every node, but there is 10\.9 GiB; set data\.feed to"):
        check_room(10 * 2**30, 10.9 * 2**30, "there is {}")
    assert 2**28 < free_memory() < 2**50
