"""What is still to be done of a plan, and in which order; work in the background."""

import threading
import time

import pytest
from cli_run import CD, CT, EDM, good, here, write

from cmray.cluster.follow import in_background
from cmray.cluster.stages import pending_stages, result_of, resumes_at, spec_of, trials_by_data
from cmray.config.plan import plan_experiment
from cmray.core.errors import CheckpointError


@pytest.fixture
def study(tmp_path):
    write(tmp_path / "teacher.yaml", EDM)
    return write(
        tmp_path / "study.yaml",
        CD,
        teacher={"experiment": "teacher.yaml"},
        panels={
            "cd": {"grid": {"objective.num_sigmas": [5, 9]}},
            "more": {"grid": {"objective.num_sigmas": [9, 18]}},
            "ct": {"points": [{"objective": CT["objective"]}]},
        },
    )


def names(stages):
    return [(s.title, [t.run.objective.name for t in s.trials]) for s in stages]


def test_a_teacher_comes_before_all_and_a_shared_trial_is_one(tmp_path, study):
    plan = plan_experiment(study, [], tmp_path / "storage")
    assert names(pending_stages(plan)) == [("teacher", ["edm"]), ("trials", ["cd", "cd", "cd", "ct"])]
    shared = [t for t in plan.trials if len(t.panels) == 2]
    assert [t.panels for t in shared] == [("cd", "more")]
    (teacher,) = plan.teachers
    assert all(t.teacher == teacher for t in plan.trials if t.run.objective.name == "cd")
    with pytest.raises(CheckpointError, match=r"teacher/edm-\w+ did not finish"):
        spec_of(plan.trials[0])
    assert list(trials_by_data(plan.all_trials).values()) == [list(plan.all_trials)]


def test_what_is_finished_is_not_pending_and_what_is_cut_off_resumes(tmp_path, study):
    storage = tmp_path / "storage"
    good(here("train", tmp_path / "teacher.yaml", "--storage", storage, "--tracking-uri", "none"))
    plan = plan_experiment(study, [], storage)
    assert names(pending_stages(plan)) == [("trials", ["cd", "cd", "cd", "ct"])]
    (teacher,) = plan.teachers
    spec = spec_of(plan.trials[0])
    assert spec.teacher == str(teacher.folder / "checkpoints" / "step-00000040")
    assert spec.config == plan.trials[0].run
    assert resumes_at(plan.trials[0]) == 0
    (teacher.folder / "result.json").unlink()
    assert resumes_at(teacher) == 40
    assert names(pending_stages(plan))[0] == ("teacher", ["edm"])


def test_a_result_without_its_checkpoint_is_none(tmp_path, study):
    import shutil

    storage = tmp_path / "storage"
    good(here("train", tmp_path / "teacher.yaml", "--storage", storage, "--tracking-uri", "none"))
    (teacher,) = plan_experiment(study, [], storage).teachers
    assert result_of(teacher) is not None
    shutil.rmtree(teacher.folder / "checkpoints")
    assert result_of(teacher) is None


def test_a_chain_of_teachers_is_trained_in_order(tmp_path):
    """A distilled model cannot teach, but an EDM run may itself name a teacher it does not use."""
    write(tmp_path / "first.yaml", EDM)
    write(tmp_path / "second.yaml", EDM, seed=1, teacher={"experiment": "first.yaml"})
    file = write(tmp_path / "study.yaml", CD, teacher={"experiment": "second.yaml"}, panels={"p": {}})
    plan = plan_experiment(file, [], tmp_path / "storage")
    assert names(pending_stages(plan)) == [("teacher", ["edm"]), ("trials", ["cd"])]
    assert [t.experiment for t in plan.teachers] == ["second"]


def test_work_in_the_background_is_watched_and_its_error_raised():
    polled, threads = [], []

    def work():
        threads.append(threading.current_thread())
        time.sleep(0.3)
        raise ValueError("in the thread")

    with pytest.raises(ValueError, match="in the thread"):
        in_background(work, lambda: polled.append(threading.current_thread()), every=0.05)
    assert threads[0] is not threading.main_thread()
    assert len(polled) >= 3, "nobody looked while it ran"
    assert set(polled) == {threading.main_thread()}


def test_the_last_look_is_after_the_end():
    seen, done = [], []
    in_background(lambda: done.append(True), lambda: seen.append(bool(done)), every=0.01)
    assert seen[-1] is True
