"""Distributed experiments on consistency models.

`cmray.load` opens a trained model, `cmray.load_experiment` an experiment in pandas.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from cmray.core.version import __version__

if TYPE_CHECKING:
    from torch import device as Device

    from cmray.engine.trained import TrainedModel
    from cmray.report.frames import ExperimentFrames

__all__ = ["__version__", "load", "load_experiment"]


def load(
    run: str | PathLike[str],
    storage: str | PathLike[str] | None = None,
    device: str | Device | None = None,
    weights: str | None = None,
) -> TrainedModel:
    """A trained model, to sample from and to ask.

        model = cmray.load("quickstart/cd-1a2b3c")
        model.sample(16, nfe=2, times="searched", seed=5)       # float32 [16,C,H,W] in [-1, 1]

    `cmray.engine.trained.TrainedModel` says what it can do. The same weights are read once: a second call gives the
    same object. Threads may share it.

    Args:
        run: EXPERIMENT/TRIAL, a trial's name or its beginning, an MLflow run id (in the store of MLFLOW_TRACKING_URI,
            else in the storage folder's), or the folder of a trial or of a checkpoint.
        storage: the folder of all results, or a URL such as s3://bucket/folder; by default CMRAY_STORAGE, else
            ./cmray-data, as on the command line.
        device: "cpu", "cuda", "cuda:1"; by default a GPU where there is one.
        weights: "student" or "ema RATE"; by default the first EMA.

    Raises:
        CmrayError: no or several trials have this name, or the device is not here.
        CheckpointError: the checkpoint is damaged, or has no such weights.
    """
    import os

    from cmray.core.errors import CmrayError
    from cmray.core.storage import named_storage
    from cmray.engine.opened import open_trained
    from cmray.engine.remote import mount
    from cmray.tracking.places import find_run

    if not isinstance(run, str | PathLike):
        raise CmrayError(f"run is {run!r}; give EXPERIMENT/TRIAL, a run id, or a folder")
    found = find_run(os.fspath(run), mount(named_storage(storage)), os.environ.get("MLFLOW_TRACKING_URI") or None)
    return open_trained(found.checkpoint, found.folder, device, weights)


def load_experiment(name: str, storage: str | PathLike[str] | None = None) -> ExperimentFrames:
    """What an experiment has left in its storage folder, finished or not, as tidy pandas frames.

        fig3 = cmray.load_experiment("fig3")
        fig3.trials, fig3.curves, fig3.evaluations, fig3.searches, fig3.record

    `cmray.report.frames.ExperimentFrames` says what their columns are. Reads files only: no torch, Ray or MLflow.

    Args:
        name: the experiment's, which is the name of its folder.
        storage: the folder of all results, or a URL such as s3://bucket/folder; by default CMRAY_STORAGE, else
            ./cmray-data, as on the command line.

    Raises:
        UnknownExperimentError: the folder holds no such experiment; the message names the nearest.
        StorageError: a file is not what it should be; the message names it.
    """
    from cmray.report.frames import load_frames

    return load_frames(name, storage)
