"""`cmray data prepare` and `cmray data info`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmray.cli.console import output, print_json, say
from cmray.cli.options import Json

if TYPE_CHECKING:
    from cmray.datasets import DatasetConfig

app = typer.Typer(help="Prepare datasets as Parquet shards, and look at them.", no_args_is_help=True)


@app.command()
def prepare(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A dataset cmray knows: digits, mnist, parquet.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to make.", show_default=False)],
    source: Annotated[
        Path | None,
        typer.Option(
            "--source",
            metavar="PATH",
            help="Your files: IDX or Parquet for mnist; for parquet, any images of one size in Hugging Face's layout.",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="NAME", help="Part of the source: train (the default of mnist), test, ..."),
    ] = None,
    shards: Annotated[int, typer.Option("--shards", help="Number of Parquet files.")] = 4,
    as_json: Json = False,
) -> None:
    """Write a dataset as Parquet shards with a manifest, whole or not at all.

    Example: cmray data prepare digits --out data/digits

    Example: cmray data prepare parquet --source downloads/cifar10 --split train --out data/cifar10
    """
    from cmray.datasets.shards import verify_shards, write_shards

    given = {key: value for key, value in (("source", source), ("split", split)) if value is not None}
    manifest = write_shards(_dataset(name, given).load(), out, shards)
    verify_shards(out, manifest, rehash=True)
    if as_json:
        print_json(manifest.model_dump(mode="json"))
        return
    size = sum(s.bytes for s in manifest.shards)
    say(
        f"{manifest.count:,} images of {'x'.join(map(str, manifest.shape))} in {len(manifest.shards)} shards, "
        f"{size / 2**10:,.0f} KiB, verified: {out}"
    )
    say(f"next: cmray data info {out}")


def _dataset(name: str, given: Mapping[str, Any]) -> DatasetConfig:
    """The dataset with the options that were given. Raises ConfigError for one that it does not take."""
    from pydantic import ValidationError

    from cmray.core.errors import ConfigError
    from cmray.datasets import datasets

    fields = datasets.get(name).model_fields
    for key in given:
        if key not in fields:
            raise ConfigError(f"--{key} is given, but {name} comes with cmray and takes no {key}")
    try:
        return datasets.parse({"name": name, **given})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--{first['loc'][0]} {first['input']}: {first['msg']}") from None


@app.command()
def info(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A prepared dataset.", show_default=False)],
    verify: Annotated[bool, typer.Option("--verify", help="Hash every shard and compare with the manifest.")] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE.png", help="Write a grid of images.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a prepared dataset holds.

    Example: cmray data info data/digits --verify --picture digits.png
    """
    from cmray.datasets.shards import read_manifest, read_shards, verify_shards

    manifest = read_manifest(folder)
    verify_shards(folder, manifest, rehash=verify)
    if picture is not None:
        from cmray.report.grids import image_grid

        images = read_shards(folder).images[:96]
        image_grid(
            images,
            picture,
            columns=16,
            scale=max(1, 40 // images.shape[-1]),
            title=f"{manifest.name}: the first {len(images)}",
        )
    if as_json:
        print_json(manifest.model_dump(mode="json"))
        return
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for key, value in {
        "name": f"{manifest.name} ({manifest.split})",
        "source": manifest.source,
        "images": f"{manifest.count:,}",
        "shape (C, H, W)": ", ".join(map(str, manifest.shape)),
        "classes": f"{len(manifest.classes)}: {', '.join(manifest.classes[:12])}" if manifest.classes else "none",
        "mean, std in [-1, 1]": f"{manifest.mean:.4f}, {manifest.std:.4f}",
        "content SHA-256": manifest.digest,
        "shards": f"{len(manifest.shards)}, {sum(s.bytes for s in manifest.shards) / 2**10:,.0f} KiB"
        + (", all hashes verified" if verify else ""),
        "prepared by": f"cmray {manifest.cmray_version}",
        **({"picture": str(picture)} if picture else {}),
    }.items():
        table.add_row(f"[bold]{key}[/]", value)
    output.print(table)
