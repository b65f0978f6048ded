"""The results stage of an experiment: what is measured, searched and drawn, and whether it is there already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cmray.cluster.observer import Observer
from cmray.cluster.stages import final_checkpoint
from cmray.config.experiment import EvaluateConfig
from cmray.config.plan import Plan
from cmray.core.errors import CmrayError
from cmray.core.files import write_atomic
from cmray.core.rng import SEED_BASE
from cmray.engine.evaluator import Pool
from cmray.engine.model import make_sampler
from cmray.engine.results import (
    Measurement,
    Reference,
    Subject,
    budgets,
    evaluate,
    is_recorded,
    planned,
    recorded_value,
    reference_for,
    subject,
)
from cmray.engine.searching import (
    search_grid,
    search_key,
    search_path,
    search_times,
    searched_measurement,
)
from cmray.report.grids import image_grid
from cmray.tracking.records import Search

#: samples in each row of the grids, all rows from the same seeds
GRID_SAMPLES = 16


class ResultsStage:
    """Evaluations, searches and sample grids of the finished models of a plan that has `evaluate`."""

    def __init__(self, plan: Plan, settings: EvaluateConfig, storage: Path, observer: Observer):
        self.plan, self.settings, self.storage, self.observer = plan, settings, storage, observer

    def check(self) -> None:
        """Raises CmrayError when a model of the plan could not be measured or searched as the file asks."""
        for trial in self.plan.all_trials:
            kind = trial.run.objective.kind
            try:
                for nfe in budgets(trial.run, self.settings.nfe, self.settings.teacher_nfe):
                    make_sampler(trial.run, nfe, self.settings.times.get(nfe) if kind == "consistency" else None)
                search = self.plan.config.search
                if search is not None and kind == "consistency":
                    for nfe in search.nfe:
                        search_grid(trial.run, search, nfe)
            except CmrayError as error:
                raise type(error)(f"{self.plan.path}: {error} [{trial.label}]") from None

    def complete(self) -> bool:
        """Whether every record is on disk."""
        if not all(t.data.prepared for t in self.plan.trials):
            return False
        subjects, reference = self._subjects(), self._reference()
        if not all(is_recorded(m, reference) for m in self._measurements(subjects)):
            return False
        searches = self._searches(subjects, reference)
        if searches is None:
            return False
        final = [searched_measurement(who, s, self.settings.num_samples, self.settings.block) for who, s in searches]
        return all(is_recorded(m, reference) for m in final) and (
            not subjects or self._drawn() == self._rows(subjects, reference)
        )

    def run(self, pool: Pool, where: str) -> int:
        """Makes what is missing; returns the number of new evaluations."""
        subjects = self._subjects()
        if not subjects:
            return 0
        reference, settings = self._reference(), self.settings
        title = f"Evaluating {len(subjects)} models {where}"
        new = evaluate(self._measurements(subjects), reference, pool, lambda d, t: self.observer.task(title, d, t))
        config = self.plan.config.search
        if config is not None:
            for who in self._searched_subjects(subjects, reference):
                for nfe in config.nfe:
                    title = f"Searching {nfe - 1} sampling time{'s' if nfe > 2 else ''} of {who.folder.name} {where}"
                    found = search_times(
                        who,
                        config,
                        nfe,
                        reference,
                        pool,
                        settings.block,
                        lambda count, *_, title=title: self.observer.task(title, count, None),
                    )
                    final = searched_measurement(who, found, settings.num_samples, settings.block)
                    new += evaluate([final], reference, pool)
        self._draw(subjects, reference, pool)
        return new

    def _subjects(self) -> dict[str, Subject]:
        """Finished models by trial name, teachers first."""
        found = {}
        for trial in self.plan.all_trials:
            checkpoint = final_checkpoint(trial)
            if checkpoint is not None:
                found[trial.name] = subject(trial.folder, checkpoint)
        return found

    def _reference(self) -> Reference:
        return reference_for(self.plan.trials[0].data, self.settings.extractor, self.storage)

    def _measurements(self, subjects: dict[str, Subject]) -> list[Measurement]:
        s = self.settings
        out = []
        for who in subjects.values():
            out += planned(who, budgets(who.run, s.nfe, s.teacher_nfe), s.times, s.num_samples, s.block)
        return out

    def _searched_subjects(self, subjects: dict[str, Subject], reference: Reference) -> list[Subject]:
        """The models whose times are searched: all consistency models, or the best in one step."""
        config = self.plan.config.search
        models = [who for who in subjects.values() if who.kind == "consistency"]
        if config is None or not models:
            return []
        if config.trials == "all":
            return models

        def one_step(who: Subject) -> float:
            (m,) = planned(who, [1], {}, self.settings.num_samples, self.settings.block)
            return recorded_value(m, reference)

        return [min(models, key=one_step)]

    def _searches(self, subjects: dict[str, Subject], reference: Reference) -> list[tuple[Subject, Search]] | None:
        """The recorded searches, or None when one is missing."""
        config = self.plan.config.search
        found = []
        for who in self._searched_subjects(subjects, reference):
            assert config is not None
            for nfe in config.nfe:
                path = search_path(who, search_key(who, config, nfe, reference, self.settings.block))
                if not path.is_file():
                    return None
                found.append((who, Search.model_validate_json(path.read_text())))
        return found

    def _grid_file(self) -> Path:
        return self.plan.folder / "samples" / "samples.png"

    def _rows(self, subjects: dict[str, Subject], reference: Reference) -> list[dict[str, Any]]:
        """What the grids show: one row per model and budget, all from the same seeds."""
        labels = {t.name: t.label if t.role == "trial" else f"teacher · {t.label}" for t in self.plan.all_trials}
        searched = {who.folder.name: s for who, s in self._searches(subjects, reference) or [] if s.nfe == 2}
        rows = []
        for name, who in subjects.items():
            shown = budgets(who.run, (1,), self.settings.teacher_nfe)
            wanted = [(m.sampler, f"{labels[name]} · {m.sampler.nfe} NFE") for m in planned(who, shown, {}, 2, 1)]
            if name in searched:
                sampler = searched_measurement(who, searched[name], 2, 1).sampler
                wanted.append((sampler, f"{labels[name]} · 2 NFE searched"))
            for sampler, label in wanted:
                plain = sampler.model_dump(mode="json")
                rows.append({"trial": name, "label": label, "weights": who.weights_sha256, "sampler": plain})
        return rows

    def _drawn(self) -> list[dict[str, Any]] | None:
        """The rows of the grid that is there."""
        described = self._grid_file().with_suffix(".json")
        if not (described.is_file() and self._grid_file().is_file()):
            return None
        return json.loads(described.read_text())

    def _draw(self, subjects: dict[str, Subject], reference: Reference, pool: Pool) -> None:
        """samples/<trial>.png per model, and samples.png with one row per model from the same seeds."""
        seeds = list(range(SEED_BASE["sample"], SEED_BASE["sample"] + GRID_SAMPLES))
        rows = self._rows(subjects, reference)
        images = pool.run([("images", (str(subjects[r["trial"]].checkpoint), r["sampler"], seeds)) for r in rows])
        folder = self._grid_file().parent
        folder.mkdir(parents=True, exist_ok=True)
        scale = max(1, 40 // images[0].shape[-1])
        for name in subjects:
            own = [(row["label"], image) for row, image in zip(rows, images, strict=True) if row["trial"] == name]
            image_grid(
                np.concatenate([image for _, image in own]),
                folder / f"{name}.png",
                columns=GRID_SAMPLES,
                scale=scale,
                row_labels=[label for label, _ in own],
            )
        image_grid(
            np.concatenate(images),
            self._grid_file(),
            columns=GRID_SAMPLES,
            scale=scale,
            row_labels=[row["label"] for row in rows],
            title=f"{self.plan.config.name}: every row from the same noise",
        )
        write_atomic(self._grid_file().with_suffix(".json"), json.dumps(rows, indent=1))
