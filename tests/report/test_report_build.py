"""Loading what an experiment left on disk, and the report as a whole."""

import logging
import subprocess
import sys

import pytest
from report_factory import decay, evaluation, experiment, figure_three, teacher, trial, write

from cmray.core.errors import CmrayError, StorageError
from cmray.report.build import summary_sentences, write_report
from cmray.report.load import UnknownExperimentError, load_experiment
from cmray.tracking.records import Evaluation


def test_what_was_written_is_loaded(tmp_path):
    record = figure_three()
    write(tmp_path, record)
    loaded = load_experiment(tmp_path, "fig3")
    assert loaded.folder == tmp_path / "fig3"
    assert loaded.trials[0].config == {"seed": 0}
    assert [t.status for t in loaded.trials] == [t.status for t in record.trials]
    own = {"folder", "config"}
    assert [t.model_dump(exclude=own) for t in loaded.trials] == [t.model_dump(exclude=own) for t in record.trials]


def test_a_teacher_of_another_experiment_is_found_and_comes_first(tmp_path):
    write(tmp_path, experiment(teacher().model_copy(update={"experiment": "edm"}), name="edm"))
    borrowed = teacher().model_copy(update={"experiment": "edm"})
    write(tmp_path, experiment(trial("a", evaluations=[evaluation(1.0)])))
    plan = (tmp_path / "fig3/experiment.json").read_text()
    entry = borrowed.model_dump_json(include={"name", "label", "role", "panels", "objective", "experiment"})
    (tmp_path / "fig3/experiment.json").write_text(plan.replace("}]}", "}, " + entry + "]}"))
    loaded = load_experiment(tmp_path, "fig3")
    assert [t.role for t in loaded.trials] == ["teacher", "trial"]
    assert len(loaded.trials[0].evaluations) == 2


def test_a_torn_last_line_is_skipped_silently_and_a_torn_middle_with_a_word(tmp_path, caplog):
    write(tmp_path, experiment(trial("a", status="running", events=decay(9, 1, 3))))
    path = tmp_path / "fig3/a/events.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"kind":"curve","st')
    with caplog.at_level(logging.WARNING):
        assert len(load_experiment(tmp_path, "fig3").trials[0].events) == 3
    assert not caplog.records
    path.write_text('{"kind":"cu' + whole)
    assert len(load_experiment(tmp_path, "fig3").trials[0].events) == 2
    assert "is no event and is left out" in caplog.text


def test_steps_repeated_after_an_interruption_count_once(tmp_path):
    events = [*decay(9, 1, 4), *decay(8, 1, 4)[1:]]
    write(tmp_path, experiment(trial("a", status="running", events=events)))
    loaded = load_experiment(tmp_path, "fig3").trials[0].events
    assert [event.step for event in loaded] == [100, 200, 300, 400]
    assert loaded[1] == events[4]


def test_an_error_is_forgotten_once_there_is_a_result(tmp_path):
    write(tmp_path, experiment(trial("a", error="first attempt")))
    loaded = load_experiment(tmp_path, "fig3").trials[0]
    assert (loaded.status, loaded.error) == ("finished", None)


def test_an_unknown_experiment_names_the_nearest(tmp_path):
    write(tmp_path, experiment(name="fig3"))
    write(tmp_path, experiment(name="tables"))
    with pytest.raises(UnknownExperimentError, match=r"no experiment 'fig4'.*did you mean 'fig3'.*fig3, tables"):
        load_experiment(tmp_path, "fig4")
    with pytest.raises(UnknownExperimentError, match=r"did you mean 'tables'"):
        load_experiment(tmp_path, "experiments/tables.yaml")
    with pytest.raises(CmrayError, match=r"nowhere, which holds none; --storage or CMRAY_STORAGE names another"):
        load_experiment(tmp_path / "nowhere", "fig4")


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("experiment.json", "{", "is not JSON"),
        ("experiment.json", '{"name": "fig3", "metric": "m"}', "'trials' is missing"),
        ("a/result.json", "{}", "is no Result: steps"),
        ("a/evaluations/00.json", "x", "is no Evaluation"),
        ("a/config.yaml", "a: [", "is not YAML"),
    ],
)
def test_damaged_records_are_named(tmp_path, file, text, said):
    write(tmp_path, experiment(trial("a", evaluations=[evaluation(1.0)])))
    (tmp_path / "fig3" / file).write_text(text)
    with pytest.raises(StorageError, match=said) as caught:
        load_experiment(tmp_path, "fig3")
    assert file in str(caught.value)


def test_a_whole_report_and_one_after_it_with_less(tmp_path):
    found = write_report(figure_three(), tmp_path)
    figures = {f"{stem}.{kind}" for stem in ("curve", "steps", "search") for kind in ("png", "svg")}
    names = {"report.html", "table.csv", "table.md", "table.tex"}
    assert set(found) == names | figures == {path.name for path in tmp_path.iterdir()}
    assert "Best in one step" in found["table.md"].read_text()
    less = write_report(experiment(trial("a", status="waiting")), tmp_path)
    assert set(less) == names == {path.name for path in tmp_path.iterdir()}, "figures of the earlier report are gone"


def test_sentences_of_a_good_result():
    said = "\n".join(summary_sentences(figure_three()))
    assert "Best in one step: heun · digits · N=9 † with fd/digits 2.40 (n = 1,797)." in said
    assert "the best that was not is heun · l2 · N=9 with 3.10" in said
    assert "2.40 is 0.0296 times the teacher's own single step (81.20), so better." in said
    assert "2.40 is about the same as the teacher's 35 NFE (2.37)." in said
    assert "2 searched steps beat one in 4 of 6 models" in said
    assert "not in heun · l2 · N=18, heun · l2 · N=36." in said
    assert "Panel N: best of 3 is heun · l2 · N=9 (3.10), then heun · l2 · N=18 (4.10); 1 without a value." in said
    assert "1 failed, 1 running, 1 waiting" in said


def test_sentences_of_a_bad_result_say_so():
    searched = evaluation(200.0, nfe=2, times=[80.0, 1.0], searched=True)
    record = experiment(teacher(), trial("a", ["p"], evaluations=[evaluation(100.0), searched]))
    said = "\n".join(summary_sentences(record))
    assert "1.23 times the teacher's own single step (81.20), so worse" in said
    assert "beat one in 0 of 1 models (median ratio 2.00); not in a." in said
    assert "Panel p: only a (100.00) has a value." in said


def test_no_sentence_compares_across_protocols():
    other = trial("t", role="teacher", evaluations=[evaluation(50.0, n=100)])
    students = [trial(f"s{i}", ["p"], evaluations=[evaluation(4.0 + i)]) for i in range(2)]
    said = "\n".join(summary_sentences(experiment(other, *students)))
    assert "teacher" not in said
    assert "searched" not in said


def test_nothing_to_say():
    assert summary_sentences(experiment()) == ["No trial has a finite one-step fd/digits yet."]


def test_reports_need_neither_torch_nor_ray_nor_mlflow_nor_pyplot():
    code = (
        "import sys, cmray.report.build, cmray.report.load, cmray.report.grids\n"
        "bad = {'torch', 'ray', 'mlflow', 'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "sys.exit(', '.join(bad) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_numbers_whose_intervals_overlap_are_not_ranked():
    def near(value: float) -> Evaluation:
        return evaluation(value).model_copy(update={"low": value - 0.3, "high": value + 0.3})

    level = evaluation(3.5, sampler="edm-heun", nfe=35).model_copy(update={"low": 3.3, "high": 3.7})
    far = evaluation(80.0, sampler="edm-heun").model_copy(update={"low": 79.0, "high": 81.0})
    students = [trial(name, ["p"], evaluations=[near(value)]) for name, value in (("a", 3.6), ("b", 4.0))]
    said = summary_sentences(experiment(trial("t", role="teacher", evaluations=[far, level]), *students))
    assert "a: 3.60 cannot be told from the teacher's 35 NFE (3.50) by their 95% intervals." in said
    assert "a: 3.60 is 0.045 times the teacher's own single step (80.00), so better." in said
    assert "Panel p: best of 2 is a (3.60), which cannot be told from b (4.00) by their 95% intervals." in said
