"""The paper's experiments are whole at its scale, share what they can, and run small with every overlay."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from cmray.config.checks import Missing
from cmray.config.load import load_raw
from cmray.config.plan import Plan, plan_experiment
from cmray.datasets import ImageDataset
from cmray.datasets.whole import write_shards
from cmray.metrics.trained import TrainedCNN, save_features

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {
    "mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "imagenet64": ((3, 64, 64), 1000),
    "lsun-bedroom256": ((3, 256, 256), 0),
    "lsun-cat256": ((3, 256, 256), 0),
}
#: trials and teachers of each file, whatever lies over it
FILES = {
    "fig3": (19, 1),  # panels of 3, 8, 8 and 5: the usual CD is in three, Heun's N in two
    "fig4": (10, 1),
    "fig4-imagenet64": (10, 1),
    "fig4-lsun-bedroom": (10, 1),
    "fig4-lsun-cat": (10, 1),
    "fig5": (2, 0),
    "table1": (4, 1),
    "table2": (4, 1),
    "table2-lsun-bedroom": (4, 1),
    "table2-lsun-cat": (4, 1),
    "beyond": (3, 1),
}
OVERLAYS = ("digits", "digits-long", "mnist", "cifar10-small")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The shipped files beside four made-up images, and features, for each data folder that they name."""
    root = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "experiments", root / "experiments")
    rng = np.random.default_rng(0)
    for name, (shape, classes) in SHAPES.items():
        names = tuple(map(str, range(classes)))
        images = rng.integers(0, 256, (4, *shape), np.uint8)
        labels = np.arange(4) if classes else None
        write_shards(ImageDataset(name, "train", "made up", images, labels, names), root / "data" / name, 1)
        if name in ("mnist", "cifar10"):
            record = {"dataset": {"shape": list(shape), "classes": list(names)}}
            save_features(TrainedCNN(shape, classes).eval(), record, root / "data" / f"{name}-features.safetensors")
    return root


@pytest.fixture
def planned(tree, monkeypatch):
    monkeypatch.chdir(tree)

    def plan(name: str, *overlays: str, missing: Missing | None = None) -> Plan:
        over = [Path("experiments/overlays") / f"{o}.yaml" for o in overlays]
        return plan_experiment(Path("experiments") / f"{name}.yaml", [], tree / "storage", (), over, missing)

    return plan


def preset(tree: Path, name: str, *overrides: str):
    path = tree / "experiments" / "presets" / f"{name}.yaml"
    return plan_experiment(path, overrides, tree / "storage", (), (), Missing()).trials[0]


def test_these_are_all_the_files():
    shipped = {p.stem for p in (ROOT / "experiments").glob("*.yaml")} - {"quickstart", "theory"}
    assert shipped == set(FILES)
    assert {p.stem for p in (ROOT / "experiments" / "overlays").glob("*.yaml")} == set(OVERLAYS)


@pytest.mark.parametrize("name", FILES)
def test_a_file_plans_at_paper_scale(planned, name):
    missing = Missing()  # the weights of LPIPS and Inception may not be here
    plan = planned(name, missing=missing)
    assert missing.datasets == {}
    assert plan.config.name == name
    assert (len(plan.trials), len(plan.teachers)) == FILES[name]
    assert len({t.hash for t in plan.all_trials}) == sum(FILES[name])
    assert len({t.label for t in plan.trials}) == len(plan.trials)
    assert {t.run.resources.workers * t.run.resources.gpus_per_worker for t in plan.all_trials} <= {8, 64}
    assert plan.config.evaluate is not None
    assert plan.config.evaluate.num_samples == 50_000
    assert plan.config.evaluate.metric == "fd/inception-legacy-tensorflow"


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", FILES)
def test_a_file_plans_with_every_overlay(planned, name, overlay):
    plan = planned(name, overlay)
    assert plan.config.name == f"{name}-{overlay}"
    assert (len(plan.trials), len(plan.teachers)) == FILES[name]
    large = planned(name, missing=Missing())
    assert list(plan.config.panels) == list(large.config.panels)
    assert [t.panels for t in plan.trials] == [t.panels for t in large.trials], "the same panels share the same trials"
    assert [t.run.objective.name for t in plan.trials] == [t.run.objective.name for t in large.trials]
    for trial in plan.trials:
        assert trial.run.resources.gpus_per_worker == 0
        assert trial.run.resources.workers == 1
        assert trial.run.train.steps <= (10_000 if overlay == "digits-long" else 3_000)
        assert trial.run.net == plan.trials[0].run.net, "panels say nothing of another net"
        assert trial.run.curve is None or trial.run.train.steps >= 2 * trial.run.curve.every
    assert plan.config.evaluate is not None
    assert plan.config.evaluate.num_samples <= 10_000
    assert plan.config.search is None or plan.config.search.num_samples <= 10_000
    assert (plan.config.search is None) == (large.config.search is None)


def test_the_panels_of_fig3(planned):
    plan = planned("fig3", missing=Missing())
    panels = {name: [t for t in plan.trials if name in t.panels] for name in plan.config.panels}
    a, b, c, d = panels.values()
    assert [t.run.objective.distance.name for t in a] == ["l2", "l1", "lpips"]
    assert {(t.run.objective.solver.name, t.run.objective.num_sigmas.num_sigmas) for t in b} == {
        (solver, n) for solver in ("euler", "heun") for n in (9, 18, 36, 80)
    }
    assert sorted(t.run.objective.num_sigmas.num_sigmas for t in c) == [9, 12, 18, 36, 50, 60, 80, 120]
    assert {(t.run.objective.solver.name, t.run.objective.distance.name) for t in c} == {("heun", "lpips")}
    assert [t.run.objective.label for t in d] == [
        *(f"ct · lpips · N={n}" for n in (9, 18, 36, 120)),
        "ct · lpips · N(k) 2→151",
    ]
    assert len([t for t in plan.trials if len(t.panels) == 3]) == 1


def test_what_files_share_with_presets_is_the_same_model(planned, tree):
    """But for the curve, which a preset does not have."""

    def hashes(name: str) -> set[str]:
        from cmray.config.identity import content_hash

        plan = planned(name, missing=Missing())
        return {content_hash(t.run.model_copy(update={"curve": None})) for t in plan.trials}

    assert {preset(tree, f"cifar10-{m}").hash for m in ("cd", "ct")} <= hashes("fig3")
    assert {preset(tree, f"cifar10-{m}").hash for m in ("cd", "ct")} <= hashes("table1")
    assert preset(tree, "cifar10-pd", "train.steps=750000").hash in hashes("table1")
    assert {preset(tree, f"cifar10-{m}").hash for m in ("edm", "ct")} == hashes("fig5")
    assert {preset(tree, f"cifar10-{m}").hash for m in ("ct", "ict")} <= hashes("beyond")
    assert {preset(tree, f"imagenet64-{m}").hash for m in ("cd", "ct", "pd")} <= hashes("table2")
    for scene in ("bedroom", "cat"):
        wanted = {preset(tree, f"lsun-{scene}256-{m}").hash for m in ("cd", "ct", "pd")}
        assert wanted <= hashes(f"table2-lsun-{scene}")
        assert preset(tree, f"lsun-{scene}256-cd").hash in hashes(f"fig4-lsun-{scene}")


def test_methods_of_beyond_see_the_same_number_of_images(planned):
    for overlays in ((), *((o,) for o in OVERLAYS)):
        runs = [t.run for t in planned("beyond", *overlays, missing=Missing()).trials]
        assert len({run.train.steps * run.train.batch_size for run in runs}) == 1
        assert [run.objective.name for run in runs] == ["ct", "ict", "ect"]


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith(("fig4", "table"))])
def test_stages_of_halving_last_as_long_as_in_the_reference(planned, name):
    halving = [t.run for t in planned(name, missing=Missing()).trials if t.run.objective.name == "pd"]
    for run in halving:
        assert run.objective.num_sigmas.units * 50_000 == run.train.steps
    ends = [1, 2, 4, 8] if name.startswith("fig4") else [1, 2]
    assert sorted({run.objective.num_sigmas.end for run in halving}) == ends
    starts = {run.objective.num_sigmas.start for run in halving}
    assert starts == {4096 if name in ("fig4", "table1") else 1024}


def test_the_digits_teacher_is_the_quickstarts(planned):
    (quickstart,) = planned("quickstart").teachers
    for name, (_, teachers) in FILES.items():
        assert [(t.hash, t.folder) for t in planned(name, "digits").teachers] == (
            [(quickstart.hash, quickstart.folder)] * teachers
        )


def rules_of(overlay: str) -> dict[str, dict]:
    return yaml.safe_load((ROOT / "experiments" / "overlays" / f"{overlay}.yaml").read_text())["replace"]


def leaves(value):
    """All values in mappings and lists of any depth."""
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from leaves(inner)
    if not isinstance(value, dict | list):
        yield value


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_value_that_an_overlay_replaces_stands_in_some_file(overlay):
    stated = {value for name in FILES for value in leaves(load_raw(ROOT / "experiments" / f"{name}.yaml").values)}
    below = rules_of("digits") if overlay == "digits-long" else {}
    assert rules_of(overlay)
    for field, table in rules_of(overlay).items():
        assert table, f"{overlay}.yaml replaces nothing of {field}"
        made = set(leaves(below.get(field, {})))
        for old in table:
            assert old in stated or old in made, f"{overlay}.yaml replaces {field} {old}, which no file has"
