"""The results stage of an experiment: what is measured, searched and drawn, and whether it is there already."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cmray.cluster.observer import Observer
from cmray.cluster.stages import final_checkpoint
from cmray.config.experiment import EvaluateConfig
from cmray.config.metric import parse_metric
from cmray.config.plan import Plan
from cmray.core.errors import CmrayError, ConfigError
from cmray.core.files import write_atomic
from cmray.core.rng import SEED_BASE
from cmray.engine.evaluator import Pool
from cmray.engine.images import image_set_of
from cmray.engine.model import make_sampler
from cmray.engine.references import Against, Reference, check_metrics, references_for
from cmray.engine.results import (
    Measurement,
    Subject,
    budgets,
    evaluate,
    is_recorded,
    planned,
    recorded,
    subject,
)
from cmray.engine.searching import (
    SearchOf,
    least_for_noise,
    read_search,
    search_grid,
    search_key,
    search_path,
    search_together,
    searched_measurement,
)
from cmray.report.grids import image_grid
from cmray.report.searches import search_picture
from cmray.tracking.records import Evaluation, Search

#: samples in each row of the grids, all rows from the same seeds
GRID_SAMPLES = 16


def rank(found: Evaluation) -> float:
    """A value such that the best model has the lowest."""
    return found.value if found.better == "lower" else -found.value


class ResultsStage:
    """Evaluations, searches and sample grids of the finished models of a plan that has `evaluate`."""

    def __init__(self, plan: Plan, settings: EvaluateConfig, storage: Path, observer: Observer):
        self.plan, self.settings, self.storage, self.observer = plan, settings, storage, observer
        self.measured = 0  # evaluations made by `run`

    def check(self) -> None:
        """Raises CmrayError when a model of the plan could not be measured or searched as the file asks."""
        s = self.settings
        try:
            against = Against(image_set_of(self.plan.trials[0].data))
            check_metrics(s.wanted, against, self.plan.trials[0].data.shape, s.num_samples, s.block)
        except CmrayError as error:
            raise type(error)(f"{self.plan.path}: evaluate: {error}") from None
        search = self.plan.config.search
        if search is not None and search.confirm_samples and search.num_samples < least_for_noise(s.block):
            raise ConfigError(
                f"{self.plan.path}: search.confirm_samples is given, but which times to confirm is not known from "
                f"search.num_samples {search.num_samples:,}; it takes {least_for_noise(s.block):,} or more"
            )
        for trial in self.plan.all_trials:
            kind = trial.run.objective.kind
            try:
                for nfe in budgets(trial.run, self.settings.nfe, self.settings.teacher_nfe):
                    make_sampler(trial.run, nfe, self.settings.times.get(nfe) if kind == "consistency" else None)
                for one in self.settings.teacher_samplers if trial.run.objective.is_denoiser else ():
                    make_sampler(trial.run, one.nfe, name=one.spec)
                if search is not None and kind == "consistency":
                    for nfe in search.nfe:
                        search_grid(trial.run, search, nfe)
            except CmrayError as error:
                raise type(error)(f"{self.plan.path}: {error} [{trial.label}]") from None

    def complete(self) -> bool:
        """Whether every record is on disk."""
        if not all(t.data.prepared or t.data.folder.exists() for t in self.plan.trials):
            return False
        subjects, references = self._subjects(), self._references()
        if not all(is_recorded(m, references) for m in self._measurements(subjects)):
            return False
        searches = self._searches(subjects, references)
        if searches is None:
            return False
        final = [m for who, s in searches for m in self._final(who, s)]
        return all(is_recorded(m, references) for m in final) and (
            not subjects or self._drawn() == self._rows(subjects, references)
        )

    def run(self, pool: Pool, where: str) -> None:
        """Makes what is missing; `measured` counts the new evaluations."""
        subjects = self._subjects()
        if not subjects:
            return
        references = self._references(pool)
        title = f"Evaluating {len(subjects)} models {where}"
        self._measure(title, self._measurements(subjects), references, pool)
        self._search(self._searched_subjects(subjects, references), references, pool, where)
        self._draw(subjects, references, pool)

    def _measure(self, title: str, wanted: list[Measurement], references: list[Reference], pool: Pool) -> None:
        missing = [m for m in wanted if not is_recorded(m, references)]
        try:
            evaluate(wanted, references, pool, lambda d, t: self.observer.task(title, d, t))
        finally:  # the time may be up in the middle
            self.measured += sum(is_recorded(m, references) for m in missing)

    def _search(self, models: Sequence[Subject], references: list[Reference], pool: Pool, where: str) -> None:
        """Searches the times of all models in step, one budget after the other."""
        config = self.plan.config.search
        if config is None or not models:
            return
        of = models[0].folder.name if len(models) == 1 else f"{len(models)} models"
        for nfe in config.nfe:
            title = f"Searching {nfe - 1} sampling time{'s' if nfe > 2 else ''} of {of} {where}"
            searches = [SearchOf(who, config, nfe, references[0], pool.size, self.settings.block) for who in models]
            done: dict[str, int] = {}

            def told(search: SearchOf, count: int, *_: float, done: dict[str, int] = done, title: str = title) -> None:
                done[str(search.path)] = count
                self.observer.task(title, sum(done.values()), None)

            found = search_together(searches, pool, told)
            final = [m for who, one in zip(models, found, strict=True) for m in self._final(who, one)]
            self._measure(f"Measuring the times found for {nfe} NFE", final, references, pool)
            for remark in filter(None, (search.remark for search in searches)):
                self.observer.message(remark)
        for who in models:
            search_picture(who.folder, self._labels()[who.folder.name])

    def _labels(self) -> dict[str, str]:
        """What models are called, by the names of their trials."""
        return {t.name: t.label if t.role == "trial" else f"teacher · {t.label}" for t in self.plan.all_trials}

    def _subjects(self) -> dict[str, Subject]:
        """Finished models by trial name, teachers first."""
        found = {}
        for trial in self.plan.all_trials:
            checkpoint = final_checkpoint(trial)
            if checkpoint is not None:
                found[trial.name] = subject(trial.folder, checkpoint)
        return found

    def _references(self, pool: Pool | None = None) -> list[Reference]:
        """One for each extractor, that of the metric that ranks first. Searches minimise a Fréchet distance in it."""
        data, wanted = self.plan.trials[0].data, self.settings.wanted
        if self.plan.config.search is not None:
            wanted += (parse_metric({"measure": "fd", "extractor": wanted[0].extractor.model_dump(mode="json")}),)
        return references_for(wanted, Against(image_set_of(data)), data.shape, self.storage, pool, self.observer.task)

    def _final(self, who: Subject, found: Search) -> list[Measurement]:
        """What is reported of searched times."""
        s = self.settings
        one = searched_measurement(who, found, s.num_samples, s.block)
        return [replace(one, metric=metric, seed_blocks=s.repeats) for metric in s.wanted]

    def _measurements(self, subjects: dict[str, Subject]) -> list[Measurement]:
        s = self.settings
        out = []
        for who in subjects.values():
            nfe = budgets(who.run, s.nfe, s.teacher_nfe)
            out += planned(who, nfe, s.times, s.num_samples, s.block, s.wanted, s.repeats)
            if who.kind == "denoiser":
                more = [make_sampler(who.run, one.nfe, name=one.spec) for one in s.teacher_samplers]
                first = planned(who, nfe[:1], {}, s.num_samples, s.block, s.wanted, s.repeats)
                out += [replace(m, sampler=sampler) for sampler in more for m in first]
        return out

    def _searched_subjects(self, subjects: dict[str, Subject], references: list[Reference]) -> list[Subject]:
        """The models whose times are searched: all consistency models, or the best in one step."""
        config = self.plan.config.search
        models = [who for who in subjects.values() if who.kind == "consistency"]
        if config is None or not models:
            return []
        if config.trials == "all":
            return models

        def one_step(who: Subject) -> float:
            s = self.settings
            (m,) = planned(who, [1], {}, s.num_samples, s.block, s.wanted[:1], s.repeats)
            found = recorded(m, references)
            if found is None:
                return math.inf
            return rank(found)

        return [min(models, key=one_step)]

    def _searches(
        self, subjects: dict[str, Subject], references: list[Reference]
    ) -> list[tuple[Subject, Search]] | None:
        """The recorded searches, or None when one is missing."""
        config = self.plan.config.search
        found = []
        for who in self._searched_subjects(subjects, references):
            assert config is not None
            for nfe in config.nfe:
                path = search_path(who, search_key(who, config, nfe, references[0], self.settings.block))
                if not path.is_file():
                    return None
                found.append((who, read_search(path)))
        return found

    def _grid_file(self) -> Path:
        return self.plan.folder / "samples" / "samples.png"

    def _rows(self, subjects: dict[str, Subject], references: list[Reference]) -> list[dict[str, Any]]:
        """What the grids show: one row per model and budget, all from the same seeds."""
        labels = self._labels()
        searched = {who.folder.name: s for who, s in self._searches(subjects, references) or [] if s.nfe == 2}
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

    def _draw(self, subjects: dict[str, Subject], references: list[Reference], pool: Pool) -> None:
        """samples/<trial>.png per model, and samples.png with one row per model from the same seeds."""
        seeds = list(range(SEED_BASE["sample"], SEED_BASE["sample"] + GRID_SAMPLES))
        rows = self._rows(subjects, references)
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
