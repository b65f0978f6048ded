"""`cmray import` and `cmray export`."""

from __future__ import annotations

import shlex
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmray.cli.console import errors, print_json, say
from cmray.cli.options import DEFAULT_STORAGE, Json, RunName, Storage, TrackingUri, Weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cmray.cli.documents import ExportedModel, Imported
    from cmray.exchange.base import Exported, MismatchError

#: registered names, read off the file names: importing them would import torch, which help must not wait for
_ROOM = Path(__file__).parents[1] / "exchange"
SOURCES = sorted(path.stem for path in (_ROOM / "incoming").glob("*.py") if path.stem != "__init__")
#: MLflow's folder is written by tracking/, which alone imports it
FORMATS = sorted([*(p.stem for p in (_ROOM / "outgoing").glob("*.py") if p.stem != "__init__"), "pyfunc"])

#: rows of the table of keys that do not fit
ROWS = 12


def import_(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=f"{', '.join(SOURCES)}.", show_default=False)],
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A file, or a folder of diffusers or safetensors.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="CHECKPOINT", help="The new folder.", show_default=False)],
    objective: Annotated[
        str | None,
        typer.Option(
            "--objective",
            metavar="NAME",
            help="What it was trained with, where its name or content does not tell: edm, cd, ct, ... "
            "Options as YAML: '{name: ct, num_sigmas: 151}'.",
        ),
    ] = None,
    net: Annotated[
        str | None,
        typer.Option(
            "--net", metavar="YAML", help="Fields of the network over what is recognised: '{head_width: 32}'."
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=1, help="Pixels a side, where the file does not tell.")
    ] = None,
    qkv_order: Annotated[
        str | None,
        typer.Option(
            "--qkv-order",
            metavar="thirds|heads",
            help="Rows of attention in openai's files: heads is guided-diffusion's; default by the shape of weights.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="NAME_OR_FOLDER", help="What it learned from, to measure against by default."),
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", metavar="NAME", help="Of the weights, such as mit or cc-by-nc-sa-4.0.")
    ] = None,
    note: Annotated[str, typer.Option("--note", help="A line that stays with the checkpoint.")] = "",
    as_json: Json = False,
) -> None:
    """Make a checkpoint of weights that others trained; nothing of a file is executed.

    SOURCE is openai (.pt of consistency_models), edm (.pkl of NVlabs), diffusers (a folder of
    ConsistencyModelPipeline), or safetensors (a folder of `cmray export`). The checkpoint can be sampled,
    evaluated, searched and named as teacher.

    Example: cmray import openai edm_imagenet64_ema.pt --out checkpoints/edm-imagenet64

    Example: cmray import edm edm-cifar10-32x32-uncond-vp.pkl --out checkpoints/edm-cifar10 --data data/cifar10
    """
    from cmray.core.errors import ConfigError
    from cmray.core.files import check_place
    from cmray.exchange.base import MismatchError, sources
    from cmray.exchange.importing import Asked, import_checkpoint

    kind = sources.get(source)
    given: dict[str, Any] = {"net": _mapping(net, "--net") or {}, "image_size": image_size}
    if qkv_order is not None:
        if source != "openai":
            raise ConfigError(f"--qkv-order is about openai's files, but SOURCE is {source}; leave it out")
        if qkv_order not in ("thirds", "heads"):
            raise ConfigError(f"--qkv-order is {qkv_order!r}; it is thirds or heads")
        given["qkv_order"] = qkv_order
    check_place(out, "--out", folder=True)
    if not file.exists():
        raise ConfigError(f"{file} does not exist; cmray downloads no weights, docs/exchange.md says where they are")
    asked = Asked(_spec(objective, "--objective"), _data(data), licence, note)
    try:
        with _working(f"reading {file}"):
            facts, assumed = import_checkpoint(kind(**given), file, out, asked)
    except MismatchError as error:
        _show(error)
        raise
    origin = facts.origin
    assert origin is not None
    run, shape = facts.run, "x".join(str(side) for side in facts.shape[1:])
    if as_json:
        told: Imported = {
            "out": str(out),
            "shape": facts.shape,
            "num_classes": facts.num_classes,
            "net": facts.run_config["net"],
            "objective": facts.run_config["objective"],
            "origin": origin,
            "assumed": assumed,
        }
        print_json(told)
        return
    classes = f", {facts.num_classes} classes" if facts.num_classes else ""
    channels = f"{facts.shape[0]} channel{'s' * (facts.shape[0] > 1)}"
    say(f"{run.net.name} for {shape} images of {channels}{classes}, {run.objective.name}: {out}")
    say(f"from {origin.file}, SHA-256 {origin.sha256[:12]}, licence {origin.licence or 'unknown (--licence NAME)'}")
    if assumed:
        say(f"assumed: {assumed}")
    teacher = f"; in an experiment: teacher: {{checkpoint: {out}}}" if run.objective.is_denoiser else ""
    say(f"next: cmray sample {shlex.quote(str(out))} --nfe {run.objective.usual_nfe} --out samples.png{teacher}")


def export(
    run: RunName,
    to: Annotated[str, typer.Option("--format", metavar="FORMAT", help=f"{', '.join(FORMATS)}.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The new folder.", show_default=False)],
    weights: Weights = None,
    nfe: Annotated[
        int | None,
        typer.Option(
            "--nfe",
            min=1,
            help="pyfunc: network evaluations of a request that gives no times, at searched times where there are any.",
        ),
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", metavar="NAME", help="For the model card, such as mit or apache-2.0.")
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Write a model in a format that others read.

    FORMAT is safetensors (any model), diffusers (a folder that ConsistencyModelPipeline loads; adm networks), onnx
    (the one-step sampler), or pyfunc (for `mlflow models serve`). All but pyfunc have a model card with what was
    measured and how.

    Example: cmray export quickstart/cd-1a2b3c --format safetensors --out exported --licence apache-2.0
    """
    from cmray.core.errors import ConfigError, nearest
    from cmray.core.files import check_place
    from cmray.exchange.base import targets
    from cmray.exchange.exporting import export_model, exported
    from cmray.tracking.places import find_run

    if to not in FORMATS:
        raise ConfigError(f"unknown format '{to}'; {nearest(to, FORMATS)}")
    if to != "pyfunc" and nfe is not None:
        raise ConfigError(f"--nfe is about pyfunc, but --format is {to}; leave it out")
    if to == "pyfunc" and (weights, licence) != (None, None):
        raise ConfigError("pyfunc serves the first EMA and has no model card; leave --weights and --licence out")
    check_place(out, "--out", folder=True)
    found = find_run(run, storage.expanduser().absolute(), tracking_uri)
    own = found.checkpoint == found.folder
    name = found.folder.name if own else f"{found.folder.parent.name}/{found.folder.name}"
    with _working(f"writing {out}"):
        what = exported(found.folder, found.checkpoint, name, weights, licence)
        following = (
            _pyfunc(what, found.folder, nfe, out) if to == "pyfunc" else export_model(what, targets.get(to)(), out)
        )
    following = shlex.join(word.replace("{out}", str(out)) for word in shlex.split(following))
    if as_json:
        told: ExportedModel = {
            "out": str(out),
            "format": to,
            "weights": what.model.weights,
            "licence": what.licence,
            "files": sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()),
        }
        print_json(told)
        return
    say(f"{name} ({what.model.weights}) as {to}: {out}")
    if to != "pyfunc" and not what.licence:
        say("the model card says that no licence was given; --licence NAME gives one")
    say(f"next: {following}")


def _pyfunc(what: Exported, folder: Path, nfe: int | None, out: Path) -> str:
    from cmray.engine.model import make_sampler
    from cmray.engine.searched import searched_times
    from cmray.tracking.mlflow import save_pyfunc
    from cmray.tracking.served import ServedModel

    budget = nfe or what.run.objective.usual_nfe
    known = searched_times(folder, what.model.weights_sha256).get(budget)
    times = known.times if known else None
    make_sampler(what.run, budget, times)  # refuses a budget that the model cannot take
    save_pyfunc(ServedModel(what.name, what.checkpoint, budget, times), out)
    return "mlflow models serve -m {out} --env-manager local"


def _mapping(text: str | None, option: str) -> dict[str, Any] | None:
    value = _spec(text, option)
    if value is not None and not isinstance(value, dict):
        raise typer.BadParameter(f"{option} is {text!r}; write fields in braces, such as '{{head_width: 32}}'")
    return value


def _spec(text: str | None, option: str) -> Any:
    """A name, or a mapping in YAML."""
    if text is None:
        return None
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, str | dict):
        raise typer.BadParameter(f"{option} is {text!r}; write a name, or {{name: NAME, OPTION: VALUE}}")
    return value


def _data(text: str | None) -> dict[str, Any] | None:
    """A dataset's name that cmray prepares by itself, or a folder."""
    if text is None:
        return None
    from cmray.datasets import datasets

    return {"name": text} if text in datasets.names() and not Path(text).exists() else {"path": text}


def _show(error: MismatchError) -> None:
    """The first keys that do not fit, as a table on standard error."""
    from rich.table import Table

    table = Table("key", "in the file", "in the network")
    for row in error.rows[:ROWS]:
        cells = ["x".join(map(str, s)) if s is not None else "missing" for s in (row.in_file, row.in_network)]
        table.add_row(row.key, *cells)
    errors.print(table)
    if len(error.rows) > ROWS:
        errors.print(f"and {len(error.rows) - ROWS} more", highlight=False)


@contextmanager
def _working(text: str) -> Iterator[None]:
    """A spinner on a terminal while a file of gigabytes is read."""
    if not errors.is_terminal:
        yield
        return
    with errors.status(text):
        yield
