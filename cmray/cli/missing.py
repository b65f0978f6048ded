"""What to say when the images or the weights of an experiment are not here: what is missing, what it all costs, what
runs now. One line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cmray.cli.options import command as command_to_copy
from cmray.config.checks import Missing
from cmray.config.data_facts import prepare_command
from cmray.config.plan import Plan, plan_experiment
from cmray.core.errors import CmrayError, ConfigError
from cmray.engine.cost import SPEED, cost_of


def explained(
    error: CmrayError,
    file: Path,
    overrides: Sequence[str],
    storage: Path,
    only: Sequence[str],
    overlays: Sequence[Path],
) -> CmrayError:
    """A better error in the place of `error`, a dataset or weights that are missing."""
    missing = Missing()
    try:
        plan = plan_experiment(file, overrides, storage, only, overlays, missing)
    except CmrayError as other:  # something that preparing the data would not mend
        return other
    parts = [_needs(file, missing) if missing.datasets else str(error)]
    if any(t.run.resources.gpus_per_worker for t in plan.all_trials):
        parts.append(f"{'these panels take' if only else 'the whole file takes'} {gpu_hours(plan)}")
    overlay = _that_runs(file, storage)
    if overlay is not None:
        words = command_to_copy(
            "sweep" if plan.config.panels else "train", str(file), "--overlay", str(overlay), storage=storage
        )
        parts.append(f"small and now, on this machine: `{words}`")
    return ConfigError("; ".join(parts))


def gpu_hours(plan: Plan) -> str:
    """About 14,400 GPU-hours, and at which speed."""
    return f"about {hours(cost_of(plan).total)} GPU-hours ({SPEED})"


def hours(value: float) -> str:
    """Three digits at most, as nobody knows more: 14,400, 99, 2.5 or 0.01."""
    if value >= 10:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.2g}" if value >= 0.01 or value == 0 else "less than 0.01"


def _needs(file: Path, missing: Missing) -> str:
    wanted = []
    for folder, name in missing.datasets.items():
        place = _near(Path(folder))
        wanted.append(f"{name} in {place}, which is not there: `{prepare_command(name, str(place))}`")
    data = _near(Path(next(iter(missing.datasets))))
    features = [f"then `cmray features train {data} --out {_near(Path(file))}`" for file in sorted(missing.trained)]
    files = ", ".join(sorted(missing.files))
    weights = f"; and weights that are not here: {files} (`cmray doctor` says how to get them)" if files else ""
    return f"{file} needs {', '.join([' and '.join(wanted), *features])}{weights}"


def _near(path: Path) -> Path:
    """The path from here, where it is below."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def _that_runs(file: Path, storage: Path) -> Path | None:
    """The first overlay beside the file, or beside its folder, with which it could run here."""
    for folder in (file.parent / "overlays", file.parent.parent / "overlays"):
        for overlay in sorted(folder.glob("*.yaml"), key=lambda path: path.stem):
            try:
                plan_experiment(file, [], storage, overlays=[overlay])
            except CmrayError:
                continue
            return overlay
    return None
