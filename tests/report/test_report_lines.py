"""Lines of a plot: seeds, bands, names, and values over sampling steps."""

import math
import statistics

import pytest
import scipy.stats
from report_factory import curve, evaluation, experiment, figure_three, teacher, trial

from cmray.report.figure_curve import curve_sheet
from cmray.report.figure_steps import steps_sheet
from cmray.report.figures import steps_figure
from cmray.report.layout import span_of
from cmray.report.lines import by_seed, curve_metric, short_names, t95, training_lines


def seeded(label, seed, *values, status="finished", **config):
    return trial(f"{label} · seed={seed}", ["p"], events=curve(*values), status=status, config={"seed": seed, **config})


def test_quantiles_are_students():
    for degrees in (1, 2, 3, 9, 15, 16, 25, 200):
        assert t95(degrees) == pytest.approx(scipy.stats.t.ppf(0.975, degrees), rel=3e-3)


def test_trials_that_differ_in_their_seed_alone_are_one_line():
    trials = [
        seeded("l2", 0, 9.0, 3.0, lr=1), seeded("l2", 1, 8.0, 4.0, lr=1), seeded("l2", 2, 7.0, 5.5, 5.0, lr=1),
        seeded("l2", 0, 2.0, lr=2),
    ]  # fmt: skip
    assert [len(group) for group in by_seed(experiment(), trials)] == [3, 1]
    record = experiment(*trials)
    mean, other = training_lines(record, trials, "fd/digits", 1)
    assert (mean.label, other.label) == ("l2 · 3 seeds", "l2 · seed=0")
    assert [p.x for p in mean.points] == [100, 200], "a step that one seed never reached has no mean"
    assert mean.points[1].y == pytest.approx((3.0 + 4.0 + 5.5) / 3)
    low, high = scipy.stats.t.interval(
        0.95, 2, loc=mean.points[1].y, scale=statistics.stdev([3.0, 4.0, 5.5]) / math.sqrt(3)
    )
    assert (mean.points[1].low, mean.points[1].high) == (pytest.approx(low, rel=1e-3), pytest.approx(high, rel=1e-3))
    assert "95% t-interval of the mean over 3 seeds" in curve_sheet(record).detail


def test_two_seeds_have_a_range_and_unfinished_ones_wait():
    two = [seeded("a", 0, 9.0, 3.0), seeded("a", 1, 8.0, 4.0)]
    (line,) = training_lines(experiment(*two), two, "fd/digits", 1)
    assert (line.points[-1].low, line.points[-1].high, line.band) == (3.0, 4.0, "range over 2 seeds")
    three = [*two, seeded("a", 2, 100.0, status="running")]
    (line,) = training_lines(experiment(*three), three, "fd/digits", 1)
    assert line.label == "a · 2 of 3 seeds"
    assert len(line.points) == 2


def test_the_same_seed_twice_or_no_configuration_is_no_group():
    trials = [seeded("a", 0, 9.0), seeded("a", 0, 8.0), trial("b"), trial("c")]
    assert [len(group) for group in by_seed(experiment(), trials)] == [1, 1, 1, 1]


def test_a_teacher_of_another_seed_is_the_same_teacher():
    def student(seed, teacher_seed, identity):
        config = {"teacher": {"identity": identity * 64, "overrides": {"seed": teacher_seed}}}
        return seeded("cd", seed, 9.0, **config)

    def edm(identity, **config):
        return trial("edm", (), "teacher", name=f"edm-{identity * 10}", config=config)

    students = [student(0, 0, "a"), student(1, 1, "b")]
    same = experiment(edm("a", seed=0, steps=10), edm("b", seed=1, steps=10), *students)
    assert [len(group) for group in by_seed(same, students)] == [2]
    longer = experiment(edm("a", seed=0, steps=10), edm("b", seed=1, steps=20), *students)
    assert [len(group) for group in by_seed(longer, students)] == [1, 1]
    assert [len(group) for group in by_seed(experiment(*students), students)] == [1, 1], "nobody knows the teachers"


def test_intervals_of_single_points_are_bands():
    events = curve(3.0, 2.0)
    events[1].intervals["fd/digits@1"] = (1.5, 2.5)
    one = trial("a", ["p"], events=events)
    (line,) = training_lines(experiment(one), [one], "fd/digits", 1)
    assert (line.points[0].low, line.points[1].low, line.points[1].high) == (None, 1.5, 2.5)
    assert "band: 95% interval of each point" in curve_sheet(experiment(one)).detail


def test_names_are_what_varies():
    assert short_names(["cd · heun · l2 · N=9", "cd · heun · l1 · N=9"]) == ("cd · heun · N=9", ["l2", "l1"])
    assert short_names(["alone"]) == ("", ["alone"])
    assert short_names(["a · b", "a"]) == ("", ["a · b", "a"]), "nothing would be left of one"
    assert short_names(["a", "a"]) == ("", ["a", "a"])
    assert short_names(["x", "y"]) == ("", ["x", "y"])


def test_another_metrics_curve_is_better_than_none():
    record = experiment(trial("a", events=curve(3.0, key="fd/other@1")))
    assert curve_metric(record) == "fd/other"
    assert curve_metric(experiment()) == "fd/digits"
    assert curve_metric(figure_three()) == "fd/digits"


def test_a_model_made_for_two_steps_is_drawn_at_two():
    record = experiment(trial("pd", events=curve(3.0, 2.0, key="fd/digits@2")))
    (entry,) = curve_sheet(record).plots[0].entries
    assert entry.text == "pd (2 NFE)"


def test_higher_is_better_ranks_the_other_way():
    trials = [trial(f"t{i}", ["p"], events=curve(1.0, float(i), key="is/digits@1")) for i in range(1, 11)]
    sheet = curve_sheet(experiment(*trials, metric="is/digits"))
    assert {entry.text for entry in sheet.plots[0].entries} == {f"t{i}" for i in range(3, 11)}
    assert "higher is better" in sheet.detail
    assert sheet.plots[0].remarks == ["grey: 2 more"]


def test_a_log_axis_is_for_numbers_far_apart():
    assert span_of([1.0, 100.0]).log
    assert not span_of([1.0, 3.0]).log
    assert not span_of([-1.0, 100.0]).log
    for values in ([2.0], [0.0], [-3.0, -1.0], [0.0, 5.0], [1.0, 500.0]):
        span = span_of(values)
        assert span.low < span.high
        assert all(0 <= span.height(y) <= 1 for y in values)


def over(*values, **changes):
    return [evaluation(v, nfe=nfe, times=[80.0 / (i + 1) for i in range(nfe)], **changes) for nfe, v in values]


def test_quality_by_steps_has_a_line_a_model_and_a_panel():
    sheet = steps_sheet(figure_three())
    assert [plot.title.name for plot in sheet.plots] == ["metric", "solver", "N", "ct"][: len(sheet.plots)]
    texts = [entry.text for entry in sheet.plots[0].entries]
    assert texts[0] == "edm teacher"
    assert "l1 · N=18" in texts
    assert "l1 · N=18, searched" in texts
    assert steps_sheet(experiment(trial("a", evaluations=[evaluation(1.0)]))) is None
    assert steps_sheet(experiment(teacher())) is None


def test_models_that_were_each_made_for_some_steps_are_one_line(tmp_path):
    def pd(end, value, distance):
        return trial(
            f"pd · {distance} · 64→{end} steps", ["p"], objective="pd", evaluations=over((end, value)),
            config={"seed": 0, "objective": {"name": "pd", "distance": distance, "num_sigmas": {"end": end}}},
        )  # fmt: skip

    record = experiment(
        pd(1, 9.0, "l2"), pd(2, 5.0, "l2"), pd(4, 3.0, "l2"), pd(1, 8.0, "l1"), pd(2, 6.0, "l1"),
        trial("cd", ["p"], evaluations=over((1, 4.0), (2, 3.0), (4, 2.5))),
    )  # fmt: skip
    (plot,) = steps_sheet(record).plots
    assert {(entry.text, entry.value) for entry in plot.entries} == {("pd · l2", "3"), ("pd · l1", "6"), ("cd", "2.5")}
    assert [path.name for path in steps_figure(record, tmp_path)] == ["steps.png", "steps.svg"]


def test_steps_draw_one_protocol_of_each_metric():
    record = experiment(
        trial("a", ["p"], evaluations=[*over((1, 4.0), (2, 3.0)), *over((1, 9.0), (2, 8.0), n=99)]),
        trial("b", ["p"], evaluations=[*over((1, 5.0), (2, 2.0)), *over((1, 0.5), (2, 0.7), metric="recall/digits")]),
    )
    sheet = steps_sheet(record)
    assert [plot.title.name for plot in sheet.plots] == ["p · fd/digits", "p · recall/digits"]
    assert {entry.value for entry in sheet.plots[0].entries} == {"3", "2"}


def test_the_best_of_several_times_is_drawn_and_said():
    two = [evaluation(v, nfe=2, times=[80.0, t]) for v, t in ((3.0, 0.8), (2.0, 0.5))]
    sheet = steps_sheet(experiment(trial("a", evaluations=[evaluation(4.0), *two])))
    assert [entry.value for entry in sheet.plots[0].entries] == ["2"]
    assert "the best is drawn" in sheet.detail
