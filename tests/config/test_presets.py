"""Every shipped experiment file is valid, and the presets say what was published."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cmray.config.experiment import RUN_FIELDS, ExperimentConfig
from cmray.config.load import RawExperiment, load_raw, validated
from cmray.config.plan import plan_experiment
from cmray.config.run import RunConfig
from cmray.datasets import ImageDataset
from cmray.datasets.whole import write_shards

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ROOT / "experiments" / "presets"
FILES = sorted((ROOT / "experiments").rglob("*.yaml"))
#: (C, H, W) and number of classes of each dataset
SHAPES = {
    "digits": ((1, 8, 8), 10),
    "mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "imagenet64": ((3, 64, 64), 1000),
    "lsun": ((3, 256, 256), 0),
}

# Literals of Table 3 of Song et al. 2023, of its launch file, of EDM's and ECT's README, and of iCT. Not read from the
# files under test.
# fmt: off
KEY_FACTS = {
    #                       steps      batch optimizer  lr    EMA      GPUs
    "cifar10-edm":         (  390_625,   512, "adam",  1e-3, 0.999290,  8),
    "cifar10-cd":          (  800_000,   512, "radam", 4e-4, 0.9999,    8),
    "cifar10-ct":          (  800_000,   512, "radam", 4e-4, 0.9999,    8),
    "cifar10-pd":          (  750_000,   512, "adam",  5e-5, 0.0,       8),
    "cifar10-ict":         (  400_000,  1024, "radam", 1e-4, 0.99993,   8),
    "cifar10-ect":         (  200_000,   128, "radam", 1e-4, 0.9999,    4),
    "imagenet64-edm":      (  600_000,  4096, "radam", 1e-4, 0.999943, 64),
    "imagenet64-cd":       (  600_000,  2048, "radam", 8e-6, 0.999943, 64),
    "imagenet64-ct":       (  800_000,  2048, "radam", 8e-6, 0.999943, 64),
    "imagenet64-pd":       (  650_000,  2048, "radam", 8e-6, 0.999943, 64),
    "imagenet64-ict":      (  800_000,  4096, "radam", 1e-4, 0.99997,  64),
    "imagenet64-ect":      (  100_000,   128, "radam", 1e-4, 0.999943,  8),
    "lsun-bedroom256-edm": (  300_000,   256, "radam", 1e-4, 0.999943, 64),
    "lsun-bedroom256-cd":  (  600_000,  2048, "radam", 1e-5, 0.999943, 64),
    "lsun-bedroom256-ct":  (1_000_000,  2048, "radam", 1e-5, 0.999943, 64),
    "lsun-bedroom256-pd":  (  650_000,  2048, "radam", 1e-5, 0.999943, 64),
    "lsun-cat256-edm":     (  300_000,   256, "radam", 1e-4, 0.999943, 64),
    "lsun-cat256-cd":      (  600_000,  2048, "radam", 1e-5, 0.999943, 64),
    "lsun-cat256-ct":      (1_000_000,  2048, "radam", 1e-5, 0.999943, 64),
    "lsun-cat256-pd":      (  650_000,  2048, "radam", 1e-5, 0.999943, 64),
}
#: N as (first, last), mu as (first, last), dropout
SCHEDULES = {
    "cifar10-cd":          ((18, 18),     (0.0, 0.0),                          0.0),
    "cifar10-ct":          ((2, 151),     (0.9**2, 0.9 ** (2 / 150)),          0.0),
    "cifar10-ict":         ((11, 1281),   (0.0, 0.0),                          0.3),
    "imagenet64-cd":       ((40, 40),     (0.95, 0.95),                        0.0),
    "imagenet64-ct":       ((2, 201),     (0.95**2, 0.95 ** (2 / 200)),        0.0),
    "imagenet64-ict":      ((11, 1281),   (0.0, 0.0),                          0.2),
    "lsun-bedroom256-cd":  ((40, 40),     (0.95, 0.95),                        0.0),
    "lsun-bedroom256-ct":  ((2, 151),     (0.95**2, 0.95 ** (2 / 150)),        0.0),
    "lsun-cat256-cd":      ((40, 40),     (0.95, 0.95),                        0.0),
    "lsun-cat256-ct":      ((2, 151),     (0.95**2, 0.95 ** (2 / 150)),        0.0),
}
#: millions of parameters as published
PARAMETERS = {
    "cifar10-edm": 56.4, "cifar10-cd": 56.4, "cifar10-ct": 56.4, "cifar10-pd": 56.4, "cifar10-ict": 56.4,
    "cifar10-ect": 55.7,
    **{f"imagenet64-{m}": 295.899267 for m in ("edm", "cd", "ct", "pd", "ict", "ect")},
    **{f"lsun-{d}256-{m}": 526.304771 for d in ("bedroom", "cat") for m in ("edm", "cd", "ct", "pd")},
}
# fmt: on


def is_whole(raw: RawExperiment) -> bool:
    return {"name", "objective", "train", "net", "data"} <= set(raw.values)


EXPERIMENTS = [path for path in FILES if "theory" not in load_raw(path).values]
WHOLE = [path for path in EXPERIMENTS if is_whole(load_raw(path))]


def experiment(name: str) -> ExperimentConfig:
    raw = load_raw(PRESETS / f"{name}.yaml")
    return validated(ExperimentConfig, raw.values, raw)


def dataset_of(name: str) -> tuple[tuple[int, int, int], int]:
    return next(value for key, value in SHAPES.items() if name.startswith(key))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_shipped_file_loads_and_is_whole_unless_it_is_a_base(path):
    if path not in WHOLE:
        if path.parent.name == "overlays":
            return  # test_paper_experiments.py lays them over files
        assert path.parent == PRESETS
        assert "-" not in path.stem, "a preset is called DATASET-METHOD; a base is called after its dataset"
        return
    raw = load_raw(path)
    config = validated(ExperimentConfig, raw.values, raw)
    run = validated(RunConfig, {k: v for k, v in raw.values.items() if k in RUN_FIELDS}, raw)
    assert run == RunConfig.model_validate({k: getattr(config, k) for k in RunConfig.model_fields})
    assert path.parent != PRESETS or config.name == path.stem


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The shipped files in a folder of their own, beside four made-up images for each data folder that they name."""
    root = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "experiments", root / "experiments")
    rng = np.random.default_rng(0)
    for name in ("mnist", "cifar10", "imagenet64", "lsun-bedroom256", "lsun-cat256"):
        shape, classes = dataset_of(name)
        images = rng.integers(0, 256, (4, *shape), np.uint8)
        names = tuple(map(str, range(classes)))
        data = ImageDataset(name, "train", "made up", images, np.arange(4) if classes else None, names)
        write_shards(data, root / "data" / name, 1)
    return root


@pytest.mark.parametrize("path", [p for p in WHOLE if p.parent == PRESETS], ids=lambda p: p.stem)
def test_a_preset_plans_with_its_teacher(path, tree):
    lpips = load_raw(path).values["objective"].get("distance") == "lpips"  # its weights are not everywhere
    overrides = ["objective.distance=l2"] if lpips else []
    plan = plan_experiment(tree / "experiments" / "presets" / path.name, overrides, tree / "storage")
    (trial,) = plan.trials
    assert trial.experiment == path.stem
    assert [t.experiment for t in plan.teachers] == (
        [f"{path.stem.rpartition('-')[0]}-edm"] if trial.run.objective.uses_teacher else []
    )
    assert trial.run.resources.cpus_per_worker * trial.run.resources.workers <= 64


@pytest.mark.parametrize("path", [p for p in WHOLE if p.parent == PRESETS], ids=lambda p: p.stem)
def test_a_preset_has_its_teacher_and_a_network_that_fits(path):
    config = experiment(path.stem)
    (shape, classes) = dataset_of(path.stem)
    config.net.check(shape)
    assert not config.net.class_conditional or classes
    assert (config.teacher is not None) == config.objective.uses_teacher
    if config.teacher is None:
        return
    file = config.teacher.experiment
    assert file is not None
    assert file.resolve() == (PRESETS / f"{path.stem.rpartition('-')[0]}-edm.yaml").resolve()
    raw = load_raw(file)
    for key, value in config.teacher.overrides.items():
        raw.override(key, value, "teacher.overrides")
    teacher = validated(ExperimentConfig, raw.values, raw)
    assert teacher.objective.is_denoiser
    assert (teacher.data.name, teacher.data.path) == (config.data.name, config.data.path)
    assert teacher.noise == config.noise
    if config.objective.starts_from == "teacher":
        assert teacher.net.architecture() == config.net.architecture()


def test_the_tables_name_every_preset_of_a_published_dataset():
    published = {p.stem for p in WHOLE if p.stem.startswith(("cifar10-", "imagenet64-", "lsun"))}
    assert published == set(KEY_FACTS) == set(PARAMETERS)
    adaptive = {name for name in published if name.rpartition("-")[2] in ("cd", "ct", "ict")}
    assert adaptive == set(SCHEDULES)


@pytest.mark.parametrize("name", KEY_FACTS)
def test_a_preset_trains_as_published(name):
    config = experiment(name)
    train, optimizer = config.train, config.train.optimizer
    steps, batch, kind, lr, ema, gpus = KEY_FACTS[name]
    assert (train.steps, train.batch_size, optimizer.name, optimizer.lr) == (steps, batch, kind, lr)
    assert train.ema[0] == pytest.approx(ema, abs=1e-6)
    assert optimizer.weight_decay == 0
    assert (config.resources.workers, config.resources.gpus_per_worker) == (gpus, 1)
    assert config.noise.model_dump() == {"sigma_min": 0.002, "sigma_max": 80, "rho": 7, "sigma_data": 0.5}
    assert optimizer.final_lr == 1
    assert optimizer.warmup_steps == (19_531 if name == "cifar10-edm" else 0)
    assert train.precision == ("fp32" if name.startswith("cifar10") else "bf16")


@pytest.mark.parametrize("name", SCHEDULES)
def test_N_mu_and_dropout_are_the_published_ones(name):
    config = experiment(name)
    objective, steps = config.objective, config.train.steps
    grids, decays, dropout = SCHEDULES[name]
    first, last = (objective.num_sigmas.num_sigmas_at(k, steps) for k in (0, steps - 1))
    assert (first, last) == grids
    s0 = getattr(objective.num_sigmas, "s0", None)
    assert [objective.mu.mu_at(n, s0) for n in (first, last)] == pytest.approx(list(decays))
    assert config.net.dropout == dropout
    if name.endswith(("-cd", "-ct")):
        assert (objective.distance.name, objective.weight, objective.times.name) == ("lpips", "uniform", "uniform")
    if name.endswith("-cd"):
        assert objective.solver.name == "heun"


def test_teachers_draw_noise_as_edm_does():
    teachers = [name for name in KEY_FACTS if name.endswith("-edm")]
    assert len(teachers) == 4
    for name in teachers:
        times = experiment(name).objective.times
        assert (times.P_mean, times.P_std) == (-1.2, 1.2)
        assert experiment(name).net.dropout == (0.13 if name.startswith("cifar10") else 0.1)


def test_edm_on_cifar10_sees_200_million_images_with_half_lives_of_half_a_million():
    train = experiment("cifar10-edm").train
    assert train.steps * train.batch_size == 200e6
    assert math.log(0.5, train.ema[0]) * train.batch_size == pytest.approx(0.5e6)
    assert train.optimizer.warmup_steps == int(10e6 / train.batch_size)


@pytest.mark.parametrize(("name", "every"), [("cifar10-ect", 25_000), ("imagenet64-ect", 25_000)])
def test_ect_halves_dt_as_often_as_published(name, every):
    config = experiment(name)
    assert config.train.steps == config.objective.stages * every
    assert (config.objective.q, config.objective.k, config.objective.b) == (2, 8, 1)


@pytest.mark.parametrize("name", [n for n in KEY_FACTS if n.endswith("-pd")])
def test_progressive_distillation_ends_in_one_step(name):
    config = experiment(name)
    grid = config.objective.num_sigmas
    assert grid.stage_steps == 50_000
    assert grid.units * grid.stage_steps <= config.train.steps
    assert grid.num_sigmas_at(config.train.steps - 1, config.train.steps) == 2


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_published_size(name):
    config = experiment(name)
    shape, classes = dataset_of(name)
    with torch.device("meta"):
        net = config.net.build(shape, classes if config.net.class_conditional else 0)
    count = sum(p.numel() for p in net.parameters())
    assert count / 1e6 == pytest.approx(PARAMETERS[name], rel=0.01)


@pytest.mark.parametrize(
    ("index", "points", "sigma"),
    [(22, 40, 1.382), (106, 201, 1.913), (17, 40, 4.366), (67, 151, 3.991), (62, 151, 5.249)],
)
def test_two_step_indices_are_the_sigmas_the_comments_give(index, points, sigma):
    high, low = 80 ** (1 / 7), 0.002 ** (1 / 7)
    assert (high + index / (points - 1) * (low - high)) ** 7 == pytest.approx(sigma, abs=1e-3)
    said = [p.read_text() for p in PRESETS.glob("*.yaml")]
    assert any(f"indices 0, {index} of\n# 0..{points - 1}" in text or f"0, {index} of 0..{points - 1}" in text
               for text in said)  # fmt: skip
    assert any(f"{sigma:.3f}" in text for text in said)


def rows_of_the_docs() -> dict[str, list[str]]:
    """The rows of the table in docs/presets.md, by preset."""
    lines = (ROOT / "docs" / "presets.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {row[0]: row for row in cells if (PRESETS / f"{row[0]}.yaml").is_file()}


def test_the_docs_list_every_preset():
    assert set(rows_of_the_docs()) == {p.stem for p in WHOLE if p.parent == PRESETS}


@pytest.mark.parametrize("path", [p for p in WHOLE if p.parent == PRESETS], ids=lambda p: p.stem)
def test_the_docs_table_says_what_the_preset_does(path):
    _, network, _, _, lr, batch, steps, gpus, *_ = rows_of_the_docs()[path.stem]
    config = experiment(path.stem)
    nets = {
        "NCSN++": "ncsnpp",
        "DDPM++": "ddpmpp",
        "ADM": "adm",
        "MLP": "mlp",
        "U-Net, 0.35 M": "unet",
        "U-Net, 1.6 M": "unet",
    }
    assert nets[network] == config.net.name
    assert float(lr) == config.train.optimizer.lr
    assert int(batch) == config.train.batch_size
    assert int(steps.replace("k", "000").replace(",", "")) == config.train.steps
    if path.stem in KEY_FACTS:
        assert int(gpus) == config.resources.workers


# fmt: off
FIDS = {
    "cifar10-edm": ("2.04",), "cifar10-cd": ("3.55", "2.93"), "cifar10-ct": ("8.70", "5.83"),
    "cifar10-pd": ("8.34", "5.58"), "cifar10-ict": ("2.83", "2.46"), "cifar10-ect": ("3.86", "2.15"),
    "imagenet64-edm": ("2.44",), "imagenet64-cd": ("6.20", "4.70"), "imagenet64-ct": ("13.0", "11.1"),
    "imagenet64-pd": ("15.39", "8.95"), "imagenet64-ict": ("3.25", "2.77"),
    "lsun-bedroom256-edm": ("3.57",), "lsun-bedroom256-cd": ("7.80", "5.22"), "lsun-bedroom256-ct": ("16.0", "7.85"),
    "lsun-bedroom256-pd": ("16.92", "8.47"), "lsun-cat256-edm": ("6.69",), "lsun-cat256-cd": ("11.0", "8.84"),
    "lsun-cat256-ct": ("20.7", "11.7"), "lsun-cat256-pd": ("29.6", "15.5"),
}
# fmt: on


@pytest.mark.parametrize("name", FIDS)
def test_published_fids_stand_in_the_file_and_in_the_docs(name):
    comment = (PRESETS / f"{name}.yaml").read_text().split("extends:")[0]
    for value in FIDS[name]:
        assert f" {value} " in comment
        assert value in rows_of_the_docs()[name][8]
