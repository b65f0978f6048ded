"""Records as a finished, running or broken experiment leaves them, built from a few numbers."""

from __future__ import annotations

import json
from pathlib import Path

from cmray.tracking.records import (
    Evaluation,
    Event,
    ExperimentRecord,
    Provenance,
    Result,
    Search,
    SearchPoint,
    TrialRecord,
)

SHA = "0123456789abcdef" * 4


def provenance(**changes) -> Provenance:
    base = {
        "metric": "fd/digits", "extractor": "digits", "extractor_sha256": SHA, "reference_sha256": SHA[::-1],
        "dataset": "digits", "split": "all", "reference_n": 1797, "n": 1797, "seed_first": 1_000_000,
        "seed_block": 256, "sampler": "multistep", "nfe": 1, "times": [80.0], "weights": "ema 0.999",
        "weights_sha256": SHA, "searched": False,
    }  # fmt: skip
    return Provenance(**{**base, **changes})


def evaluation(value: float, time: float = 0.0, **changes) -> Evaluation:
    return Evaluation(key=f"k{time}", value=value, provenance=provenance(**changes), seconds=2.0, time=time)


def curve(*values: float, every: int = 100, key: str = "fd/digits@1") -> list[Event]:
    return [
        Event(kind="curve", step=i * every, nimg=i * every * 128, time=float(i), metrics={key: value})
        for i, value in enumerate(values, start=1)
    ]


def search(*points: tuple[int, float, float], rounds=None, times=(80.0, 0.66), **changes) -> Search:
    return Search(
        key="s", nfe=len(times), times=list(times), value=min(value for _, _, value in points),
        points=[SearchPoint(index=i, sigma=sigma, value=value) for i, sigma, value in points],
        rounds=rounds or [len(points)], seconds=9.0, time=0.0,
        provenance=provenance(nfe=len(times), times=list(times), searched=True, n=512, seed_first=0, **changes),
    )  # fmt: skip


def result(steps: int = 800, seconds: float = 95.0) -> Result:
    return Result(
        steps=steps, nimg=steps * 128, seconds=seconds, checkpoint="00000800", weights_sha256=SHA,
        versions={"torch": "2.15.0"}, git=None, world_size=1,
    )  # fmt: skip


def trial(label: str, panels=("solver",), role="trial", status="finished", **fields) -> TrialRecord:
    name = fields.pop("name", label.replace(" ", "").replace("·", "-"))
    home = fields.pop("experiment", "fig3")
    return TrialRecord(
        name=name, label=label, role=role, panels=list(panels), experiment=home, folder=Path(home) / name,
        objective=fields.pop("objective", "edm" if role == "teacher" else "cd"), config=fields.pop("config", {}),
        status=status,
        result=fields.pop("result", result() if status == "finished" else None), **fields,
    )  # fmt: skip


def teacher(one=81.2, many=2.37) -> TrialRecord:
    return trial(
        "edm teacher", (), "teacher",
        evaluations=[
            evaluation(one, sampler="edm-heun"),
            evaluation(many, sampler="edm-heun", nfe=35, times=[80.0 - i for i in range(18)]),
        ],
    )  # fmt: skip


def experiment(*trials: TrialRecord, **fields) -> ExperimentRecord:
    return ExperimentRecord(
        **{"name": "fig3", "folder": Path("fig3"), "metric": "fd/digits", **fields, "trials": list(trials)}
    )


def decay(start: float, end: float, count: int = 8) -> list[Event]:
    return curve(*(end + (start - end) * 0.45**i for i in range(count)))


def figure_three() -> ExperimentRecord:
    """Four panels as in the paper, with a shared base trial, a failed, a running and a flagged one."""

    def done(label, panels, one, two=None, **fields):
        cells = [evaluation(one)]
        if two is not None:
            cells.append(evaluation(two, nfe=2, times=[80.0, 0.66], searched=True))
            cells.append(evaluation(two * 1.2, nfe=2, times=[80.0, 0.8]))
        searches = [
            search((5, 0.3, two * 1.6), (11, 6.2, two * 1.4), (8, 0.66, two), (7, 0.5, two * 1.05), (9, 1.1, two * 1.1))
        ] if two else []  # fmt: skip
        return trial(label, panels, events=decay(120, one), evaluations=cells, searches=searches, **fields)

    return experiment(
        teacher(),
        done("heun · l2 · N=18", ["metric", "solver", "N", "ct"], 4.1, 4.3),
        done("heun · l1 · N=18", ["metric"], 4.6, 4.4),
        done("heun · digits · N=9", ["metric"], 2.4, 2.1, trained_in_features_of="digits"),
        done("euler · l2 · N=18", ["solver"], 7.1, 6.2),
        done("heun · l2 · N=9", ["N"], 3.1, 2.8),
        done("heun · l2 · N=36", ["N"], 4.9, 4.9),
        trial("euler · l2 · N=9", ["solver", "N"], status="running", events=decay(150, 30, 3)),
        done("ct · N=18 fixed", ["ct"], 13.5, objective="ct"),
        done("ct · adaptive N", ["ct"], 11.3, objective="ct"),
        trial("ct · N=80 fixed", ["ct"], status="failed", error="boom", events=decay(170, 90, 2), objective="ct"),
        trial("ct · mu0=0.9", ["ct"], status="waiting", objective="ct"),
    )


def write(storage: Path, record: ExperimentRecord) -> None:
    """Lay `record` out on disk as cmray.tracking.records describes."""
    folder = storage / record.name
    folder.mkdir(parents=True)
    keep = {"name", "label", "role", "panels", "objective", "experiment", "trained_in_features_of"}
    plan = record.model_dump(mode="json", include={"name", "description", "x_axis", "metric"})
    plan["trials"] = [one.model_dump(mode="json", include=keep) for one in record.trials]
    (folder / "experiment.json").write_text(json.dumps(plan))
    for one in record.trials:
        home = storage / one.experiment / one.name
        if one.status == "waiting":
            continue
        for kind in ("evaluations", "searches"):
            (home / kind).mkdir(parents=True)
            for i, item in enumerate(getattr(one, kind)):
                (home / kind / f"{i:02}.json").write_text(item.model_dump_json())
        (home / "config.yaml").write_text("seed: 0\n")
        (home / "events.jsonl").write_text("".join(event.model_dump_json() + "\n" for event in one.events))
        if one.result:
            (home / "result.json").write_text(one.result.model_dump_json())
        if one.error:
            (home / "error.txt").write_text(one.error)
