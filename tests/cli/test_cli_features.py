"""`cmray features train`: from a name or a folder to a file that measures."""

import json
import time

import numpy as np
import pytest
import torch
from cli_run import good, here
from own_names import own
from PIL import Image

from cmray.metrics.extractors import extractors


def test_digits_are_learned_in_less_than_a_minute(tmp_path):
    out = tmp_path / "digits.safetensors"
    began = time.process_time()
    ran = good(here("features", "train", "digits", "--out", out, "--epochs", 8, "--json", "--storage", tmp_path / "s"))
    assert time.process_time() - began < 60
    told = ran.json
    assert told["accuracy"] >= 0.95
    assert told["accuracy"] == told["n_correct"] / told["n_test"]
    assert told["dataset"]["name"] == "digits"
    assert told["dataset"]["shape"] == [1, 8, 8]
    assert len(told["dataset"]["digest"]) == 64
    assert told["versions"]["torch"] == torch.__version__.split("+")[0]
    assert (told["epochs"], told["seed"]) == (8, 0)
    assert list(tmp_path.iterdir()) == [out], "nothing else is written"
    extractor = extractors.parse({"name": "trained", "path": str(out)}).build(torch.device("cpu"))
    assert extractor.sha256 == told["sha256"]


def test_a_prepared_folder_and_its_next_command(tmp_path):
    rng = np.random.default_rng(0)
    for name, colour in (("red", 0), ("blue", 2)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(30):
            pixels = rng.integers(0, 80, (12, 12, 3), dtype=np.uint8)
            pixels[..., colour] += 120
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    data, out = tmp_path / "data", tmp_path / "photos.safetensors"
    good(here("data", "prepare", "folder", "--source", tmp_path / "photos", "--out", data))
    ran = good(here("features", "train", data, "--out", out, "--epochs", 12))
    assert "12 of 12 held-out images classified right (100.0%)" in ran.out
    assert f"next: cmray evaluate RUN --metric '{{name: fd/trained, extractor: {{path: {out}}}}}'" in ran.out
    extractor = extractors.parse({"name": "trained", "path": str(out)}).build(torch.device("cpu"))
    assert extractor.record["dataset"]["digest"] == json.loads((data / "manifest.json").read_text())["digest"]
    assert extractor.record["dataset"]["classes"] == ["blue", "red"]
    good(here("features", "train", data, "--out", out, "--epochs", 1))  # its own file may be replaced


def test_what_cannot_be_is_one_line_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "flat").mkdir()
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "flat" / f"{i}.png")
    good(here("data", "prepare", "folder", "--source", "flat", "--out", "unlabelled"))
    (tmp_path / "thesis.txt").write_text("years of work")
    before = sorted(p.name for p in tmp_path.iterdir())
    for words, says in [
        (("unlabelled", "--out", "f"), "unlabelled has no labels; features are trained on labelled images"),
        (("cifar10", "--out", "f"), "cifar10 does not come with cmray"),
        (("nowhere", "--out", "f"), "nowhere"),
        (("digits", "--out", "no/such/f"), "--out no/such/f: name a file in a folder that exists"),
        (("digits", "--out", "flat"), "--out flat: name a file in a folder that exists"),
        (
            ("digits", "--out", "thesis.txt"),
            "--out thesis.txt exists and would be replaced, but ",
        ),
        (("digits", "--out", "f", "--epochs", "0"), "--epochs"),
        (("digits",), "Missing option '--out'"),
    ]:
        ran = here("features", "train", *words)
        assert ran.code == 2, ran.out + ran.err
        assert says in " ".join(ran.err.split())
        assert len(ran.err.strip().splitlines()) == 1
        assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("command", ["features train"])
def test_help_has_an_example_and_the_group_names_the_extractors(command):
    text = " ".join(good(here(*command.split(), "--help")).out.split())
    assert f"Example: cmray {command} digits --out" in text
    assert "--json" in text
    group = here("features")
    text = " ".join((group.out + group.err).split())
    for name in own(extractors):
        assert name in text
