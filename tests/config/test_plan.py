"""From a file to trials: each planned once, checked against data and teacher, or one line that says what to mend."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from small_run import SMALL, digits, small_values, teacher_checkpoint

from cmray.config.load import load_raw, merged
from cmray.config.plan import Plan, plan_experiment
from cmray.core.errors import CmrayError, ConfigError
from cmray.datasets import ImageDataset
from cmray.datasets.whole import write_shards

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.yaml"))

TEACHER = merged(SMALL, {"name": "edm", "objective": {"name": "edm"}, "noise": {"sigma_data": None}})
STUDENT = merged(SMALL, {"name": "exp", "noise": {"sigma_data": None}})


class Workplace:
    def __init__(self, folder: Path):
        self.folder = folder
        self.storage = folder / "storage"
        self.write("edm.yaml", TEACHER)

    def write(self, name: str, values: dict) -> Path:
        path = self.folder / name
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    def plan(self, changes: dict | None = None, *overrides: str, only=(), **sections) -> Plan:
        values = small_values(changes, **merged(STUDENT, sections))
        return plan_experiment(self.write("exp.yaml", values), overrides, self.storage, only)

    def complaint(self, changes: dict | None = None, *overrides: str, only=(), **sections) -> str:
        before = sorted(self.folder.rglob("*"))
        with pytest.raises(CmrayError) as error:
            self.plan(changes, *overrides, only=only, **sections)
        assert [p for p in sorted(self.folder.rglob("*")) if p not in before and p.name != "exp.yaml"] == []
        text = str(error.value)
        assert len(text.splitlines()) == 1
        return text


@pytest.fixture
def at(tmp_path, monkeypatch) -> Workplace:
    monkeypatch.chdir(tmp_path)
    return Workplace(tmp_path)


CD = {"objective": {"name": "cd", "num_sigmas": 9}, "teacher": {"experiment": "edm.yaml"}}


def pd(**options) -> dict:
    """Progressive distillation in five steps."""
    return {"objective": {"name": "pd", **options}, "teacher": {"experiment": "edm.yaml"}, "train.steps": 5}


# ---------------------------------------------------------------- shipped files


@pytest.mark.parametrize("path", EXPERIMENTS, ids=[str(p.relative_to(ROOT)) for p in EXPERIMENTS])
def test_every_shipped_file_plans(path, tmp_path):
    values = load_raw(path).values
    if "theory" in values:
        return  # no experiment; `cmray theory` reads it
    if not {"name", "objective", "train"} <= set(values):
        assert path.parent.name in ("presets", "overlays"), "only presets and overlays may be incomplete"
        return
    if "path" in values["data"]:
        return  # images of the user's; test_presets.py plans it with others in their place
    plan = plan_experiment(path, [], tmp_path)
    assert plan.trials
    assert len({t.name for t in plan.all_trials}) == len(plan.all_trials)
    assert len({t.label for t in plan.trials}) == len(plan.trials), "labels must tell trials apart"
    for trial in plan.trials:
        assert set(trial.panels) <= set(plan.config.panels)
    assert {name for t in plan.trials for name in t.panels} == set(plan.config.panels)
    assert list(tmp_path.iterdir()) == [], "planning writes nothing"


def test_there_are_shipped_files():
    assert len(EXPERIMENTS) >= 3


# ---------------------------------------------------------------- panels


def test_a_trial_of_two_panels_is_planned_once_and_names_both(at):
    plan = at.plan(
        panels={
            "N": {"grid": {"objective.num_sigmas": [5, 9]}},
            "mu": {"grid": {"objective.mu": [0.9, 0.5]}},
            "nothing new": {},
        }
    )
    assert {(t.run.objective.num_sigmas.num_sigmas, t.run.objective.mu.mu): t.panels for t in plan.trials} == {
        (5, 0.9): ("N",),
        (9, 0.9): ("N", "mu", "nothing new"),
        (9, 0.5): ("mu",),
    }


def test_a_grid_is_all_combinations_in_order_each_with_every_point(at):
    plan = at.plan(
        panels={
            "p": {
                "base": {"train": {"steps": 3}},
                "grid": {"seed": [1, 2], "objective.mu": [0.1, 0.2]},
                "points": [{"train.batch_size": 8}, {"train.batch_size": 16, "train.optimizer.lr": 0.5}],
            }
        }
    )
    found = [(t.run.seed, t.run.objective.mu.mu, t.run.train.batch_size, t.run.train.optimizer.lr) for t in plan.trials]
    assert found == [
        (1, 0.1, 8, 0.01),
        (1, 0.1, 16, 0.5),
        (1, 0.2, 8, 0.01),
        (1, 0.2, 16, 0.5),
        (2, 0.1, 8, 0.01),
        (2, 0.1, 16, 0.5),
        (2, 0.2, 8, 0.01),
        (2, 0.2, 16, 0.5),
    ]
    assert {t.run.train.steps for t in plan.trials} == {3}
    assert plan.trials[1].varied == {"seed": 1, "objective.mu": 0.1, "train.batch_size": 16, "train.optimizer.lr": 0.5}
    assert "seed=1" in plan.trials[1].label
    assert "lr=0.5" in plan.trials[1].label


def test_a_label_has_what_tells_trials_apart_and_a_trial_alone_all_that_its_panel_sets(at):
    points = [{"train.batch_size": 8, "train.optimizer.lr": 0.5}, {"train.batch_size": 8, "train.optimizer.lr": 0.25}]
    both = [t.label for t in at.plan(panels={"p": {"points": points}}).trials]
    assert [label.rpartition(" · ")[2] for label in both] == ["lr=0.5", "lr=0.25"]
    assert not any("batch_size" in label for label in both)
    (alone,) = at.plan(panels={"p": {"points": points[:1]}}).trials
    assert alone.label.endswith(" · batch_size=8 · lr=0.5")


def test_seeds_make_trials_of_their_own(at):
    plan = at.plan(panels={"p": {"grid": {"seed": [0, 1, 2]}}})
    assert [t.run.seed for t in plan.trials] == [0, 1, 2]
    assert len({t.hash for t in plan.trials}) == 3
    assert len({t.label for t in plan.trials}) == 3


def test_random_panels_are_the_same_each_time_and_within_bounds(at):
    def panel(seed):
        return {
            "p": {
                "random": {
                    "count": 20,
                    "seed": seed,
                    "fields": {
                        "train.optimizer.lr": {"log_uniform": [1e-4, 1e-1]},
                        "objective.mu": {"uniform": [0.2, 0.4]},
                        "objective.distance": {"choice": ["l1", "l2"]},
                    },
                }
            }
        }

    def drawn(seed):
        return [
            (t.run.train.optimizer.lr, t.run.objective.mu.mu, t.run.objective.distance.name)
            for t in at.plan(panels=panel(seed)).trials
        ]

    one = drawn(0)
    assert one == drawn(0)
    assert one != drawn(1)
    assert len(one) == 20
    rates, mus, names = zip(*one, strict=True)
    assert all(1e-4 <= lr <= 1e-1 for lr in rates)
    assert min(rates) < 1e-3 < 1e-2 < max(rates), "log-uniform reaches all decades"
    assert all(0.2 <= mu <= 0.4 for mu in mus)
    assert set(names) == {"l1", "l2"}


def test_only_keeps_the_panels_asked_for(at):
    panels = {"a": {"grid": {"seed": [0, 1]}}, "b": {"grid": {"seed": [1, 2]}}, "c": {"grid": {"seed": [3]}}}
    plan = at.plan(panels=panels, only=["b", "c"])
    assert [(t.run.seed, t.panels) for t in plan.trials] == [(1, ("a", "b")), (2, ("b",)), (3, ("c",))]
    assert [(t.run.seed, t.panels) for t in plan.others] == [(0, ("a",))]
    everything = {t.run.seed: t.name for t in at.plan(panels=panels).trials}
    for trial in at.plan(panels=panels, only=["b"]).trials:
        assert everything[trial.run.seed] == trial.name, "the name does not depend on what else is planned"
    assert "--only d: " in at.complaint(panels=panels, only=["d"])


# ---------------------------------------------------------------- names


def test_the_name_does_not_know_the_place_of_file_data_or_storage(at, tmp_path):
    write_shards(digits(), tmp_path / "elsewhere", 3)
    one = at.plan().trials[0]
    two = at.plan({"data": {"path": str(tmp_path / "elsewhere"), "name": None}}).trials[0]
    (tmp_path / "sub").mkdir()
    at.storage = tmp_path / "other storage"
    moved = shutil.copy(at.write("exp.yaml", STUDENT), tmp_path / "sub" / "renamed.yaml")
    three = plan_experiment(Path(moved), [], tmp_path / "third").trials[0]
    assert one.hash == two.hash == three.hash
    assert one.name == f"ct-{one.hash[:10]}"
    assert three.folder == tmp_path / "third" / "exp" / three.name
    assert one.run.data.digest == digits().digest()
    assert one.run.noise.sigma_data == pytest.approx(digits().mean_std()[1], abs=1e-6)


def test_other_data_of_the_same_shape_makes_another_trial(at, tmp_path):
    whole = digits()
    half = ImageDataset("half", "all", "t", whole.images[:900], whole.labels[:900], whole.classes)
    write_shards(half, tmp_path / "half", 1)
    noise = {"noise.sigma_data": 0.75}
    assert at.plan({"data": {"path": "half", "name": None}, **noise}).trials[0].hash != at.plan(noise).trials[0].hash


def test_extending_moving_and_set_give_the_name_that_the_values_written_out_give(at, tmp_path):
    at.write("base.yaml", STUDENT)
    child = at.write("child.yaml", {"extends": "base.yaml", "objective": {"mu": 0.5}})
    written = at.plan({"objective.mu": 0.5}).trials[0]
    assert plan_experiment(child, [], tmp_path).trials[0].hash == written.hash
    assert at.plan({}, "objective.mu=0.5").trials[0].hash == written.hash


# ---------------------------------------------------------------- teachers


def test_one_teacher_serves_all_trials_and_comes_first(at):
    plan = at.plan(**CD, panels={"p": {"grid": {"objective.solver": ["euler", "heun"], "seed": [0, 1]}}})
    assert len(plan.teachers) == 1
    assert plan.all_trials[0] is plan.teachers[0]
    teacher = plan.teachers[0]
    assert teacher.role == "teacher"
    assert teacher.folder == at.storage / "edm" / teacher.name
    for trial in plan.trials:
        assert trial.teacher == teacher
        assert trial.run.teacher.identity == teacher.hash


def test_the_teacher_has_the_name_it_has_as_an_experiment_of_its_own(at):
    alone = plan_experiment(at.folder / "edm.yaml", [], at.storage).trials[0]
    teacher = at.plan(**CD).teachers[0]
    assert (alone.name, alone.folder, alone.run) == (teacher.name, teacher.folder, teacher.run)


def test_teachers_that_differ_are_all_planned_and_make_other_students(at):
    plan = at.plan(**CD, panels={"p": {"grid": {"teacher.overrides": [{"seed": 0}, {"seed": 1}]}}})
    assert [t.run.seed for t in plan.teachers] == [0, 1]
    assert len({t.hash for t in plan.trials}) == 2
    again = at.plan(merged(CD, {"teacher": {"overrides": {"train.steps": 6}}}))
    assert again.teachers[0].hash == at.plan(**CD).teachers[0].hash, "overriding with the same value changes nothing"
    assert again.trials[0].hash == at.plan(**CD).trials[0].hash


def test_a_teacher_the_objective_does_not_use_changes_nothing(at):
    plan = at.plan(teacher={"experiment": "edm.yaml"})
    assert plan.teachers == ()
    assert plan.trials[0].hash == at.plan().trials[0].hash
    assert plan.trials[0].run.teacher is None


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Real checkpoints of teachers: one that fits, one of another shape, one that is no teacher."""
    folder = tmp_path_factory.mktemp("teachers")
    rng = np.random.default_rng(0)
    small = ImageDataset("noise", "all", "t", rng.integers(0, 256, (8, 3, 4, 4), dtype=np.uint8), None)
    steps = {"train.steps": 1}
    return {
        "fits": teacher_checkpoint(folder / "fits", steps),
        "another shape": teacher_checkpoint(folder / "shape", steps, small),
        "no teacher": teacher_checkpoint(folder / "ct", {"objective": {"name": "ct"}, **steps}),
        "wide": teacher_checkpoint(folder / "wide", {"net.width": 24, **steps}),
        "labels": teacher_checkpoint(folder / "labels", {"net.class_conditional": True, **steps}),
    }


def with_checkpoint(path: Path, **more) -> dict:
    return merged({"objective": {"name": "cd", "num_sigmas": 9}, "teacher": {"checkpoint": str(path)}}, more)


def test_a_checkpoint_as_teacher(at, checkpoints, tmp_path):
    trial = at.plan(**with_checkpoint(checkpoints["fits"])).trials[0]
    assert trial.teacher is None
    assert trial.teacher_checkpoint == checkpoints["fits"]
    copy = shutil.copytree(checkpoints["fits"], tmp_path / "copy")
    assert at.plan(**with_checkpoint(copy)).trials[0].hash == trial.hash, "its content counts, not its place"
    identity = trial.run.teacher.identity
    assert at.plan({"teacher.identity": identity}, **with_checkpoint(copy)).trials[0].hash == trial.hash
    found = at.complaint({"teacher.identity": "0" * 64}, **with_checkpoint(copy))
    assert f"teacher.identity is {'0' * 64}, but the teacher's is {identity}" in found


@pytest.mark.parametrize(
    ("which", "more", "words"),
    [
        ("another shape", {}, r"makes images of shape \[3, 4, 4\] \(C, H, W\), but the data has \[1, 8, 8\]"),
        ("no teacher", {}, r"has objective.name ct; a teacher is a denoiser \(edm\)"),
        ("wide", {}, "objective.init is teacher, which needs the teacher's net"),
        ("labels", {}, "net.class_conditional is false, but the teacher .* needs the labels"),
        ("labels", {"objective": {"init": "random"}}, "net.class_conditional is false, but the teacher"),
    ],
)
def test_a_checkpoint_that_cannot_teach(at, checkpoints, which, more, words):
    found = at.complaint(**with_checkpoint(checkpoints[which], **more))
    assert re.search(words, found), found
    assert str(checkpoints[which]) in found
    assert "exp.yaml" in found


def test_a_student_of_another_net_may_start_at_random(at, checkpoints):
    assert at.plan(**with_checkpoint(checkpoints["wide"], objective={"init": "random"})).trials


def test_a_folder_that_is_no_checkpoint(at, tmp_path):
    assert "does not exist" in at.complaint(**with_checkpoint(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    assert "empty is not a checkpoint of cmray" in at.complaint(**with_checkpoint(tmp_path / "empty"))
    for text in ("", "{", "[]", "null", '{"format_version": 1}', '{"format_version": 99}'):
        (tmp_path / "empty" / "meta.json").write_text(text)
        assert str(tmp_path / "empty" / "meta.json") in at.complaint(**with_checkpoint(tmp_path / "empty"))


ADM = {"name": "adm", "channels": 32, "multipliers": [1, 1], "blocks": 1, "attention_resolutions": [], "head_width": 16}


@pytest.mark.parametrize("objective", ["cd", "cd-continuous", "ect", "pd"])
def test_a_student_that_starts_from_its_teacher_may_train_its_net_in_another_way_but_must_have_the_same(at, objective):
    student = {"objective": {"name": objective}, "teacher": {"experiment": "edm.yaml"}, "net": ADM, "train.steps": 9}
    at.write("edm.yaml", merged(TEACHER, {"net": {**ADM, "dropout": 0.3, "activation_checkpointing": True}}))
    assert at.plan(student).teachers[0].run.net.dropout == 0.3
    if hasattr(at.plan(student).trials[0].run.objective, "init"):
        asks = "objective.init is teacher"
    else:
        asks = f"objective.name is {objective}"
    asks = f"exp.yaml: {asks}, which needs the teacher's net, that of {at.folder / 'edm.yaml'}, but "
    for changes, words in (
        ({"net.channels": 64}, "net.channels is 64 instead of 32"),
        ({"net.class_conditional": True}, "net.class_conditional is True instead of False"),
        (
            {"net.blocks": 2, "net.dropout": 0.5, "net.channels": 64},
            "net.channels is 64 instead of 32, net.blocks is 2",
        ),
        ({"net": {"name": "mlp"}}, "net.name is mlp instead of adm"),
    ):
        found = at.complaint({**student, **changes})
        assert found.startswith(asks + words), found


@pytest.mark.parametrize("by", ["experiment", "checkpoint"])
def test_a_student_that_becomes_the_teacher_must_have_the_scale_of_its_data(at, checkpoints, by):
    place = at.folder / "edm.yaml" if by == "experiment" else checkpoints["fits"]
    halving = {**pd(num_sigmas={"name": "halving", "start": 2}), "teacher": {by: str(place)}}
    scale = at.plan().trials[0].run.noise.sigma_data if by == "experiment" else 0.75
    assert at.plan({**halving, "noise.sigma_data": scale}).trials
    found = at.complaint({**halving, "noise.sigma_data": 0.5})
    assert found == (
        f"exp.yaml: noise.sigma_data is 0.5 and that of {place} is {scale}; objective.name pd makes the student the "
        f"next teacher, so both must be the same"
    )
    cd = {**halving, "objective": {"name": "cd"}}
    assert at.plan({**cd, "noise.sigma_data": 1.02 * scale}).trials, "a teacher that stays may have nearly the same"
    found = at.complaint({**cd, "noise.sigma_data": 0.5})
    assert "starts from the teacher's weights, which fit only their own scale" in found
    random = {**cd, "objective": {"name": "cd", "init": "random"}, "noise.sigma_data": 0.5}
    assert at.plan(random).trials, "weights that are not taken may have another scale"


def test_what_is_about_sampling_times_needs_a_consistency_model(at):
    halving = pd(num_sigmas={"name": "halving", "start": 2})
    for more, field in (({"search": {}}, "search"), ({"evaluate": {"times": {2: [80, 0.8]}}}, "evaluate.times")):
        found = at.complaint({**halving}, **{"evaluate": {}, **more, "teacher": {"experiment": "edm.yaml"}})
        assert f"{field} is about the sampling times of consistency models" in found
        assert "objective.name of every trial is pd" in found


def test_a_curve_of_a_distilled_model_is_drawn_at_its_own_steps(at):
    halving = pd(num_sigmas={"name": "halving", "start": 4, "end": 2})
    teacher = {"teacher": {"experiment": "edm.yaml"}}
    curve = {"curve": {"every": 1, "num_samples": 8, "nfe": [1]}}
    found = at.complaint({**halving}, **teacher, **curve)
    assert "curve.nfe is [1], but objective.num_sigmas.end is 2" in found
    curve["curve"]["nfe"] = [2]
    assert at.plan({**halving}, **teacher, **curve).trials


def test_times_that_draw_nothing_on_the_grid_are_refused(at):
    found = at.complaint(objective={"name": "ict", "times": {"name": "lognormal", "P_mean": 50, "P_std": 0.1}})
    assert "objective.times.P_mean 50.0 and P_std 0.1 draw almost nothing between noise.sigma_min" in found


def test_the_name_of_an_optimizer_leaves_its_other_fields(at):
    lr = {"train.optimizer.lr": 0.5}
    for changes in ({**lr, "train.optimizer.name": "adam"}, {"train.optimizer.name": "adam", **lr}):
        optimizer = at.plan(changes).trials[0].run.train.optimizer
        assert (optimizer.name, optimizer.lr) == ("adam", 0.5)


def test_teachers_in_a_circle(at):
    at.write("loop.yaml", merged(STUDENT, {**CD, "teacher": {"experiment": "loop.yaml"}}))
    assert "goes in a circle" in at.complaint(**{**CD, "teacher": {"experiment": "loop.yaml"}})
    assert "goes in a circle" in at.complaint(**{**CD, "teacher": {"experiment": "exp.yaml"}})


def test_a_file_may_teach_itself_as_another_objective(at):
    plan = at.plan(**{**CD, "teacher": {"experiment": "exp.yaml", "overrides": {"objective": {"name": "edm"}}}})
    assert plan.teachers[0].run.objective.name == "edm"


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("edm.yaml", {"panels": {"a": {}}}, "a teacher is a single run, but this file has panels: a"),
        ("edm.yaml", {"objective": {"name": "ct"}}, r"objective.name ct; a teacher is a denoiser"),
        ("edm.yaml", {"net": {"width": 24}}, "objective.init is teacher, which needs the teacher's net"),
        ("edm.yaml", {"train": {"stepz": 1}}, r"edm.yaml: train.stepz: unknown key; did you mean 'steps'\?"),
        ("edm.yaml", {"data": {"name": None, "path": "other"}}, r"trains on other \[1, 8, 8\], but the data"),
        ("none.yaml", {}, "experiment file .*edm.yaml does not exist"),
    ],
)
def test_a_teacher_file_that_cannot_teach(at, tmp_path, file, changes, words):
    whole = digits()
    write_shards(ImageDataset("other", "s", "t", whole.images[:50], None), tmp_path / "other", 1)
    (tmp_path / "edm.yaml").unlink()
    at.write(file, merged(TEACHER, changes))
    found = at.complaint(**CD)
    assert re.search(words, found), found


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train.stepz": 3}, "train.stepz: unknown key; did you mean 'steps'?"),
        ({"sead": 3}, "sead: unknown key; did you mean 'seed'?"),
        (
            {"objective.solver": "heun"},
            "objective: solver is 'heun', which steps along a teacher's ODE, but objective.name is ct, which has no "
            "teacher; remove solver, or set name to cd",
        ),
        ({"objective": {"name": "ict", "solver": "heun"}}, "but objective.name is ict, which has no teacher"),
        ({"objective.distance": {"name": "l2", "factor": 3}}, "objective.distance.factor: unknown key"),
        ({"net.widht": 3}, "net.widht: unknown key; did you mean 'width'?"),
        ({"objective": {"name": "cdd"}}, "objective.name: unknown objective 'cdd'; did you mean 'cd'?"),
        ({"objective": 7}, "objective: a objective is a name or a mapping"),
        ({"net": {"name": "mpl"}}, "net.name: unknown net 'mpl'; did you mean 'mlp'?"),
        ({"objective.distance": "l3"}, "objective.distance.name: unknown distance 'l3'; did you mean"),
        (
            {"objective": {"name": "cd", "solver": "hein"}, "teacher": {"experiment": "edm.yaml"}},
            "objective.solver.name: unknown solver 'hein'; did you mean 'heun'?",
        ),
        ({"data.name": "digit"}, "data.name: unknown dataset 'digit'; did you mean 'digits'?"),
        (
            {"curve": {"every": 1, "metric": "fd/digit"}},
            "curve.metric: unknown metric 'fd/digit'; did you mean 'fd/digits'?",
        ),
        ({"evaluate": {"metric": "digits"}}, "evaluate.metric: unknown metric 'digits'; did you mean 'fd/digits'?"),
        (
            {"objective.distance": {"name": "features", "extractor": "digit"}},
            "objective.distance.extractor: unknown extractor 'digit'; did you mean 'digits'?",
        ),
        ({"objective.num_sigmas": 1}, "objective.num_sigmas.num_sigmas: must be greater than or equal to 2; found 1"),
        ({"objective.num_sigmas": "nine"}, "unknown schedule of N 'nine'"),
        ({"objective.mu": 1}, "objective.mu.mu: must be less than 1; found 1"),
        ({"objective.mu": {"name": "adaptive"}}, "mu.name is adaptive, which uses the s0 of an adaptive num_sigmas"),
        ({"objective.num_sigmas": {"name": "adaptive", "s0": 9, "s1": 3}}, "s0 9 and s1 3 must satisfy s0 <= s1"),
        ({"objective.num_sigmas": {"name": "doubling", "s0": 9, "s1": 3}}, "s0 9 and s1 3 must satisfy s0 <= s1"),
        (
            pd(num_sigmas={"name": "halving", "start": 18}),
            "objective.num_sigmas: num_sigmas.start is 18, but num_sigmas.name halving needs a power of two; the "
            "nearest are 16 and 32",
        ),
        (pd(num_sigmas={"name": "halving", "start": 4, "end": 3}), "objective.num_sigmas: num_sigmas.end is 3, but"),
        (pd(num_sigmas={"name": "halving", "start": 2, "end": 4}), "start 2 and end 4 must satisfy end <= start"),
        (
            pd(num_sigmas=18),
            "objective: num_sigmas is 18, a fixed grid, but objective.name pd halves it; write num_sigmas: {name: "
            "halving, start: 64}",
        ),
        (pd(num_sigmas="doubling"), "objective: num_sigmas.name is doubling, but objective.name pd needs halving"),
        (
            pd(num_sigmas={"name": "halving", "start": 8}),
            "objective.num_sigmas.start is 8, whose stages take 6 steps, but train.steps is 5",
        ),
        (pd(init="random"), "objective.init: unknown key"),
        ({"objective": {"name": "pd"}}, "objective.name pd needs a teacher, but teacher is not given"),
        (
            {"objective.num_sigmas": "halving"},
            "objective: num_sigmas.name is halving, which is for progressive distillation, not ct",
        ),
        (
            {"objective.times": "loss-second-moment", "objective.num_sigmas": "doubling"},
            "objective: times.name is loss-second-moment, which keeps losses per interval of a fixed grid, but "
            "num_sigmas.name is doubling",
        ),
        (
            {"objective.times": "log-normal"},
            "objective.times.name: unknown time sampler 'log-normal'; did you mean 'lognormal'?",
        ),
        ({"objective.times": {"name": "lognormal", "P_std": 0}}, "objective.times.P_std: must be greater than 0"),
        (
            {"objective": {"name": "ct-continuous", "num_sigmas": 9}},
            "objective: num_sigmas is 9, but objective.name is ct-continuous, which has no num_sigmas",
        ),
        (
            {"objective": {"name": "ct-continuous", "distance": "l1"}},
            "objective: distance.name is l1, which has no second derivative at 0, but objective.name is ct-continuous",
        ),
        (
            {"objective": {"name": "ct-continuous"}, "train.compile": True},
            "train.compile is true, but objective.name ct-continuous differentiates the network forwards",
        ),
        (
            {"objective": {"name": "cd-continuous"}, "train.compile": True, "teacher": {"experiment": "edm.yaml"}},
            "train.compile is true, but objective.name cd-continuous differentiates the network forwards",
        ),
        (
            {"objective": {"name": "ct-continuous"}, "net": {"name": "ddpmpp", "activation_checkpointing": True}},
            "net.activation_checkpointing is true, but objective.name ct-continuous differentiates the network",
        ),
        (
            {"objective": {"name": "ect"}},
            "objective.name ect needs a teacher to start from (objective.init), but teacher is not given",
        ),
        (
            {"objective": {"name": "ect", "stages": 7, "init": "random"}},
            "objective.stages is 7, but train.steps is only 6",
        ),
        (
            {"objective": {"name": "ect", "weight": "snr", "init": "random"}},
            "objective: weight is snr, but objective.name ect pairs with noise level 0; use 1/dt or uniform",
        ),
        (
            {"objective": {"name": "edm", "weight": "1/dt"}},
            "objective.weight: must be 'uniform', 'snr', 'snr+1', 'truncated-snr' or 'karras'; found '1/dt'",
        ),
        (
            {"net": {"name": "adm", "channels": 32, "multipliers": [1, 1, 1, 1, 1], "head_width": 32}},
            "net: images of 8x8 do not fit the 5 levels of multipliers, which halve the sides 4 times: both sides must "
            "be multiples of 16, as in 16x16",
        ),
        ({"net": {"name": "adm", "channels": 48}}, "net: channels 48 and multipliers [1, 2, 3, 4] give a level of 48"),
        (
            {"net": {"name": "ddpmpp", "fourier_scale": 1.0}},
            "net: fourier_scale belongs to the fourier embedding alone, found embedding 'positional'",
        ),
        ({"train.steps": 0}, "train.steps: must be greater than or equal to 1; found 0"),
        ({"train.steps": 2.5}, "train.steps: must be a valid integer"),
        ({"train.steps": None}, "train.steps: must be a valid integer; found None"),
        ({"train.optimizer.lr": "fast"}, "train.optimizer.lr: must be a valid number"),
        ({"train.optimizer.lr": float("nan")}, "train.optimizer.lr: must be"),
        ({"train.optimizer.lr": float("inf")}, "train.optimizer.lr: must be a finite number; found inf"),
        ({"train.optimizer.betas": [0.9, 1.0]}, "both betas must be in [0, 1)"),
        ({"train.optimizer.name": "adm"}, "train.optimizer.name: must be 'radam', 'adam' or 'adamw'; found 'adm'"),
        ({"train.optimizer.warmup_steps": 7}, "optimizer.warmup_steps 7 exceeds steps 6"),
        ({"train.ema": []}, "train.ema:"),
        ({"train.ema": [0.9, 0.9]}, "ema rates must be distinct"),
        ({"noise.sigma_min": 90}, "sigma_min 90.0 must be below sigma_max 80.0"),
        ({"noise.sigma_data": -1}, "noise.sigma_data: must be greater than 0"),
        ({"seed": -1}, "seed: must be greater than or equal to 0; found -1"),
        ({"data": {"path": "x", "name": "digits"}}, "give either data.name (such as digits) or data.path"),
        ({"data": {"name": None}}, "give either data.name (such as digits) or data.path"),
        ({"data": {"name": None, "path": "nowhere"}}, "data.path: data folder"),
        ({"data.digest": "0" * 64}, f"data.digest is {'0' * 64}, but"),
        ({"objective": {"name": "cd"}}, "objective.name cd needs a teacher, but teacher is not given"),
        ({"teacher": {}}, "give either teacher.experiment (a file) or teacher.checkpoint"),
        ({"teacher": {"checkpoint": "x", "overrides": {"seed": 1}}}, "teacher.overrides applies to teacher.experiment"),
        (
            {"train.batch_size": 9, "train.accumulate": 2},
            "train.batch_size 9 must be a multiple of resources.workers 1 x train.accumulate 2",
        ),
        ({"resources.workers": 3}, "train.batch_size 8 must be a multiple of resources.workers 3"),
        ({"curve": {"every": 7}}, "curve.every 7 exceeds train.steps 6"),
        ({"curve": {"every": 1, "nfe": [1, 1]}}, "nfe must be distinct"),
        ({"search": {}}, "search is given, but evaluate is not"),
        ({"evaluate": {}, "search": {"nfe": [1]}}, "a search needs an nfe of at least 2"),
        ({"evaluate": {"teacher_nfe": [2]}}, "teacher_nfe 2 is even"),
        ({"evaluate": {"times": {2: [0.8, 80]}}}, "times.2 must be 2 descending noise levels"),
        ({"evaluate": {"times": {3: [80, 1, 0.5]}}}, "times.3 is given, but nfe is [1, 2]"),
        ({"evaluate": {"times": {2: [90, 0.8]}}}, "evaluate.times.2 is [90.0, 0.8]; every time must be above"),
        ({"evaluate": {"times": {2: [80, 0.002]}}}, "evaluate.times.2 is [80.0, 0.002]; every time must be above"),
        ({"name": "a/b"}, "name 'a/b' must be letters"),
        ({"name": "../up"}, "as it names a folder"),
        ({"name": None}, "name: must be a valid string"),
        ({"train.batch_size": None}, "train.batch_size:"),
        ({"panels": {"p": {"grid": {"seed": []}}}}, "grid.seed is empty; give at least one value"),
        (
            {"panels": {"p": {"grid": {"train.stepz": [1]}}}},
            "train.stepz: unknown key; did you mean 'steps'? (allowed: ",
        ),
        ({"panels": {"p": {"grid": {"trian.steps": [1]}}}}, "panels.p: field 'trian.steps' does not exist; 'trian'"),
        ({"panels": {"p": {"grid": {"evaluate.nfe": [1]}}}}, "'evaluate' is no field of a run"),
        ({"panels": {"p": {"grid": {"train..steps": [1]}}}}, "panels.p: field 'train..steps' has an empty part"),
        ({"panels": {"p": {"grid": {"seed.deep": [1]}}}}, "seed"),
        (
            {"panels": {"p": {"base": {"trian": {"steps": 1}}}}},
            "panels.p.base.trian: unknown key; did you mean 'train'?",
        ),
        ({"panels": {"p": {"points": [{"train.steps": 0}]}}}, "[panel p: train.steps=0]"),
        ({"panels": {"p": {"gird": {}}}}, "panels.p.gird: unknown key; did you mean 'grid'?"),
        ({"panels": {"p": {"random": {"count": 0, "fields": {"seed": {"choice": [1]}}}}}}, "panels.p.random.count"),
        (
            {"panels": {"p": {"random": {"count": 10**9, "fields": {"seed": {"choice": [1]}}}}}},
            "panels.p.random.count: must be less than or equal to",
        ),
        (
            {"panels": {"p": {"random": {"count": 1, "fields": {"seed": {"choice": [1], "uniform": [0, 1]}}}}}},
            "a draw has exactly one of uniform, log_uniform, choice",
        ),
        ({"panels": {"p": {"random": {"count": 1, "fields": {"seed": {"uniform": [1, 0]}}}}}}, "range must ascend"),
        ({"panels": {"p": {"random": {"count": 1, "fields": {"seed": {"log_uniform": [0, 1]}}}}}}, "positive bounds"),
        ({"panels": {"p": {"random": {"count": 1, "fields": {}}}}}, "panels.p.random.fields"),
        ({"panels": [1]}, "panels: must be a valid dictionary"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_bad_input_is_one_line_with_file_field_and_nearest_name(at, changes, words):
    found = at.complaint(changes)
    assert words in found, found
    assert found.startswith("exp.yaml: "), found


def test_a_missing_field_is_named(at):
    for values, words in (
        ({k: v for k, v in STUDENT.items() if k != "name"}, "name: is required but not given"),
        ({k: v for k, v in STUDENT.items() if k != "train"}, "train: is required but not given"),
        ({**STUDENT, "train": {"batch_size": 8}}, "train.steps: is required but not given"),
    ):
        with pytest.raises(ConfigError, match=re.escape(words)):
            plan_experiment(at.write("exp.yaml", values), [], at.storage)


def test_the_place_that_set_the_value_is_named(at):
    assert at.complaint({}, "train.steps=0").startswith("--set train.steps=0: train.steps: must be")
    at.write("base.yaml", merged(STUDENT, {"train": {"steps": 0}}))
    child = at.write("child.yaml", {"extends": "base.yaml", "seed": 3})
    with pytest.raises(ConfigError, match=r"^base\.yaml: train\.steps: must be"):
        plan_experiment(child, [], at.storage)


def test_an_unknown_key_is_told_before_what_its_misspelling_left_missing(at):
    values = {**STUDENT, "train": {"step": 6, "batch_size": 8}}
    with pytest.raises(ConfigError, match=r"train\.step: unknown key; did you mean 'steps'\?"):
        plan_experiment(at.write("exp.yaml", values), [], at.storage)


def test_labels_are_needed_for_class_conditional_nets(at, tmp_path):
    write_shards(ImageDataset("bare", "s", "t", digits().images, None), tmp_path / "bare", 1)
    data = {"data": {"name": None, "path": str(tmp_path / "bare")}}
    assert at.plan(data).trials
    found = at.complaint({**data, "net.class_conditional": True})
    assert "net.class_conditional is true, but the data bare has no labels" in found
    assert found.startswith("exp.yaml: ")


def test_lpips_without_its_weights_says_where_they_are_looked_for(at, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    found = at.complaint({"objective.distance": "lpips"})
    assert found.startswith("exp.yaml: objective.distance: distance lpips with net vgg needs the file vgg16-"), found
    assert str(tmp_path / "cache") in found
    assert "or name a copy with distance.weights: PATH" in found
    found = at.complaint({"objective.distance": {"name": "lpips", "net": "alex", "weights": "nowhere.pth"}})
    assert (
        f"needs the file alexnet-owt-7be5be79.pth, which is not here (looked for {tmp_path / 'nowhere.pth'})" in found
    )


def test_data_of_a_shape_that_net_or_metric_cannot_take(at, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 3, 4), dtype=np.uint8)
    write_shards(ImageDataset("tiny", "s", "t", images, None), tmp_path / "tiny", 1)
    data = {"data": {"name": None, "path": str(tmp_path / "tiny")}}
    assert at.plan(data).trials[0].data.shape == (3, 3, 4)
    for changes, words in (
        ({"net": {"name": "unet", "multipliers": [1, 1, 1]}}, "net: images of 3x4 are too small for the 3 levels"),
        ({"curve": {"every": 1}}, "curve.metric is digits: extractor 'digits' takes images of 1x8x8"),
        ({"evaluate": {}}, "evaluate.metric is digits: extractor 'digits' takes images of 1x8x8"),
        ({"objective.distance": "features"}, "objective.distance.extractor is digits"),
    ):
        found = at.complaint({**data, **changes})
        assert words in found, found
        assert "exp.yaml" in found


def test_data_that_does_not_vary_has_no_scale(at, tmp_path):
    write_shards(ImageDataset("flat", "s", "t", np.full((4, 1, 8, 8), 7, np.uint8), None), tmp_path / "flat", 1)
    data = {"data": {"name": None, "path": str(tmp_path / "flat")}}
    assert "noise.sigma_data" in at.complaint(data)
    assert at.plan({**data, "noise.sigma_data": 0.5}).trials[0].run.noise.sigma_data == 0.5


def test_a_damaged_dataset_is_told_with_the_field(at, tmp_path):
    write_shards(digits(), tmp_path / "set", 1)
    (tmp_path / "set" / "manifest.json").write_text("{")
    found = at.complaint({"data": {"name": None, "path": "set"}})
    assert re.search(r"^exp.yaml: data.path: .*manifest.json is damaged", found), found
    shutil.copytree(tmp_path / "set", at.storage / "datasets" / "digits")
    found = at.complaint()
    assert re.search(r"^exp.yaml: data.name: .*manifest.json is damaged", found), found


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"name": None, "path": "two\nlines"}},
        {"data": {"name": "two\nlines"}},
        {"teacher": {"experiment": "two\r\nlines"}, "objective": {"name": "cd"}},
        {"teacher": {"checkpoint": "two\u2028lines"}, "objective": {"name": "cd"}},
        {"panels": {"two\nlines": {"grid": {"data.name": ["a\nb"]}}}},
        {"two\nlines": 1},
        {"panels": {"p": {"grid": {"two\nlines": [1]}}}},
    ],
    ids=str,
)
def test_line_ends_in_names_do_not_break_the_line(at, changes):
    at.complaint(changes)  # asserts one line


def test_numbers_stand_for_fixed_schedules(at):
    run = at.plan({"objective.num_sigmas": 12, "objective.mu": 0}).trials[0].run
    assert (run.objective.num_sigmas.name, run.objective.num_sigmas.num_sigmas) == ("fixed", 12)
    assert (run.objective.mu.name, run.objective.mu.mu) == ("fixed", 0)
    long = {"objective.num_sigmas": {"name": "fixed", "num_sigmas": 12}, "objective.mu": {"name": "fixed", "mu": 0.0}}
    assert at.plan(long).trials[0].run == run


def test_another_objective_in_a_panel_takes_none_of_the_options_of_the_one_below(at):
    plan = at.plan(**CD, panels={"p": {"points": [{"objective": {"name": "ct"}}, {"objective.solver": "euler"}]}})
    ct, cd = (t.run.objective for t in plan.trials)
    assert (ct.name, ct.num_sigmas.num_sigmas) == ("ct", 18)
    assert (cd.name, cd.solver.name, cd.num_sigmas.num_sigmas) == ("cd", "euler", 9)


def test_noise_of_two_points_is_the_least_grid(at):
    assert at.plan({"objective.num_sigmas": 2}).trials[0].run.objective.num_sigmas.num_sigmas == 2
