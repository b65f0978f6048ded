"""A study that takes half a minute, what a disturbed one must have in common with it, and how to disturb one."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cli_run import CD, EDM, Ran, Running, digits, final_table, write

from cmray.config.checkpoint_facts import read_checkpoint_facts
from cmray.config.plan import plan_experiment
from cmray.tracking.events import read_events

STEPS, EVERY, LOG = 1500, 100, 10
#: long enough to be hit in the middle, a few seconds a trial
LONG: dict[str, Any] = {
    "train": {"steps": STEPS, "batch_size": 256, "checkpoint_every": EVERY, "log_every": LOG},
    "curve": {"every": 500, "num_samples": 64},
}
TEACHER = "teacher"
#: command lines of the processes that train, with several workers and with one, and that measure
DDP, TUNE, EVALUATOR = "RayTrainWorker", "ImplicitFunc", "_EvaluatorActor"


def study_in(folder: Path) -> Path:
    """A teacher with two workers, two students, measurements and a search."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / f"{TEACHER}.yaml", EDM, LONG, resources={"workers": 2})
    return write(
        folder / "study.yaml",
        CD,
        LONG,
        teacher={"experiment": f"{TEACHER}.yaml"},
        panels={"N": {"grid": {"objective.num_sigmas": [5, 9]}}},
        evaluate={"num_samples": 256, "nfe": [1], "teacher_nfe": [1]},
        search={"nfe": [2], "num_samples": 2048, "trials": "best"},
    )


def sweeping(folder: Path, *arguments: object, tracking: str = "none", **environment: str) -> Running:
    storage = folder / "storage"
    file = study_in(folder)
    more = ("--storage", storage, "--tracking-uri", tracking, *arguments)
    return Running(folder / "desk", "sweep", file, *more, **environment)


def made(folder: Path) -> dict[str, Any]:
    """All that a finished study must have in common with any other: its table, its weights, every step once."""
    plan = plan_experiment(folder / "study.yaml", [], folder / "storage")
    rows = final_table((plan.folder / "report" / "table.csv").read_text())
    assert len(rows) == 3
    found: dict[str, Any] = {"table": rows}
    for trial in plan.all_trials:
        assert not (trial.folder / "error.txt").exists()
        assert not list(trial.folder.rglob(".step-*")), "half a checkpoint stayed"
        (checkpoint,) = (trial.folder / "checkpoints").iterdir()
        found[trial.name] = {
            **trained(trial.folder, STEPS),
            "files": read_checkpoint_facts(checkpoint).files,
            "searches": [
                {"times": one["times"], "rounds": one["rounds"], "value": digits(one["value"])}
                for one in (json.loads(path.read_text()) for path in sorted(trial.folder.glob("searches/*.json")))
            ],
        }
    return found


def trained(folder: Path, steps: int) -> dict[str, Any]:
    """The log and the curve of a finished trial, which has every step once."""
    events = read_events(folder / "events.jsonl")
    logged = [e.step for e in events if e.kind == "train"]
    assert logged == list(range(LOG, steps + 1, LOG)), f"{folder.name} has steps twice or not at all"
    cut = {-(-step // LOG) * LOG for step in (int(one["step"]) for one in attempts(folder)) if step % LOG}
    return {
        # where it left between two log points, the second one's mean is of the steps since
        "losses": {e.step: None if e.step in cut else e.metrics["loss"] for e in events if e.kind == "train"},
        "curve": [(e.step, {k: digits(v) for k, v in e.metrics.items()}) for e in events if e.kind == "curve"],
    }


def equal(found: dict[str, Any], whole: dict[str, Any]) -> None:
    """Asserts that two studies have come to the same, each part by itself, for what is said when they have not."""
    assert found.keys() == whole.keys()
    assert found["table"] == whole["table"]
    for trial in found.keys() - {"table"}:
        one, other = found[trial], whole[trial]
        assert one.keys() == other.keys()
        for part in one.keys() - {"losses"}:
            assert one[part] == other[part], f"{part} of {trial}"
        losses = one["losses"]
        assert sum(loss is None for loss in losses.values()) <= len(losses) // 4
        assert {s: other["losses"][s] for s, loss in losses.items() if loss is not None} == {
            s: loss for s, loss in losses.items() if loss is not None
        }, trial


def open_trials(folder: Path, experiment: str) -> list[Path]:
    """Folders of the trials that have begun and are not finished."""
    found = (folder / "storage" / experiment).glob("*/events.jsonl")
    return sorted(e.parent for e in found if not (e.parent / "result.json").exists())


def last_step(trial: Path) -> int:
    return max((e.step for e in read_events(trial / "events.jsonl")), default=0)


def reached(folder: Path, experiment: str, step: int) -> Callable[[], bool]:
    """Whether a trial of the experiment that is not finished has logged `step`."""
    return lambda: any(last_step(trial) >= step for trial in open_trials(folder, experiment))


def last_saved(folder: Path, experiment: str) -> int:
    """The newest checkpoint of an unfinished trial."""
    saved = [c for trial in open_trials(folder, experiment) for c in (trial / "checkpoints").glob("step-*")]
    return max((read_checkpoint_facts(c).step for c in saved), default=0)


def attempts(trial: Path) -> list[dict[str, float]]:
    """When and at which step training began or went on."""
    path = trial / "attempts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def note(text: str) -> None:
    """What docs/reliability.md tells: pytest shows it with `-rP`."""
    sys.stdout.write(f"survived: {text}\n")


class Blow:
    """Something that happens to the unfinished trials of an experiment, and how they took it.

    Make it just before; `taken` afterwards says, per trial that was begun again since, how many steps were repeated
    and after how many seconds it went on.
    """

    def __init__(self, case: str, folder: Path, experiment: str):
        self.case, self.at = case, time.time()
        self._before = {t: (len(attempts(t)), last_step(t)) for t in open_trials(folder, experiment)}

    def went_on(self) -> bool:
        """Whether any of them was begun again."""
        return any(len(attempts(trial)) > count for trial, (count, _) in self._before.items())

    def taken(self, most: int = EVERY) -> list[dict[str, float]]:
        """Asserts that at most `most` steps, and what was logged while the blow fell, were repeated."""
        told = []
        for trial, (count, step) in self._before.items():
            if len(attempts(trial)) > count:
                again = attempts(trial)[count]
                repeated = max(0, step - int(again["step"]))
                told.append({"repeated": repeated, "seconds": round(again["began"] - self.at, 1)})
                assert repeated <= most, f"{self.case}: {trial.name} was at {step} and went on from {again['step']}"
        assert told, f"{self.case}: nothing was begun again"
        note(f"{self.case}: {json.dumps(told)}")
        return told


def finishes(folder: Path, undisturbed: dict[str, Any]) -> Ran:
    """Runs the same command again and asserts that it ends as if nothing had happened."""
    with sweeping(folder) as running:
        ran = running.ended()
        running.gone(20)
    assert ran.code == 0, ran.err
    equal(made(folder), undisturbed)
    return ran


def kill_busiest(running: Running, name: str) -> None:
    """SIGKILL to the busiest process whose command line holds `name`."""
    processes = running.named(name)
    assert processes, f"no {name} among {[' '.join(p.cmdline())[:60] for p in running.left()]}"
    max(processes, key=lambda p: p.cpu_times().user).kill()


def searching(running: Running, folder: Path) -> Callable[[], bool]:
    """Whether the study is in the middle of its search."""

    def look() -> bool:
        begun = "Searching 1 sampling time" in running.text()
        assert not list(folder.glob("storage/study/*/searches/*.json")), "the search has ended already"
        return begun

    return look
