"""Distributed experiments on consistency models. `cmray.load_experiment` opens an experiment in pandas."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from cmray.core.version import __version__

if TYPE_CHECKING:
    from cmray.report.frames import ExperimentFrames

__all__ = ["__version__", "load_experiment"]


def load_experiment(name: str, storage: str | PathLike[str] | None = None) -> ExperimentFrames:
    """What an experiment has left in its storage folder, finished or not, as tidy pandas frames.

        fig3 = cmray.load_experiment("fig3")
        fig3.trials, fig3.curves, fig3.evaluations, fig3.searches, fig3.record

    `cmray.report.frames.ExperimentFrames` says what their columns are. Reads files only: no torch, Ray or MLflow.

    Args:
        name: the experiment's, which is the name of its folder.
        storage: the folder of all results; by default CMRAY_STORAGE, else ./cmray-data, as on the command line.

    Raises:
        UnknownExperimentError: the folder holds no such experiment; the message names the nearest.
        StorageError: a file is not what it should be; the message names it.
    """
    from cmray.report.frames import load_frames

    return load_frames(name, storage)
