"""`cmray doctor --address`: what a cluster must have for a sweep to run on it, asked on every node."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from cmray.cluster.address import stranger_is_let_in
from cmray.cluster.autoscale import HEAD, growth
from cmray.cluster.connect import connected
from cmray.cluster.probe import Asked, Probe, Seen, answer_name
from cmray.core.checks import Check
from cmray.core.errors import CmrayError
from cmray.datasets.location import Location

#: seconds that clocks may differ: events of a trial carry the time of its node
SKEW = 2.0
#: seconds to wait for a node's answers
PATIENCE = 120.0


def cluster_checks(
    address: str, storage: str, tracking_uri: str | None, data: str | None, say: Callable[[str], None]
) -> list[Check]:
    """Visits the cluster and asks every node.

    Args:
        storage: the storage folder, a path or a URL; a small file is written there and taken away again.
        tracking_uri: of an MLflow server; others are not asked for.
        data: a prepared dataset that every node must be able to read, or None.
        say: told in one line what goes on.
    """
    try:
        with connected(address) as capacity:
            import ray

            may = growth()
            more = f"; its autoscaler may keep {may}" if may else ""
            had = f"Ray {ray.__version__}, {capacity.cpus:g} logical CPUs, {capacity.gpus:g} GPUs"
            checks = [Check("Ray", True, f"{capacity.where}: {had}{more}")]
            nodes = sorted((n for n in ray.nodes() if n["Alive"]), key=lambda n: HEAD not in n["Resources"])
            say(f"Asking {len(nodes)} node{'s' if len(nodes) != 1 else ''}")
            return checks + _ask(nodes, storage, tracking_uri, data)
    except CmrayError as error:
        return [Check("Ray", False, str(error), "check --address and RAY_ADDRESS; without them Ray starts here")]


def _ask(nodes: Sequence[dict[str, Any]], storage: str, tracking_uri: str | None, data: str | None) -> list[Check]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    file = f".doctor-{secrets.token_hex(8)}"
    asked = Asked(storage, file, tracking_uri, data)
    actor: Any = ray.remote(num_cpus=0)(Probe)
    probes = []
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        probes.append(actor.options(scheduling_strategy=there).remote())
    place = Location(storage)
    written = _written(place, file)
    try:
        answers = [probe.look.remote(asked, number) for number, probe in enumerate(probes)]
        seen = [_got(answer) for answer in answers]
        skews = [_skew(probe) if isinstance(one, Seen) else None for probe, one in zip(probes, seen, strict=True)]
        back = [_size(place, answer_name(file, number)) for number in range(len(nodes))]
    finally:
        for name in (file, *(answer_name(file, number) for number in range(len(nodes)))):
            _delete(place, name)
        for probe in probes:
            ray.kill(probe)
    names = _names(nodes)
    known = {name: one for name, one in zip(names, seen, strict=True) if isinstance(one, Seen)}
    checks = [_node(*each) for each in zip(names, nodes, seen, strict=True)]
    checks.append(_token(known))
    checks.append(_shared(place, written, dict(zip(names, back, strict=True)), known))
    checks.append(_clocks({name: skew for name, skew in zip(names, skews, strict=True) if skew is not None}))
    if tracking_uri and tracking_uri.startswith("http"):
        bad = {name: one.tracking for name, one in known.items() if one.tracking}
        mend = "give --tracking-uri the server's private address, and let the nodes reach its port"
        checks.append(_all("MLflow from every node", bad, len(known), "answers", mend))
    if data is not None:
        bad = {name: one.data for name, one in known.items() if one.data}
        mend = "prepare it where all nodes see it: cmray data prepare NAME --out s3://..., or a shared folder"
        checks.append(_all("data on every node", bad, len(known), f"{data} is there and whole", mend))
    return checks


def _got(answer: Any) -> Seen | str:
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    try:
        return ray.get(answer, timeout=PATIENCE)
    except GetTimeoutError:
        return f"gave no answer in {PATIENCE:.0f} s"
    except RayError as error:  # such as cmray missing there
        lines = [line for line in str(error).splitlines() if line.strip()]
        return lines[-1].strip() if lines else type(error).__name__


def _skew(probe: Any) -> tuple[float, float] | None:
    """(seconds that the node's clock is ahead of ours, by how much that may be wrong), of three tries the best."""
    import ray
    from ray.exceptions import RayError

    best: tuple[float, float] | None = None
    for _ in range(3):
        began = time.time()
        try:
            theirs: float = ray.get(probe.clock.remote(), timeout=PATIENCE)  # pyright: ignore[reportAssignmentType]
        except RayError:
            return best
        half = (time.time() - began) / 2
        if best is None or half < best[1]:
            best = (theirs - began - half, half)
    return best


def _names(nodes: Sequence[dict[str, Any]]) -> list[str]:
    """Addresses, numbered where several nodes share one."""
    hosts = [node["NodeManagerAddress"] for node in nodes]
    seen: dict[str, int] = {}
    names = []
    for host in hosts:
        seen[host] = seen.get(host, 0) + 1
        names.append(f"{host} #{seen[host]}" if hosts.count(host) > 1 else host)
    return names


def _node(name: str, node: dict[str, Any], seen: Seen | str) -> Check:
    title = f"node {name}" + (" (head)" if HEAD in node["Resources"] else "")
    if isinstance(seen, str):
        return Check(title, False, seen, "install the same cmray there: pip install -c constraints.txt -e .")
    have = node["Resources"]
    gpus = int(have.get("GPU", 0))
    here = Probe.versions()
    there = {k: seen.versions.get(k, "missing") for k in here}  # a plug-in that is there alone does no harm
    other = [f"{k} {v} (here {here[k]})" for k, v in there.items() if v != here[k]]
    found = [f"{have.get('CPU', 0):g} CPUs, {gpus} GPUs" + (f" ({', '.join(sorted(set(seen.gpus)))})" if gpus else "")]
    found.append(", ".join(other) if other else f"versions as here: Python {here['python']}, torch {here['torch']}")
    if gpus:
        found.append(f"NCCL {seen.nccl}" if seen.nccl else "no NCCL")
    found.append(f"{seen.shm:.1f} GiB free in /dev/shm, {seen.disk:.0f} GiB for temporary files")
    mends = []
    if other:
        mends.append("install the same everywhere: pip install -c constraints.txt -e ., and plug-ins beside it")
    if gpus > len(seen.gpus):
        mends.append(f"nvidia-smi shows {len(seen.gpus)} of {gpus} GPUs there: look at the driver")
    if gpus and not seen.nccl:
        mends.append("install torch with CUDA, which brings NCCL")
    if seen.shm < 0.25:
        mends.append("give the container a larger /dev/shm")
    if seen.disk < 1:
        mends.append("free some disk: Ray spills objects there")
    return Check(title, not mends, "; ".join(found), "; ".join(mends))


def _token(known: dict[str, Seen]) -> Check:
    mend = "export RAY_AUTH_MODE=token before every `ray start`, with the same ~/.ray/auth_token on all nodes"
    without = [f"{name} ({one.auth_mode})" for name, one in known.items() if one.auth_mode != "token"]
    if without:
        return Check("token", False, f"RAY_AUTH_MODE is not token on {', '.join(without)}", mend)
    if stranger_is_let_in(_own_address()):
        return Check("token", False, "a client without a token is let in", mend)
    return Check("token", True, f"every node asks for it ({len(known)}), and a client without one is refused")


def _own_address() -> str:
    import ray

    return ray.get_runtime_context().gcs_address


def _shared(place: Location, written: str, back: dict[str, bool], known: dict[str, Seen]) -> Check:
    mend = "use a folder that all nodes share at the same path (NFS), or s3://..., as --storage"
    if written:
        return Check("storage on every node", False, written, mend)
    bad = {name: one.storage for name, one in known.items() if one.storage}
    for name, arrived in back.items():
        if name in known and name not in bad and not arrived:
            bad[name] = f"writes to another {place}: its file does not arrive here"
    return _all("storage on every node", bad, len(known), f"{place} is one and the same, and can be written", mend)


def _clocks(skews: dict[str, tuple[float, float]]) -> Check:
    if not skews:
        return Check("clocks", False, "no node told the time", "see above")
    bad = {n: f"{ahead:+.1f} s" for n, (ahead, doubt) in skews.items() if abs(ahead) - doubt > SKEW}
    worst = max(abs(ahead) + doubt for ahead, doubt in skews.values())
    if bad:
        told = ", ".join(f"{name} {by}" for name, by in bad.items())
        return Check("clocks", False, f"differ from this machine's: {told}", "run chrony or ntpd on every node")
    return Check("clocks", True, f"within {worst:.2f} s of this machine's")


def _all(name: str, bad: dict[str, str], count: int, good: str, mend: str) -> Check:
    if bad:
        return Check(name, False, "; ".join(f"{node} {why}" for node, why in bad.items()), mend)
    return Check(name, count > 0, f"{good} ({count} node{'s' if count != 1 else ''})", "" if count else "see above")


def _written(place: Location, file: str) -> str:
    """Writes the file that all nodes must see; what went wrong, in words."""
    try:
        place.make()
        place.write(file, file.encode())
    except (OSError, CmrayError) as error:
        return f"{place} cannot be written from here: {error}"
    return ""


def _size(place: Location, name: str) -> bool:
    try:
        return place.size(name) is not None
    except (OSError, CmrayError):
        return False


def _delete(place: Location, name: str) -> None:
    try:
        place.delete(name)
    except (OSError, CmrayError):
        return
