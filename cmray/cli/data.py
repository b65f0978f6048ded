"""`cmray data prepare` and `cmray data info`."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmray.cli.console import errors, output, print_json, say
from cmray.cli.options import Address, Json, OwnSet, fields_set
from cmray.cli.preparing import bar, downloading

if TYPE_CHECKING:
    from pydantic import ValidationError

    from cmray.datasets import DatasetConfig
    from cmray.datasets.manifest import Manifest

app = typer.Typer(help="Prepare datasets as Parquet shards, and look at them.", no_args_is_help=True)

NAMES = "digits, mnist, fashion-mnist, cifar10, imagenet64, lsun, folder, parquet, npz"


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"What it is: {NAMES}.", show_default=False)],
    out: Annotated[
        str, typer.Option("--out", metavar="DIR", help="Folder to make; s3:// and gs:// work too.", show_default=False)
    ],
    source: Annotated[
        Path | None,
        typer.Option(
            "--source", metavar="PATH", help="Your files. mnist, fashion-mnist and cifar10 can be downloaded."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="NAME", help="Part of the source: train (usual), test, val, ...")
    ] = None,
    set_: OwnSet = None,
    size: Annotated[
        int | None, typer.Option("--size", metavar="PIXELS", help="Side of the images; needs --crop.", min=1)
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option(
            "--crop",
            metavar="RULE",
            help="How images become square: none (they are of one size), center, adm (as for ImageNet 64), lsun, "
            "stretch, pad.",
        ),
    ] = None,
    channels: Annotated[
        int | None, typer.Option("--channels", metavar="1|3", help="Grayscale or RGB; default: what the images are.")
    ] = None,
    background: Annotated[
        str | None,
        typer.Option("--background", metavar="COLOUR", help="white (default) or black, under transparent pixels."),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option("--encoding", metavar="FORM", help="raw, png or jpeg; default: raw below 256 pixels, else png."),
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option("--shards", metavar="N", help="Number of Parquet files; default: of about 96 MiB each."),
    ] = None,
    max_bad: Annotated[
        int, typer.Option("--max-bad", metavar="N", help="Leave out up to N images that cannot be used.", min=0)
    ] = 0,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Write a dataset as Parquet shards with a manifest. Interrupted, the same command goes on where it was.

    Example: cmray data prepare digits --out data/digits

    Example: cmray data prepare cifar10 --source downloads/cifar-10-python.tar.gz --out data/cifar10

    Example: cmray data prepare folder --source photos --crop center --size 64 --out data/photos
    """
    from cmray.cluster.connect import ray_address
    from cmray.cluster.prepare import prepare as run
    from cmray.datasets.arrays import printable
    from cmray.datasets.prepare import SKIPPED, Preparation

    given = {key: value for key, value in (("source", source), ("split", split)) if value is not None}
    config = _dataset(name, given, fields_set({}, set_))
    options = {"crop": crop, "size": size, "channels": channels, "background": background, "encoding": encoding}
    _rule(config.usual_rule, options)  # options that contradict each other are told before anything is read
    with downloading(name):
        source_images = config.open()
    preparation = Preparation(source_images, _rule(config.rule_for(source_images), options), out, shards, max_bad)
    if preparation.progress.shards:
        errors.print(f"going on after {preparation.progress.position:,} of {preparation.count:,} images")
    with bar(preparation.count) as done:
        manifest = run(preparation, ray_address(address), done)
    if as_json:
        print_json(manifest.model_dump(mode="json"))
        return
    say(
        f"{manifest.count:,} images of {'x'.join(map(str, manifest.shape))} in {len(manifest.shards)} shards, "
        f"{manifest.file_bytes / 2**10:,.0f} KiB, verified: {printable(out)}"
    )
    if manifest.skipped:
        say(f"{manifest.skipped} images could not be used and were left out: {printable(out.rstrip('/'))}/{SKIPPED}")
    say(f"next: cmray data info {printable(out)}")


def _dataset(name: str, given: Mapping[str, Any], by_set: Mapping[str, Any]) -> DatasetConfig:
    """The dataset with the options that were given, and by --set. Raises ConfigError for one that it does not take."""
    from pydantic import ValidationError

    from cmray.core.errors import ConfigError, nearest
    from cmray.datasets import datasets

    fields = [field for field in datasets.get(name).model_fields if field != "name"]
    for key in given:
        if key not in fields:
            raise ConfigError(f"--{key} is given, but {name} comes with {_bringer(name)} and takes no {key}")
    for key in by_set:
        if key in given:
            raise ConfigError(f"--{key} and --set {key} are both given; give one")
        if key not in fields:
            raise ConfigError(f"--set {key}: {name} has no field '{key}'; {nearest(key, fields)}")
    try:
        return datasets.parse({"name": name, **given, **by_set})
    except ValidationError as error:
        raise ConfigError(_refused(error, by_set)) from None


def _refused(error: ValidationError, by_set: Collection[str] = ()) -> str:
    """What is wrong with options, the first of it, in one line that names the option."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    field = str(first["loc"][0])
    return f"--set {field}={first['input']}: {message}" if field in by_set else f"--{field} {first['input']}: {message}"


def _bringer(name: str) -> str:
    from cmray.core.plugins import plugin_of
    from cmray.datasets import datasets

    plugin = plugin_of(datasets.get(name))
    return plugin.key if plugin else "cmray"


def _rule(usual: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """What images are made into: the dataset's usual rule with the options that were given. Raises ConfigError."""
    from pydantic import ValidationError

    from cmray.core.errors import ConfigError
    from cmray.datasets.images import ImageRule

    given = {key: value for key, value in options.items() if value is not None}
    try:
        return ImageRule.model_validate({**usual, **given})
    except ValidationError as error:
        raise ConfigError(_refused(error)) from None


@app.command()
def info(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="A prepared dataset, also s3://, ...", show_default=False)
    ],
    verify: Annotated[bool, typer.Option("--verify", help="Hash every shard and compare with the manifest.")] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE.png", help="Write a grid of images.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a prepared dataset holds, on a terminal with some of its images.

    Example: cmray data info data/digits --verify --picture digits.png
    """
    from cmray.core.errors import CmrayError
    from cmray.datasets.arrays import printable
    from cmray.datasets.manifest import read_manifest, verify_shards

    if picture is not None and not picture.absolute().parent.is_dir():
        raise CmrayError(f"--picture {picture}: folder {picture.absolute().parent} does not exist")
    manifest = read_manifest(folder)
    verify_shards(folder, manifest, rehash=verify)
    if picture is not None:
        from cmray.report.grids import image_grid

        images = _first_images(folder, manifest, 96)
        scale = max(1, 40 // images.shape[-1])
        image_grid(
            images, picture, columns=16, scale=scale, title=f"{printable(manifest.name)}: the first {len(images)}"
        )
    if as_json:
        print_json(manifest.model_dump(mode="json"))
        return
    output.print(_facts(manifest, verify, picture))
    if output.is_terminal and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        from cmray.cli.thumbnails import thumbnails

        output.print(thumbnails(_first_images(folder, manifest, 40), output.width))


def _first_images(folder: str, manifest: Manifest, count: int) -> Any:
    """uint8 [n, C, H, W]: the images at the beginning, without reading more than their blocks."""
    import numpy as np

    from cmray.datasets.shards import iterate

    blocks, have = [], 0
    for images, _ in iterate(folder, manifest):
        blocks.append(images[: count - have])
        have += len(blocks[-1])
        if have >= count:
            break
    return np.concatenate(blocks)


def _facts(manifest: Manifest, verified: bool, picture: Path | None) -> Any:
    from rich.table import Table
    from rich.text import Text

    from cmray.datasets.arrays import printable

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    by_channel = ", ".join(
        f"{mean:.3f}/{std:.3f}" for mean, std in zip(manifest.channel_mean, manifest.channel_std, strict=True)
    )
    for key, value in {
        "name": f"{manifest.name} ({manifest.split})",
        "source": manifest.source,
        "images": f"{manifest.count:,}" + (f", {manifest.skipped} left out" if manifest.skipped else ""),
        "shape (C, H, W)": ", ".join(map(str, manifest.shape)),
        "classes": f"{len(manifest.classes)}: {', '.join(manifest.classes[:12])}" if manifest.classes else "none",
        "crop rule": manifest.crop + f", transparency on {manifest.background}",
        "mean, std in [-1, 1]": f"{manifest.mean:.4f}, {manifest.std:.4f}"
        + (f" (by channel {by_channel})" if len(manifest.channel_mean) > 1 else ""),
        "content SHA-256": manifest.digest,
        "shards": f"{len(manifest.shards)}, {manifest.file_bytes / 2**10:,.0f} KiB as "
        + ("pixels" if manifest.encoding == "raw" else manifest.encoding.upper())
        + (", all hashes verified" if verified else ""),
        "in memory": f"{manifest.nbytes / 2**20:,.1f} MiB",
        "prepared by": f"cmray {manifest.cmray_version}",
        **({"picture": str(picture)} if picture else {}),
    }.items():
        table.add_row(f"[bold]{key}[/]", Text(printable(value), overflow="fold"))
    return table
