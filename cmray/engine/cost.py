"""What an experiment costs on GPUs that are not here: operations counted on empty networks, at an assumed speed.

Assumptions, also in docs/experiments.md: a backward pass is two forward passes; a loss in the features of a network
takes one forward of it for the goal, one for the student and one more backwards to the image; what is done element by
element, optimizers, averages, feature extractors of measures, data and start-up cost nothing beside that. Everything
runs at a fixed share of the peak of one A100, however many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cmray.config.experiment import EvaluateConfig, SearchConfig
from cmray.config.plan import Plan, Trial
from cmray.config.run import RunConfig
from cmray.core.flops import flops_of
from cmray.engine.results import budgets

#: share of the peak that long runs sustain, and the peak of one A100 in operations a second
SHARE = 0.3
PEAK = {"bf16": 312e12, "fp32": 156e12}  # fp32: TF32, in which convolutions run
#: both in words
SPEED = "at 30% of an A100's 312 TFLOP/s in bf16 or 156 in fp32 (TF32)"
#: a backward pass in forward passes
BACKWARD = 2
#: noise levels that a search tries for each time, about
TRIED = 9


@dataclass(frozen=True)
class Cost:
    """GPU-hours of each trial's training by its folder, and of training and measuring together."""

    trials: dict[str, float]
    total: float


def forward_flops(run: RunConfig, shape: tuple[int, int, int], num_classes: int) -> int:
    """Operations of one evaluation of a run's network on one image of (C, H, W) = `shape`."""
    classes = num_classes if run.net.class_conditional else 0
    with torch.device("meta"):
        net = run.net.build(shape, classes).eval()
        x, noise = torch.empty(1, *shape), torch.empty(1)
        label = torch.empty(1, dtype=torch.int64) if classes else None
    return flops_of(lambda: net(x, noise, label))


def image_flops(run: RunConfig, shape: tuple[int, int, int], forward: int) -> int:
    """Operations of one training step for each image of the batch, `forward` being those of one network evaluation."""
    distance = getattr(run.objective, "distance", None)
    features = 0 if distance is None else distance.flops(shape)
    return forward * (1 + BACKWARD + run.objective.frozen_forwards) + features * 3


def evaluations(run: RunConfig, evaluation: EvaluateConfig | None, search: SearchConfig | None) -> tuple[float, float]:
    """Network evaluations of single images that measuring a trained model takes, and that searching its times takes."""
    if evaluation is None:
        return 0.0, 0.0
    samples = evaluation.num_samples * evaluation.repeats
    taken = sum(budgets(run, evaluation.nfe, evaluation.teacher_nfe))
    if run.objective.is_denoiser:
        taken += sum(one.nfe for one in evaluation.teacher_samplers)
    searched = 0.0
    if search is not None and run.objective.kind == "consistency":
        each = {n: n if search.mode == "reference" else 1 for n in search.nfe}  # others keep what is fixed
        searched = search.num_samples * TRIED * sum(each[n] * (n - 1) for n in search.nfe)
    return float(taken * samples), searched


def all_searches(searches: Sequence[float], search: SearchConfig | None) -> float:
    """What is searched of models that would take so much each: all of them, or the best alone."""
    return sum(searches) if search is not None and search.trials == "all" else max(searches, default=0.0)


def cost_of(plan: Plan, done: Sequence[Trial] = ()) -> Cost:
    """GPU-hours of a plan, whose datasets need not be there.

    Args:
        done: trials that are trained already; measuring them still counts.
    """
    counted: dict[str, int] = {}
    trials: dict[str, float] = {}
    measured, searches = 0.0, []
    finished = {str(t.folder) for t in done}
    for trial in plan.all_trials:
        run, shape = trial.run, trial.data.shape
        key = repr((run.net, shape, trial.data.num_classes))
        if key not in counted:
            counted[key] = forward_flops(run, shape, trial.data.num_classes)
        forward, second = counted[key], PEAK[run.train.precision] * SHARE
        curve = 0.0
        if run.curve is not None:
            nfe = sum(budgets(run, run.curve.nfe, run.curve.nfe))
            points = -(-run.train.steps // run.curve.every)  # every so many steps, and at the end
            curve = points * run.curve.num_samples * nfe * forward
        training = run.train.steps * run.train.batch_size * image_flops(run, shape, forward)
        trials[str(trial.folder)] = 0.0 if str(trial.folder) in finished else (training + curve) / second / 3600
        taken, searched = evaluations(run, plan.config.evaluate, plan.config.search)
        measured += taken * forward / second / 3600
        searches.append(searched * forward / second / 3600)
    return Cost(trials, sum(trials.values()) + measured + all_searches(searches, plan.config.search))
