"""From a foreign file to a checkpoint folder that every command takes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from cmray.config.checkpoint_facts import CheckpointFacts, Origin, ema_file
from cmray.config.run import RunConfig
from cmray.core.errors import CheckpointError, ConfigError
from cmray.core.files import beside, check_place, sha256_of
from cmray.engine.checkpoint import save_checkpoint
from cmray.exchange.base import Foreign, Source, first_of
from cmray.exchange.published import PUBLISHED
from cmray.objectives import objectives

#: rate of the one average an imported checkpoint has: no memory, the weights as they came
RATE = 0.0
#: nobody knows how long it was trained; long enough for every schedule to be one
STEPS = 1_000_000
#: stands where the run of a distilled model names its teacher
NO_TEACHER = "not-imported"


@dataclass(frozen=True)
class Asked:
    """What the user says of a file beside what it tells.

    Args:
        objective: as in an experiment file; None takes what the file tells.
        data: as in an experiment file; None takes what is known of a published file.
        licence: of the weights; None takes what is known.
    """

    objective: Any = None
    data: Mapping[str, Any] | None = None
    licence: str | None = None
    note: str = ""


def import_checkpoint(source: Source, path: Path, out: Path, asked: Asked) -> tuple[CheckpointFacts, str]:
    """Reads a foreign file and writes a checkpoint folder, whole or not at all; its manifest, and what was assumed.

    Raises:
        CmrayError: the file is something else, or `out` exists.
    """
    check_place(out, "--out", folder=True)
    foreign = source.read(path)
    run = _run(foreign, path, asked)
    known = PUBLISHED.get(path.name)
    licence = asked.licence or foreign.licence or (known.licence if known else None)
    origin = Origin(
        format=source.name, file=path.name, sha256=sha256_of(foreign.weights), licence=licence, note=asked.note,
        data_known=bool(foreign.run or asked.data or (known and known.data)),
    )  # fmt: skip
    if foreign.origin is not None:  # it came through cmray before, and keeps where it really is from
        origin = foreign.origin.model_copy(update={"licence": licence, "note": asked.note or foreign.origin.note})
    facts = CheckpointFacts(
        step=foreign.step, nimg=foreign.nimg, seconds=0.0, shape=foreign.shape, num_classes=foreign.num_classes,
        run_config=run.model_dump(mode="json"), files={}, scalars={}, origin=origin,
    )  # fmt: skip
    with beside(out) as tmp, tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=tmp.parent) as folder:
        os.replace(save_checkpoint(Path(folder), {ema_file(RATE): foreign.state}, facts, keep=1), tmp)
    return facts, foreign.assumed


def _run(foreign: Foreign, path: Path, asked: Asked) -> RunConfig:
    """The run that the checkpoint is of, as far as anybody knows it."""
    known = PUBLISHED.get(path.name)
    objective = asked.objective or foreign.objective
    data = asked.data or (known.data if known else None) or {"path": f"data/{path.stem}"}
    if foreign.run is not None:
        changes: dict[str, Any] = {"train": {**foreign.run.train.model_dump(mode="json"), "ema": [RATE]}}
        values = {**foreign.run.model_dump(mode="json"), **changes}
        if asked.objective is not None or asked.data is not None:
            raise ConfigError(f"{path} tells its run by itself; leave --objective and --data out")
    else:
        if objective is None:
            raise ConfigError(
                f"{path.name} is not the name of a published file, and the file does not tell what it was trained "
                f"with; say --objective edm, cd or ct"
            )
        spec: dict[str, Any] = {"name": objective} if isinstance(objective, str) else dict(objective)
        grid = foreign.num_sigmas
        if grid is not None and spec.get("name") in ("cd", "ct") and "num_sigmas" not in spec:
            spec["num_sigmas"] = grid
        values = {
            "data": dict(data),
            "net": foreign.net.model_dump(mode="json"),
            "noise": dict(foreign.noise),
            "objective": spec,
            "train": {"steps": STEPS, "batch_size": 1, "ema": [RATE]},
        }
    try:
        if foreign.run is None and objectives.parse(values["objective"]).uses_teacher:
            values["teacher"] = {"checkpoint": NO_TEACHER}
    except ValidationError as error:
        raise CheckpointError(f"{path}: {first_of(error, 'objective')}") from None
    except PydanticCustomError as error:
        raise CheckpointError(f"{path}: objective: {error.message()}") from None
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise CheckpointError(f"{path}: {first_of(error)}") from None
