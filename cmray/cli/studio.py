"""`cmray studio`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmray.cli.console import errors, say
from cmray.cli.measuring import set_threads
from cmray.cli.options import DEFAULT_STORAGE, Storage, TrackingUri, Weights, command

if TYPE_CHECKING:
    from cmray.studio.shelf import Place


def studio(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="EXPERIMENT/TRIAL, a trial's name, or its beginning, an MLflow run id, a checkpoint folder, or an "
            "EXPERIMENT for all of its trials.",
            show_default=False,
        ),
    ],
    port: Annotated[
        int | None,
        typer.Option(
            "--port", min=1, max=65535, help="Port on 127.0.0.1; default 7860, or a free one.", show_default=False
        ),
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Only print the address; open no browser.")] = False,
    weights: Weights = None,
    storage: Storage = DEFAULT_STORAGE,
    tracking_uri: TrackingUri = None,
) -> None:
    """Play with trained models in the browser, on this machine only. Ctrl-C ends it.

    Seeds, steps and times with images that follow at once, models side by side from the same noise, masks and strokes
    to draw, and ways between seeds to drag along.

    \b
    Example: cmray studio quickstart
    cmray studio quickstart/cd-1a2b quickstart/ct-3c4d --port 8000 --no-open
    """
    from cmray.studio.serve import check_installed, free_port, serve

    check_installed()
    from cmray.studio.shelf import open_shelf

    storage = storage.expanduser().absolute()
    places = [place for text in runs for place in _meant(text, storage, tracking_uri)]
    shelf = open_shelf(places, storage, weights, lambda words: command(*words, storage=storage))
    chosen = free_port(port)
    set_threads([(entry.checkpoint, entry.facts, shelf.weights) for entry in shelf.entries.values()])

    def ready(address: str) -> None:
        models = f"{len(shelf.names)} models" if len(shelf.names) > 1 else shelf.names[0]
        say(f"studio at {address}, with {models} (Ctrl-C ends it)")
        if not no_open and _has_screen():
            import webbrowser

            webbrowser.open(address)

    errors.print("starting", highlight=False)
    serve(shelf, chosen, ready)


def _meant(text: str, storage: Path, tracking_uri: str | None) -> list[Place]:
    """One trial; or those of an experiment that have a checkpoint, teachers last. Raises CmrayError."""
    from cmray.core.errors import CmrayError
    from cmray.engine.remote_sync import refresh_all
    from cmray.report.load import load_experiment
    from cmray.studio.shelf import Place
    from cmray.tracking.places import find_run

    if "/" not in text and not Path(text).expanduser().exists():
        refresh_all(storage)
        if (storage / text / "experiment.json").is_file():
            trials = sorted(load_experiment(storage, text).trials, key=lambda trial: trial.role == "teacher")
            whole = [trial for trial in trials if any(trial.folder.glob("checkpoints/step-*/meta.json"))]
            if not whole:
                raise CmrayError(f"none of the {len(trials)} trials of {text} has a whole checkpoint yet")
            return [Place(t.folder, find_run(str(t.folder), storage).checkpoint, t.label) for t in whole]
    found = find_run(text, storage, tracking_uri)
    try:
        trials = load_experiment(found.folder.parent.parent, found.folder.parent.name).trials
    except CmrayError:  # it was trained alone, or is a checkpoint
        trials = []
    label = next((trial.label for trial in trials if trial.folder == found.folder), "")
    return [Place(found.folder, found.checkpoint, label)]


def _has_screen() -> bool:
    """Without one, a browser in text mode would take the terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
