"""cluster/kuberay.yaml, held to the types of KubeRay's v1 API (RayCluster, RayJob), as published with 1.5 and 1.6."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import yaml
from cli_run import ROOT
from shell_words import calls, check

from cmray.cluster.autoscale import NodeType, parse_growth

QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")

#: what stands for values: a type, a pattern of text, alternatives in a set, {"*": ...} any keys, [...] a list of these
TEXT_MAP: Any = {"*": str}
QUANTITIES: Any = {"*": QUANTITY}
ENV: Any = {"name": str, "value?": str, "valueFrom?": {"fieldRef": {"fieldPath": str}}}
CONTAINER: Any = {
    "name": NAME, "image": str, "command?": [str], "args?": [str], "env?": [ENV],
    "envFrom?": [{"secretRef": {"name": NAME, "optional?": bool}}],
    "ports?": [{"containerPort": int, "name?": NAME}],
    "resources?": {"requests?": QUANTITIES, "limits?": QUANTITIES},
    "volumeMounts?": [{"name": NAME, "mountPath": str}],
}  # fmt: skip
POD: Any = {
    "spec": {
        "containers": [CONTAINER], "nodeSelector?": TEXT_MAP, "terminationGracePeriodSeconds?": int,
        "tolerations?": [{"key": str, "operator": {"Exists", "Equal"}, "effect": str}],
        "securityContext?": {"fsGroup": int},
        "volumes?": [{
            "name": NAME, "emptyDir?": {"medium": {"Memory"}, "sizeLimit": QUANTITY},
            "persistentVolumeClaim?": {"claimName": NAME},
        }],
    }
}  # fmt: skip
GROUP: Any = {"rayStartParams": TEXT_MAP, "template": POD, "labels?": TEXT_MAP}
META: Any = {"name": NAME, "labels?": TEXT_MAP}
KINDS: dict[str, Any] = {
    "PersistentVolumeClaim": {
        "apiVersion": {"v1"}, "kind": str, "metadata": META,
        "spec": {"accessModes": [{"ReadWriteOnce", "ReadWriteMany"}], "resources": {"requests": QUANTITIES}},
    },
    "RayCluster": {
        "apiVersion": {"ray.io/v1"}, "kind": str, "metadata": META,
        "spec": {
            "rayVersion": str, "authOptions": {"mode": {"token"}}, "enableInTreeAutoscaling": bool,
            "autoscalerOptions": {
                "upscalingMode": {"Default", "Aggressive", "Conservative"}, "idleTimeoutSeconds": int
            },
            "headGroupSpec": {**GROUP, "serviceType": {"ClusterIP"}},
            "workerGroupSpecs": [
                {**GROUP, "groupName": NAME, "replicas": int, "minReplicas": int, "maxReplicas": int}
            ],
        },
    },
    "RayJob": {
        "apiVersion": {"ray.io/v1"}, "kind": str, "metadata": META,
        "spec": {
            # what the operator refuses beside clusterSelector is not among the keys: shutdownAfterJobFinishes, suspend
            "clusterSelector": TEXT_MAP, "entrypoint": str, "entrypointNumCpus": (int, float),
            "submissionMode": {"K8sJobMode", "HTTPMode", "SidecarMode"},
        },
    },
}  # fmt: skip


def fits(value: Any, kind: Any, where: str) -> None:
    """Asserts that a value is of a kind, all below included; says where it is not."""
    if isinstance(kind, Mapping) and "*" in kind:
        assert isinstance(value, dict), where
        for key, one in value.items():
            fits(one, kind["*"], f"{where}.{key}")
    elif isinstance(kind, Mapping):
        assert isinstance(value, dict), where
        known = {key.rstrip("?") for key in kind}
        assert set(value) <= known, f"{where}: {set(value) - known} is none of {sorted(known)}"
        for key, below in kind.items():
            assert key.endswith("?") or key in value, f"{where}.{key} is missing"
            if key.rstrip("?") in value:
                fits(value[key.rstrip("?")], below, f"{where}.{key.rstrip('?')}")
    elif isinstance(kind, list):
        assert isinstance(value, list), where
        for i, one in enumerate(value):
            fits(one, kind[0], f"{where}[{i}]")
    elif isinstance(kind, set):
        assert value in kind, f"{where} is {value!r}, none of {kind}"
    elif isinstance(kind, re.Pattern):
        assert isinstance(value, str), f"{where} is {value!r}, no text"
        assert kind.fullmatch(value), f"{where} is {value!r}"
    else:
        assert isinstance(value, kind), f"{where} is {value!r}"
        assert kind is not int or not isinstance(value, bool), where


@pytest.fixture(scope="module")
def documents() -> dict[str, Any]:
    files = [ROOT / "cluster" / name for name in ("kuberay.yaml", "kuberay-job.yaml")]
    found = [document for file in files for document in yaml.safe_load_all(file.read_text())]
    return {document["kind"]: document for document in found}


@pytest.fixture
def cluster(documents) -> dict[str, Any]:
    return documents["RayCluster"]["spec"]


def groups(cluster: dict[str, Any]) -> Sequence[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_the_documented_replacement_leaves_no_placeholder(tmp_path):
    docs = (ROOT / "docs" / "cluster.md").read_text()
    (line,) = [line for line in docs.splitlines() if line.startswith("sed -i") and "kuberay.yaml" in line]
    (tmp_path / "cluster").mkdir()
    for name in ("kuberay.yaml", "kuberay-job.yaml"):
        shutil.copy(ROOT / "cluster" / name, tmp_path / "cluster")
    subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True)
    for file in sorted((tmp_path / "cluster").iterdir()):
        used = [line for line in file.read_text().splitlines() if not line.startswith("#")]
        assert not [line for line in used if "YOUR-" in line], file.name
        assert "the-name-of-your-bucket" in "".join(used)


def test_a_build_is_sent_all_that_it_copies():
    sent = (ROOT / "cluster" / "Dockerfile.dockerignore").read_text().splitlines()
    copies = [line.split()[1:-1] for line in (ROOT / "cluster" / "Dockerfile").read_text().splitlines()
              if line.startswith("COPY")]  # fmt: skip
    assert copies
    for name in (name for names in copies for name in names):
        assert (ROOT / name).exists()
        assert f"!{name}" in sent


def test_every_field_is_one_of_the_api_s_and_of_its_type(documents):
    assert set(documents) == set(KINDS)
    for kind, document in documents.items():
        fits(document, KINDS[kind], kind)


@pytest.mark.parametrize(
    ("path", "value"), [(("spec", "rayVersion"), 2.6), (("spec", "minReplica"), 0), (("metadata", "name"), "A_b")]
)
def test_a_slip_would_be_found(documents, path, value):
    broken = yaml.safe_load(yaml.safe_dump(documents["RayCluster"]))
    broken[path[0]][path[1]] = value
    with pytest.raises(AssertionError, match=re.escape(path[1])):
        fits(broken, KINDS["RayCluster"], "RayCluster")


def test_one_image_runs_everywhere_and_every_container_knows_the_token_mode(cluster):
    pods = [group["template"]["spec"] for group in groups(cluster)]
    containers = [container for pod in pods for container in pod["containers"]]
    assert len({container["image"] for container in containers}) == 1
    assert cluster["authOptions"] == {"mode": "token"}
    for container in containers:
        if container["name"].startswith("ray-"):
            assert {"name": "RAY_AUTH_MODE", "value": "token"} in container["env"]


def test_volumes_and_claims_that_are_mounted_exist(documents, cluster):
    claims = set()
    for group in groups(cluster):
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == set(volumes)
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                claims.add(volume["persistentVolumeClaim"]["claimName"])
    assert claims == {documents["PersistentVolumeClaim"]["metadata"]["name"]}


def test_nothing_trains_on_the_head_and_workers_come_when_asked_for(cluster):
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    workers = cluster["workerGroupSpecs"]
    assert all(group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"] for group in workers)
    assert len({group["groupName"] for group in workers}) == len(workers)
    markets = {g["labels"]["market"] for g in workers if "nvidia.com/gpu" in str(g["template"])}
    assert markets == {"on-demand", "spot"}


def test_what_the_cluster_is_said_to_grow_to_is_what_its_groups_allow(cluster):
    def node_type(group: dict[str, Any]) -> NodeType:
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        assert limits == container["resources"]["requests"]
        return NodeType(float(limits["cpu"]), float(limits.get("nvidia.com/gpu", 0)), group["maxReplicas"])

    head = next(c for c in cluster["headGroupSpec"]["template"]["spec"]["containers"] if c["name"] == "ray-head")
    (said,) = [variable["value"] for variable in head["env"] if variable["name"] == "CMRAY_GROWS_TO"]
    key = lambda kind: (kind.cpus, kind.gpus, kind.most)
    assert sorted(parse_growth(said).types, key=key) == sorted(map(node_type, cluster["workerGroupSpecs"]), key=key)


def test_the_commands_it_runs_exist(documents, cluster):
    (sweep,) = calls(documents["RayJob"]["spec"]["entrypoint"])
    check(sweep)
    assert (ROOT / sweep[2].removeprefix("/cmray/")).is_file()
    assert sweep[sweep.index("--address") + 1] == "auto"
    server = next(c for c in cluster["headGroupSpec"]["template"]["spec"]["containers"] if c["name"] == "mlflow")
    words = [*server["command"], *server["args"]]
    check(words)
    assert words[words.index("--host") + 1] == "$(POD_IP)"
    start = {f"--{name}={value}" for name, value in cluster["headGroupSpec"]["rayStartParams"].items()}
    check(["ray", "start", "--head", *sorted(start)])


def test_the_job_selects_the_cluster(documents):
    wanted = documents["RayJob"]["spec"]["clusterSelector"]
    assert wanted == {"ray.io/cluster": documents["RayCluster"]["metadata"]["name"]}  # a label that the operator sets
