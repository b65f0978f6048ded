"""`cmray doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import shutil
from dataclasses import asdict
from typing import Annotated

import typer

from cmray.cli.console import errors, output, print_json
from cmray.cli.options import DEFAULT_STORAGE, Address, Json, Storage, TrackingUri, shown_storage
from cmray.core.checks import Check


def doctor(
    address: Address = None,
    storage: Storage = DEFAULT_STORAGE,
    tracking_uri: TrackingUri = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DIR", help="A prepared dataset that must be readable, on every node too."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Say what works here, what is missing and how to get it. The exit code is 1 when something is missing.

    With --address every node of the cluster is asked too: versions, GPUs, the token, the storage folder, clocks.

    Example: cmray doctor

    Example: cmray doctor --address auto --data s3://bucket/data/cifar10
    """
    storage = storage.expanduser().absolute()
    checks = [
        *_versions(),
        *_plugins(),
        _devices(),
        _memory(),
        *_storage(storage),
        _tracking(tracking_uri, str(storage)),
        *_data(data),
        *_ray(address, shown_storage(storage), tracking_uri, data),
    ]
    checks += [*_weights(), *_backbones()]
    if as_json:
        print_json([asdict(c) for c in checks])
    else:
        from rich.table import Table

        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for c in checks:
            mark = "[green]ok[/]" if c.ok else "[red]missing[/]"
            table.add_row(mark, c.name, c.found + (f"\n[yellow]{c.mend}[/]" if c.mend and not c.ok else ""))
        output.print(table)
        bad = sum(not c.ok for c in checks)
        there = f" --address {shlex.quote(address)}" if address else ""
        well = f"all is well; next: cmray sweep experiments/quickstart.yaml{there}"
        output.print(well if not bad else f"{bad} to mend", highlight=False)
    return int(any(not c.ok for c in checks))


def _versions() -> list[Check]:
    from packaging.requirements import Requirement

    checks = [Check("python", True, platform.python_version())]
    for text in importlib.metadata.requires("cmray") or []:
        requirement = Requirement(text)
        if requirement.marker is not None:  # extras
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            checks.append(
                Check(requirement.name, False, "not installed", f"pip install -c constraints.txt '{requirement}'")
            )
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        checks.append(
            Check(requirement.name, fits, version, "" if fits else f"pip install -c constraints.txt '{requirement}'")
        )
    return checks


def _plugins() -> list[Check]:
    from cmray.core.plugins import PluginError, announced
    from cmray.core.registry import from_plugins

    try:
        found = announced()
    except PluginError as error:
        return [Check("plug-ins", False, str(error), "mend CMRAY_PLUGINS")]
    checks = []
    for plugin in found:
        name = f"plug-in {plugin.entry_point or plugin.module}"
        try:
            plugin.load()
        except PluginError as error:
            mend = "mend it: until then every command that looks for components ends with this"
            checks.append(Check(name, False, str(error), mend))
    if not checks:
        brought = from_plugins()
        for plugin in found:
            what = ", ".join(f"{kind} {name}" for other, kind, name in brought if other == plugin)
            told = f"{plugin.title}: {what or 'registers nothing'}"
            checks.append(Check(f"plug-in {plugin.entry_point or plugin.module}", True, told))
    return checks


def _devices() -> Check:
    import torch

    count = torch.cuda.device_count()
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(count))
    return Check("GPUs", True, names or f"none; {os.cpu_count()} CPU cores are used")


def _memory() -> Check:
    shm = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0
    enough = shm >= 2**28
    return Check("shared memory", enough, f"{shm / 2**30:.1f} GiB free in /dev/shm", "give the container --shm-size=1g")


def _storage(storage: object) -> list[Check]:
    from pathlib import Path

    from cmray.core.errors import StorageError
    from cmray.core.locks import check_writable
    from cmray.engine.remote import shown, store_of

    folder = Path(str(storage))
    existed = folder.exists()
    store = store_of(folder)
    try:
        check_writable(folder)
        if store is not None:
            store.check_writable()
        free = shutil.disk_usage(folder).free / 2**30
        if not existed:
            folder.rmdir()
        return [
            Check(
                "storage",
                free > 1,
                f"{shown(folder)}: writable, {free:.0f} GiB free{' for its working copy' if store else ''}",
                "free some disk, or --storage elsewhere",
            )
        ]
    except StorageError as error:
        return [Check("storage", False, str(error), "name a folder you may write with --storage or CMRAY_STORAGE")]


def _tracking(uri: str | None, storage: str) -> Check:
    from pathlib import Path

    from cmray.core.errors import CmrayError
    from cmray.tracking.make import make_tracker
    from cmray.tracking.names import without_password

    try:
        make_tracker(uri, Path(storage), lambda _: None)
    except CmrayError as error:
        return Check("MLflow", False, str(error), "see --tracking-uri and MLFLOW_TRACKING_URI")
    if uri and uri.startswith("http"):
        import urllib.error
        import urllib.request

        try:
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5)
        except (urllib.error.URLError, OSError, ValueError) as error:
            return Check(
                "MLflow",
                False,
                f"{without_password(uri)} does not answer: {error}",
                "start the server, or leave --tracking-uri out",
            )
    return Check("MLflow", True, without_password(uri) if uri else f"SQLite at {storage}/mlflow.db")


def _data(folder: str | None) -> list[Check]:
    from cmray.core.errors import CmrayError
    from cmray.datasets.location import Location
    from cmray.datasets.manifest import read_manifest, verify_shards

    if folder is None:
        return []
    try:
        manifest = read_manifest(folder)
        verify_shards(Location(folder), manifest, rehash=False)
    except (CmrayError, OSError) as error:
        return [Check("data", False, str(error), "prepare it: cmray data prepare NAME --out DIR")]
    return [Check("data", True, f"{folder}: {manifest.count:,} images")]


def _ray(address: str | None, storage: str, tracking_uri: str | None, data: str | None) -> list[Check]:
    from cmray.cluster.connect import connected, ray_address
    from cmray.core.errors import CmrayError
    from cmray.core.plugins import PluginError

    where = ray_address(address)
    if where is not None:
        from cmray.cluster.checkup import cluster_checks

        return cluster_checks(where, storage, tracking_uri, data, lambda line: errors.print(line, highlight=False))
    try:
        with connected(None) as capacity:
            return [Check("Ray", True, f"{capacity.where}: {capacity.cpus:g} logical CPUs, {capacity.gpus:g} GPUs")]
    except PluginError:  # told beside
        return [Check("Ray", False, "not tried: a plug-in is broken")]
    except CmrayError as error:
        return [Check("Ray", False, str(error), "check --address and RAY_ADDRESS; without them Ray starts here")]


def _weights() -> list[Check]:
    import torch

    from cmray.core.errors import CmrayError
    from cmray.metrics.extractors import extractors

    checks = []
    try:
        names = extractors.names()
    except CmrayError as error:  # a plug-in that is broken hides all
        return [Check("extractors", False, str(error))]
    for name in names:
        try:
            made = extractors.parse(name).build(torch.device("cpu"))
            checks.append(Check(f"extractor {name}", True, f"{made.dim} features, weights {made.sha256[:8]}"))
        except CmrayError as error:  # published weights are the user's to bring; what ships with cmray must be there
            checks.append(Check(f"extractor {name}", name != "digits", f"only metrics of it need this: {error}"))
    return checks


def _backbones() -> list[Check]:
    """A backbone that is not here is no fault: only runs with that distance need it, and their plan says so too."""
    from cmray.core.errors import CmrayError
    from cmray.metrics.lpips import BACKBONES, how_to_get, load_features, weights_path

    checks = []
    for net, backbone in BACKBONES.items():
        name, path = f"lpips {net}", weights_path(net)
        if not path.exists():
            found = f"{backbone.file} is not here; only the distance lpips with net {net} needs it: {how_to_get(net)}"
            checks.append(Check(name, True, found))
            continue
        try:
            load_features(net, path)
            checks.append(Check(name, True, str(path)))
        except CmrayError as error:
            checks.append(Check(name, False, str(error)))
    return checks
