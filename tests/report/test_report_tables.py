"""Tables: what stands in one column, what is flagged, and what each format shows."""

import io
import math

import pandas as pd
import pytest
from report_factory import evaluation, experiment, figure_three, search, teacher, trial
from rich.console import Console

from cmray.report.columns import value_columns
from cmray.report.latex import to_latex
from cmray.report.tables import fd_table, footnotes, format_value, rich_table, to_csv, to_markdown


def headers(*trials, **fields):
    return [column.header for column in value_columns(experiment(*trials, **fields))]


def test_columns_rows_and_flags():
    frame = fd_table(figure_three())
    assert list(frame.columns) == [
        "label", "role", "panels", "objective", "steps", "minutes",
        "fd/digits · 1 NFE", "fd/digits · 2 NFE (80, 0.66)".replace("0.66", "0.8"), "fd/digits · 2 NFE searched",
        "fd/digits · 2 NFE searched: times", "fd/digits · 35 NFE (18 levels from 80)", "status", "†",
    ]  # fmt: skip
    assert list(frame["label"][:3]) == ["edm teacher", "heun · digits · N=9", "heun · l2 · N=9"]
    ones = list(frame["fd/digits · 1 NFE"][1:].dropna())
    assert ones == sorted(ones)
    assert frame["fd/digits · 1 NFE"][0] == 81.2
    assert list(frame.loc[frame["†"] != "", "label"]) == ["heun · digits · N=9"]
    assert frame["fd/digits · 2 NFE searched: times"][1] == "80, 0.66"
    assert set(frame["status"]) == {"finished", "failed", "running", "waiting"}
    assert frame["panels"][3] == "metric, solver, N, ct"
    assert frame["steps"][1] == 800
    assert frame["minutes"][1] == pytest.approx(95 / 60)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n": 500}, "n=500"),
        ({"seed_first": 7}, "seeds from 7"),
        ({"seed_block": 64}, "seed blocks of 64"),
        ({"reference_sha256": "f" * 64}, "reference ffffffff"),
        ({"reference_n": 100}, "reference n=100"),
        ({"extractor_sha256": "e" * 64}, "extractor eeeeeeee"),
        ({"split": "train"}, "split train"),
        ({"dataset": "mnist"}, "data mnist"),
        ({"extractor": "digits2"}, "extractor digits2"),
    ],
)
def test_values_measured_differently_never_share_a_column(change, said):
    found = headers(trial("a", evaluations=[evaluation(1.0)]), trial("b", evaluations=[evaluation(2.0, **change)]))
    assert len(found) == 2
    assert sum(header.endswith(f", {said}") for header in found) == 1


@pytest.mark.parametrize("change", [{"weights": "student"}, {"weights_sha256": "f" * 64}, {"sampler": "edm_heun"}])
def test_what_belongs_to_the_model_does_not_split_a_column(change):
    assert headers(
        trial("a", evaluations=[evaluation(1.0)]), trial("b", evaluations=[evaluation(2.0, **change)])
    ) == ["fd/digits · 1 NFE"]  # fmt: skip


def test_two_values_of_one_model_are_split_so_that_neither_is_hidden():
    found = headers(
        trial("a", evaluations=[evaluation(1.0), evaluation(3.0, weights="student")]),
        trial("b", evaluations=[evaluation(2.0)]),
    )
    assert found == ["fd/digits · 1 NFE, ema", "fd/digits · 1 NFE, student"]
    found = headers(trial("a", evaluations=[evaluation(1.0, weights="ema 0.9"), evaluation(3.0)]))
    assert found == ["fd/digits · 1 NFE, ema 0.9", "fd/digits · 1 NFE, ema 0.999"]


def test_the_newest_of_two_equal_evaluations_stands():
    frame = fd_table(experiment(trial("a", evaluations=[evaluation(1.0, time=5.0), evaluation(9.0, time=1.0)])))
    assert list(frame["fd/digits · 1 NFE"]) == [1.0]


def test_the_experiments_metric_comes_first_and_higher_may_be_better():
    record = experiment(
        trial("a", evaluations=[evaluation(1.0), evaluation(0.2, metric="aa/x"), evaluation(9.0, metric="is/digits")]),
        trial("b", evaluations=[evaluation(2.0), evaluation(0.1, metric="aa/x"), evaluation(3.0, metric="is/digits")]),
    )
    frame = fd_table(record)
    assert frame.attrs["values"] == ["fd/digits · 1 NFE", "aa/x · 1 NFE", "is/digits · 1 NFE"]
    row = next(line for line in to_markdown(frame).splitlines() if line.startswith("| a "))
    assert "**9.00**" in row
    assert "**1.00**" in row
    assert "**0.2**" not in row


@pytest.mark.parametrize("record", [experiment(), experiment(trial("a", status="waiting")), experiment(teacher())])
def test_missing_pieces(record):
    frame = fd_table(record)
    assert len(frame) == len(record.trials)
    to_latex(frame, footnotes(record))
    assert to_markdown(frame).startswith("| label")
    Console(file=io.StringIO(), width=80).print(rich_table(frame, notes=footnotes(record), width=80))


def test_a_value_that_is_not_finite_is_neither_best_nor_forgotten():
    record = experiment(trial("a", evaluations=[evaluation(math.nan)]), trial("b", evaluations=[evaluation(2.0)]))
    assert list(fd_table(record)["label"]) == ["b", "a"]
    assert "fd/digits · 1 NFE is not a finite number for a." in footnotes(record)


def test_footnotes_tell_the_protocol():
    notes = "\n".join(footnotes(figure_three()))
    for said in [
        "features of a digits classifier", "It is not FID", "n = 1,797", "seeds 1000000 to 1001796", "(fedcba98)",
        "† trained", "do not use", "failed: ct · N=80 fixed", "waiting: ct · mu0=0.9",
    ]:  # fmt: skip
        assert said in notes


@pytest.mark.parametrize("n", [512, 9_999, 10_000])
def test_footnotes_say_once_what_few_samples_do(n):
    found = [evaluation(2.0, n=n), evaluation(1.5, nfe=2, n=n)]
    said = [note for note in footnotes(experiment(trial("a", evaluations=found))) if "is below 10,000" in note]
    assert [note.partition(":")[0] for note in said] == ([f"n = {n:,} is below 10,000"] if n < 10_000 else [])


def test_footnotes_admit_searching_on_the_reported_seeds():
    found = evaluation(2.0, nfe=2, times=[80.0, 0.66], searched=True, seed_first=100)
    record = experiment(trial("a", evaluations=[found], searches=[search((1, 0.66, 2.0))]))
    assert any("overlap" in note for note in footnotes(record))


def test_csv_keeps_every_digit():
    record = experiment(trial("a", evaluations=[evaluation(1 / 3)]))
    back = pd.read_csv(io.StringIO(to_csv(fd_table(record))))
    assert back["fd/digits · 1 NFE"][0] == 1 / 3


def test_latex_is_escaped():
    text = to_latex(fd_table(experiment(trial("a_b · 5% & $\\", evaluations=[evaluation(1.0)]))), ["†"])
    assert r"a\_b $\cdot$ 5\% \& \$\textbackslash{}" in text
    assert text.endswith("\\par\\footnotesize $\\dagger$\n")


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_terminal_table_fits_and_keeps_its_numbers_whole(width):
    record, out = figure_three(), io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system="standard")
    console.print(rich_table(fd_table(record), title="fig3", notes=footnotes(record), width=width))
    text = out.getvalue()
    assert "\x1b[1m 2.40\x1b[0m" in text or "\x1b[1m2.40" in text
    plain = Console(file=(out := io.StringIO()), width=width)
    plain.print(rich_table(fd_table(record), title="fig3", notes=footnotes(record), width=width))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert any("heun · digits · N=9 †" in line and "2.40" in line and "2.10" in line for line in lines)
    assert any("edm teacher" in line and "81.20" in line and "2.37" in line for line in lines)
    assert not any("finish" in line and "finished" not in line for line in lines)


def test_columns_that_do_not_fit_are_named():
    many = [evaluation(1.0, nfe=i, times=[80.0 / j for j in range(1, i + 1)]) for i in range(1, 15)]
    record, out = experiment(trial("a", evaluations=many)), io.StringIO()
    Console(file=out, width=80).print(rich_table(fd_table(record), width=80))
    assert "more value columns do not fit here" in out.getvalue()


def test_format_value():
    assert [format_value(v) for v in (2.531, 81.2, 0.001234, 0.0, math.nan, math.inf)] == [
        "2.53", "81.20", "0.00123", "0.00", "–", "inf",
    ]  # fmt: skip
