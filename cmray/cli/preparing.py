"""What `cmray data prepare` shows while it downloads and decodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cmray.cli.console import errors


@contextmanager
def downloading(name: str) -> Iterator[None]:
    """Shows what is downloaded, if anything is: a bar on a terminal, elsewhere one line."""
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from cmray.datasets.download import downloads_folder, watcher

    columns = (TextColumn(f"downloading {name}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=errors, transient=True, disable=True) as progress:
        task = progress.add_task("", total=None)
        shown = False

        def told(done: int, about: int) -> None:
            nonlocal shown
            if not shown and errors.is_terminal:  # now there is something to show
                progress.disable = False
                progress.start()
            elif not shown:
                line = f"downloading {name} to {downloads_folder(name)}: about {about / 1e6:,.0f} MB"
                errors.print(escape(line), highlight=False, soft_wrap=True)
            shown = True
            progress.update(task, completed=done, total=about)

        before = watcher.set(told)
        try:
            yield
        finally:
            watcher.reset(before)


@contextmanager
def bar(count: int) -> Iterator[Any]:
    """A progress bar on a terminal; elsewhere a line every quarter of a minute."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("preparing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images,"),
        TimeElapsedColumn(),
        TextColumn("so far,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    if errors.is_terminal:
        with Progress(*columns, console=errors, transient=True) as progress:
            task = progress.add_task("", total=count)
            yield lambda done: progress.update(task, completed=done)
        return
    yield _lines(count)


def _lines(count: int) -> Any:
    import time

    from cmray.cli.console import duration
    from cmray.cli.progress import LINE_EVERY

    began = told = time.monotonic()
    first: int | None = None

    def line(done: int) -> None:
        nonlocal told, first
        now = time.monotonic()
        first = done if first is None else first
        if now - told >= LINE_EVERY and done > first:
            told = now
            left = (now - began) / (done - first) * (count - done)
            errors.print(f"{done:,} of {count:,} images, {duration(now - began)} so far, {duration(left)} left")

    return line
