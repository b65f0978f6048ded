"""What a cluster may grow to, read off its file or said by hand, and how much of a plan has room then."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmray.cluster.autoscale import Growth, NodeType, admitted, at_most, grown, growth_of, parse_growth
from cmray.cluster.connect import ClusterError
from cmray.cluster.resources import Capacity
from cmray.config.run import ResourcesConfig

HEAD = (0.0, 0.0)
kinds = st.builds(NodeType, st.sampled_from([2.0, 8.0, 30.0]), st.sampled_from([0.0, 1.0, 8.0]), st.integers(1, 4))


def capacity(*nodes: tuple[float, float]) -> Capacity:
    return Capacity(sum(n[0] for n in nodes), sum(n[1] for n in nodes), "the cluster at h:1", nodes)


def cluster_config(**kinds):
    kinds = {"head": {"resources": {"CPU": 0}, "node_config": {}}, **kinds}
    return {"head_node_type": "head", "max_workers": 3, "available_node_types": kinds}


def test_growth_is_what_the_file_allows_beside_the_head():
    config = cluster_config(
        gpu={"resources": {"CPU": 96, "GPU": 8}, "max_workers": 2},
        cpu={"resources": {"CPU": 32}},  # without a bound of its own: that of the cluster
        never={"resources": {"CPU": 64}, "max_workers": 0},
        unknown={"resources": {}, "max_workers": 2},
    )
    assert growth_of(config) == Growth((NodeType(96, 8, 2), NodeType(32, 0, 3)), 3)


@pytest.mark.parametrize("config", [{}, {"max_workers": 3}, cluster_config(), {"available_node_types": None}])
def test_a_cluster_without_node_types_does_not_grow(config):
    assert growth_of(config) is None


def test_growth_can_be_said_by_hand():
    assert parse_growth("2x94:8, 4x30") == Growth((NodeType(94, 8, 2), NodeType(30, 0, 4)), 6)


@pytest.mark.parametrize("text", ["", "8", "2x", "x8", "0x8", "2x8:", "2x8;1x4", "2x-8"])
def test_what_cannot_be_read_is_named_with_an_example(text):
    with pytest.raises(ClusterError, match=r"CMRAY_GROWS_TO is '.*'; write COUNTxCPUS:GPUS, such as 2x94:8"):
        parse_growth(text)


@given(st.lists(kinds, min_size=1, max_size=3), st.integers(1, 6), st.data())
def test_a_grown_cluster_keeps_its_nodes_and_every_bound(types, workers, data):
    may = Growth(tuple(types), workers)
    shapes = [(kind.cpus, kind.gpus) for kind in types for _ in range(kind.most)]
    here = data.draw(st.lists(st.sampled_from(shapes), max_size=min(workers, len(shapes)), unique_by=id))
    largest = grown(capacity(HEAD, *here), may)
    assert largest.nodes[: len(here) + 1] == (HEAD, *here)
    assert len(largest.nodes) - 1 <= max(workers, len(here))
    for shape in set(largest.nodes) - {HEAD}:
        most = sum(kind.most for kind in types if (kind.cpus, kind.gpus) == shape)
        assert largest.nodes.count(shape) <= max(most, here.count(shape))
    assert (largest.cpus, largest.gpus) == tuple(sum(n[i] for n in largest.nodes) for i in (0, 1))


def test_nodes_with_gpus_come_first_when_the_bound_is_tight():
    may = Growth((NodeType(30, 0, 4), NodeType(96, 8, 1)), 2)
    assert grown(capacity(HEAD), may).nodes == (HEAD, (96.0, 8.0), (30.0, 0.0))


def test_this_machine_is_not_asked_and_neither_is_a_cluster_with_room():
    here = Capacity(3, 0, "this machine")
    assert at_most(here, [ResourcesConfig(workers=8)]) is here
    cluster = capacity((0.0, 0.0), (9.0, 0.0))
    assert at_most(cluster, [ResourcesConfig(workers=4)] * 2) is cluster  # without Ray: asking would fail


def test_the_cpu_of_ray_data_is_left_and_a_limit_counts():
    needs = [ResourcesConfig(workers=1)] * 5
    assert admitted(capacity((0.0, 0.0), (4.0, 0.0)), needs) == 3
    assert admitted(capacity((0.0, 0.0), (4.0, 0.0)), needs, limit=2) == 2
