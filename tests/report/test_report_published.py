"""Published numbers: what the package carries is what was transcribed, and nothing in it is impossible."""

import csv
import tomllib
from pathlib import Path

import pytest

from cmray.config.load import load_raw
from cmray.core.errors import CmrayError
from cmray.report.published import FOLDER, published, published_datasets, published_hyperparameters

REPO = Path(__file__).resolve().parents[2]
TRANSCRIBED = REPO.parent / "shared" / "published"
NAMES = {
    "CIFAR-10": "cifar10",
    "ImageNet 64x64": "imagenet64",
    "LSUN Bedroom 256x256": "lsun-bedroom256",
    "LSUN Cat 256x256": "lsun-cat256",
}


def test_the_datasets_of_the_paper_are_there():
    assert published_datasets() == sorted(NAMES.values())


@pytest.mark.parametrize("dataset", sorted(NAMES.values()))
def test_rows_are_possible_and_say_where_they_come_from(dataset):
    frame = published(dataset)
    assert list(frame.columns[:7]) == ["method", "nfe", "fid", "precision", "recall", "source", "note"]
    assert (frame.fid > 0).all()
    assert (frame.nfe >= 1).all()
    for share in (frame.precision.dropna(), frame.recall.dropna()):
        assert share.between(0, 1).all()
    assert (frame.inception_score.dropna() >= 1).all()
    for name in ("method", "source", "group", "reference"):
        assert frame[name].str.strip().ne("").all(), name
    assert frame.notna().loc[:, ["note"]].all().all()
    assert not frame.duplicated(["method", "nfe", "source", "group", "fid"]).any()


@pytest.mark.parametrize(
    ("dataset", "method", "nfe", "fid"),
    [
        ("cifar10", "CD", 1, 3.55),
        ("cifar10", "CD", 2, 2.93),
        ("cifar10", "CT", 1, 8.70),
        ("cifar10", "PD", 2, 5.58),
        ("cifar10", "EDM", 36, 2.04),
        ("imagenet64", "CD", 1, 6.20),
        ("imagenet64", "CT", 2, 11.1),
        ("lsun-bedroom256", "PD", 1, 16.92),
        ("lsun-cat256", "CD", 2, 8.84),
        ("cifar10", "iCT-deep", 2, 2.24),
    ],
)
def test_numbers_that_everybody_cites(dataset, method, nfe, fid):
    frame = published(dataset)
    assert frame[(frame.method == method) & (frame.nfe == nfe)].fid.tolist() == [fid]


def test_two_steps_are_better_than_one_wherever_one_method_has_both():
    assert len(published_datasets()) >= 4
    for dataset in published_datasets():
        frame = published(dataset)
        by = frame.pivot_table(index=["method", "group"], columns="nfe", values="fid")
        both = by[[1, 2]].dropna()
        assert len(both) >= 3
        assert (both[2] < both[1]).all()


def test_every_transcribed_number_is_carried():
    if not TRANSCRIBED.is_dir():
        pytest.skip(f"the transcribed tables are not at {TRANSCRIBED}")
    frames = {name: published(name) for name in published_datasets()}
    wanted: dict[str, list[tuple[str, int, float]]] = {name: [] for name in frames}
    for row in csv.DictReader((TRANSCRIBED / "table1_cifar10.csv").open()):
        wanted["cifar10"].append((row["method"], int(row["nfe"]), float(row["fid"])))
    for row in csv.DictReader((TRANSCRIBED / "table2_imagenet64_lsun256.csv").open()):
        wanted[NAMES[row["dataset"]]].append((row["method"], int(row["nfe"]), float(row["fid"])))
        own = frames[NAMES[row["dataset"]]]
        (found,) = own[(own.method == row["method"]) & (own.nfe == int(row["nfe"]))].itertuples()
        shares = [str(share) for share in (found.precision, found.recall)]
        assert shares == [str(float(row[name] or "nan")) for name in ("precision", "recall")]
    for row in csv.DictReader((TRANSCRIBED / "later_methods.csv").open()):
        for nfe in (1, 2):
            if row[f"nfe{nfe}_fid"]:
                wanted[NAMES[row["dataset"]]].append((row["method"], nfe, float(row[f"nfe{nfe}_fid"])))
    for name, frame in frames.items():
        assert list(zip(frame.method, frame.nfe, frame.fid, strict=True)) == wanted[name]
    assert (FOLDER / "table3.csv").read_text() == (TRANSCRIBED / "table3_hyperparameters.csv").read_text()


def test_an_unknown_dataset_names_the_nearest():
    with pytest.raises(CmrayError, match=r"no published numbers for 'cifar'; did you mean 'cifar10'.*lsun-cat256"):
        published("cifar")
    with pytest.raises(CmrayError, match="allowed: cifar10"):
        published("table3")


def test_an_installed_package_carries_them():
    data = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["cmray"]
    assert f"{FOLDER.relative_to(REPO / 'cmray').as_posix()}/*" in data
    assert (REPO / "analysis" / "published").resolve() == FOLDER


@pytest.mark.parametrize("method", ["cd", "ct"])
@pytest.mark.parametrize("dataset", ["cifar10", "imagenet64", "lsun-bedroom256", "lsun-cat256"])
def test_presets_are_as_table_3_says(dataset, method):
    run = "lsun256" if dataset.startswith("lsun") else dataset
    said = published_hyperparameters()[f"{run}_{method}"]
    preset = load_raw(REPO / "experiments" / "presets" / f"{dataset}-{method}.yaml").values
    train, objective = preset["train"], preset["objective"]
    assert train["steps"] == int(said["training_iterations"].replace("k", "000"))
    assert train["batch_size"] == int(said["batch_size"])
    assert float(train["optimizer"]["lr"]) == float(said["learning_rate"])
    assert round(train["ema"][0], 6) == float(said["ema_decay_rate"])
    assert preset["resources"]["workers"] == int(said["gpus"])
    if method == "cd":
        assert objective["mu"] == float(said["mu"])
    else:
        assert objective["mu"]["mu0"] == float(said["mu0"])
        assert (objective["num_sigmas"]["s0"], objective["num_sigmas"]["s1"]) == (int(said["s0"]), int(said["s1"]))
