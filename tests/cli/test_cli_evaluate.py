"""`cmray evaluate`: several measures, other references, images that are there already."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_run import good, here
from PIL import Image


@pytest.fixture
def copied(models, tmp_path) -> Path:
    """A storage folder of its own, for what leaves records."""
    return Path(shutil.copytree(models.storage, tmp_path / "storage"))


@pytest.fixture(scope="module")
def samples(models, tmp_path_factory) -> Path:
    """A folder with x.npz and files/, 300 samples each, and published statistics of them."""
    folder = tmp_path_factory.mktemp("samples")
    for out in ("x.npz", "files"):
        good(here("sample", models.student, "--storage", models.storage, "--out", folder / out, "--num", 300))
    features = np.random.default_rng(0).normal(size=(500, 64))
    np.savez(folder / "fid.npz", mu=features.mean(0), sigma=np.cov(features.T))
    (folder / "empty").mkdir()
    (folder / "mixed").mkdir()
    for i, size in enumerate((8, 9)):
        Image.fromarray(np.full((size, size), 100 + i, np.uint8)).save(folder / "mixed" / f"{i}.png")
    return folder


def test_several_metrics_however_they_are_asked_for(models, copied):
    arguments = ("evaluate", models.student, "--storage", copied, "--num-samples", 512, "--nfe", "1,2")
    names = ["fd/digits", "recall/digits", "is/digits"]
    told = good(here(*arguments, "--metric", ",".join(names), "--json")).json
    assert [(t["nfe"], t["metric"]) for t in told] == [(n, m) for n in (1, 2) for m in names]
    assert all(t["low"] <= t["value"] <= t["high"] for t in told)
    records = {p: p.stat().st_mtime_ns for p in (copied / models.student / "evaluations").glob("*.json")}
    assert len(records) == 6
    again = good(here(*arguments, *(w for name in names for w in ("--metric", name)), "--json")).json
    assert again == told
    assert {p: p.stat().st_mtime_ns for p in records} == records, "measured again"
    shown = good(here(*arguments, "--metric", ",".join(names))).out
    fd = told[0]
    assert f"{fd['value']:.3f} [{fd['low']:.3f}, {fd['high']:.3f}]" in shown
    assert "n = 512 is below 10,000" in shown
    assert "higher is better" in shown


def test_blocks_of_seeds_and_other_weights(models, copied):
    arguments = ("evaluate", models.student, "--storage", copied, "--num-samples", 64, "--nfe", "1", "--json")
    (told,) = good(here(*arguments, "--seed-blocks", 3)).json
    values = [b["value"] for b in told["blocks"]]
    assert told["value"] == pytest.approx(sum(values) / 3)
    assert told["best"] == min(values)
    assert told["spread"] == pytest.approx(np.std(values, ddof=1))
    shown = good(here(*arguments[:-1], "--seed-blocks", 3)).out
    assert "3 blocks of 64" in shown
    (student,) = good(here(*arguments, "--weights", "student")).json
    assert (student["weights"], student["seed_blocks"]) == ("student", 1)
    assert student["value"] not in values


def test_images_are_measured_the_same_as_files_and_as_an_archive(models, copied, samples):
    told = {}
    for name in ("x.npz", "files"):
        arguments = ("evaluate", "--images", samples / name, "--reference-data", "digits", "--storage", copied)
        told[name] = good(here(*arguments, "--metric", "fd/digits,coverage/digits", "--json")).json
    for one, other in zip(told["x.npz"], told["files"], strict=True):
        assert (one["value"], one["low"], one["n"]) == (other["value"], other["low"], 300)
    assert told["files"][0]["weights"] == "images files"
    shown = good(here("evaluate", "--images", samples / "x.npz", "--metric", "is/digits", "--storage", copied)).out
    assert "images x" in shown


def test_fewer_images_than_there_are_are_drawn_and_said(copied, samples):
    arguments = ("evaluate", "--images", samples / "files", "--metric", "is/digits", "--storage", copied)
    (some,) = good(here(*arguments, "--num-samples", 200, "--json")).json
    (whole,) = good(here(*arguments, "--json")).json
    assert (some["n"], some["weights"]) == (200, "images files, drawn of 300 with seed 0")
    assert (whole["n"], whole["weights"]) == (300, "images files")
    assert some["weights_sha256"] != whole["weights_sha256"]
    assert "n = 200, images files, drawn of 300 with seed 0." in good(here(*arguments, "--num-samples", 200)).out


def test_published_statistics_and_other_data_as_reference(models, copied, samples):
    arguments = ("evaluate", models.student, "--storage", copied, "--num-samples", 64, "--nfe", "1", "--json")
    values = []
    for more in ([], ["--reference", samples / "fid.npz"], ["--reference-data", samples / "files"]):
        (told,) = good(here(*arguments, *more)).json
        values.append(told["value"])
    assert len(set(values)) == 3
    assert told["dataset"] == "files"
    assert len(list((copied / models.student / "evaluations").glob("*.json"))) == 3
    published = next(
        p for f in (copied / models.student / "evaluations").glob("*.json")
        if (p := json.loads(f.read_text())["provenance"])["split"] == "published"
    )  # fmt: skip
    assert (published["dataset"], published["reference_n"]) == ("fid.npz", None)


BAD = {
    "nothing": ([], ["RUN", "--images"]),
    "both": (["RUN", "--images", "SAMPLES/x.npz"], ["RUN", "not both"]),
    "nowhere": (["--images", "SAMPLES/nothing"], ["--images", "nothing does not exist"]),
    "empty": (["--images", "SAMPLES/empty"], ["--images", "empty holds no images"]),
    "mixed sizes": (["--images", "SAMPLES/mixed", "--reference-data", "digits"], ["1.png", "9x9", "8x8"]),
    "no reference": (["--images", "SAMPLES/x.npz"], ["fd/digits", "--reference-data"]),
    "two references": (
        ["RUN", "--reference-data", "digits", "--reference", "SAMPLES/fid.npz"],
        ["--reference-data digits", "leave one"],
    ),
    "a model's option": (["--images", "SAMPLES/x.npz", "--nfe", "2"], ["--nfe", "--images"]),
    "more than there are": (["--images", "SAMPLES/x.npz", "--num-samples", "301"], ["--num-samples is 301", "300"]),
    "no statistics": (["RUN", "--reference", "SAMPLES/x.npz"], ["--reference", "x.npz holds arr_0", "mu"]),
    "features of statistics": (
        ["RUN", "--metric", "recall/digits", "--reference", "SAMPLES/fid.npz"],
        ["recall/digits", "features", "fid.npz"],
    ),
    "subset": (["RUN", "--metric", "kid/digits", "--num-samples", "64"], ["kid/digits", "subset_size is 1,000", "64"]),
    "option": (
        ["RUN", "--metric", "{name: kid/digits, subset_sise: 9}"],
        ["subset_sise", "did you mean 'subset_size'"],
    ),
    "measure": (["RUN", "--metric", "kit/digits"], ["kit/digits", "did you mean 'kid/digits'"]),
    "weights": (["RUN", "--weights", "ema 7"], ["no weights 'ema 7'", "ema 0.9"]),
}


@pytest.mark.parametrize(("arguments", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(models, copied, samples, arguments, words):
    given = [a.replace("SAMPLES", str(samples)).replace("RUN", models.student) for a in arguments]
    ran = here("evaluate", *given, "--storage", copied)
    assert ran.code == 2, ran.out
    line = ran.err.strip().splitlines()[-1]
    assert len([x for x in ran.err.strip().splitlines() if "error" in x]) == 1
    for word in words:
        assert word in line
    assert not list((copied / models.student).glob("evaluations/*"))
