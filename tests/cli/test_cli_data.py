"""`cmray data`: prepare, look, verify."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from cli_run import good, here
from own_names import own
from PIL import Image


def test_prepare_and_info_round_trip(tmp_path):
    folder = tmp_path / "digits"
    ran = good(here("data", "prepare", "digits", "--out", folder, "--shards", 3))
    assert "1,797 images of 1x8x8 in 3 shards" in ran.out
    assert f"next: cmray data info {folder}" in ran.out.replace("\n", "")
    picture = tmp_path / "digits.png"
    ran = good(here("data", "info", folder, "--verify", "--picture", picture))
    for shown in ("1,797", "1, 8, 8", "all hashes verified", "10: 0, 1, 2"):
        assert shown in ran.out
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert min(pixels.shape) > 100
    assert pixels.std() > 30, "the picture is blank"
    told = good(here("data", "info", folder, "--json")).json
    assert told == json.loads((folder / "manifest.json").read_text())
    assert len(told["shards"]) == 3


def test_prepare_tells_machines_the_manifest(tmp_path):
    told = good(here("data", "prepare", "digits", "--out", tmp_path / "d", "--json")).json
    assert told["count"] == 1797
    assert sum(s["rows"] for s in told["shards"]) == 1797


def test_one_flipped_byte_is_found(tmp_path):
    folder = tmp_path / "digits"
    good(here("data", "prepare", "digits", "--out", folder, "--shards", 4))
    shard = sorted(folder.glob("*.parquet"))[2]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    good(here("data", "info", folder))  # sizes alone do not tell
    ran = here("data", "info", folder, "--verify")
    assert ran.code == 2
    assert shard.name in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def idx(values):
    header = (0x0800 + values.ndim).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in values.shape)
    return header + values.tobytes()


def test_prepare_reads_a_source(tmp_path):
    source = tmp_path / "downloads"
    source.mkdir()
    (source / "t10k-images-idx3-ubyte").write_bytes(idx(np.arange(3 * 784, dtype=np.uint8).reshape(3, 28, 28)))
    (source / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array([7, 0, 2], np.uint8)))
    told = good(
        here("data", "prepare", "mnist", "--source", source, "--split", "test", "--out", tmp_path / "m",
             "--shards", 2, "--json")
    ).json  # fmt: skip
    assert (told["name"], told["split"], told["count"], told["shape"]) == ("mnist", "test", 3, [1, 28, 28])
    assert "7, 8, 9" in good(here("data", "info", tmp_path / "m", "--verify")).out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("digits", "--source", "."), "--source is given, but digits comes with cmray"),
        (("digits", "--split", "train"), "--split is given, but digits comes with cmray"),
        (("parquet",), "cmray data prepare parquet --source PATH --out DIR"),
        (("folder", "--source", ".", "--crop", "center"), "crop center needs size"),
        (("folder", "--source", ".", "--crop", "round"), "--crop round: Input should be 'none', 'center', 'adm'"),
        (("digits", "--channels", "2"), "--channels 2: Input should be"),
        (("digits", "--shards", "1798"), "--shards is 1798; digits has 1797 images, so 1 to 1797 work"),
        (("mnist", "--source", ".", "--split", "dev"), "--split dev: Input should be 'train' or 'test'"),
        (("mnist", "--source", "nowhere"), "source nowhere does not exist"),
        (("parquet", "--source", "."), "holds no Parquet files"),
        (("cifar",), "unknown dataset 'cifar'"),
    ],
)
def test_a_wrong_source_is_one_line_and_writes_nothing(tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    ran = here("data", "prepare", *words, "--out", "out")
    assert ran.code == 2
    assert says in " ".join(ran.err.split())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_photos_becomes_squares_and_bad_files_are_listed(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.jpg")
    (tmp_path / "photos" / "dog" / "2.jpg").write_bytes(b"no picture")
    command = ["data", "prepare", "folder", "--source", tmp_path / "photos", "--crop", "center", "--size", 16]
    ran = here(*command, "--out", tmp_path / "out")
    assert ran.code == 2
    assert "dog/2.jpg: " in ran.err
    assert "--max-bad N skips up to N" in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    ran = good(here(*command, "--out", tmp_path / "out", "--max-bad", 1))
    assert "7 images of 3x16x16" in ran.out
    assert "1 images could not be used and were left out" in ran.out
    shown = good(here("data", "info", tmp_path / "out")).out
    for words in ("7, 1 left out", "2: cat, dog", "center, transparency on white", "by channel"):
        assert words in shown


def test_names_of_any_characters_do_not_break_the_table(tmp_path):
    photos = tmp_path / "pho\ntos\x1b[2J"
    for name in ("c\x1b[31mat", "d\nog"):
        (photos / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(photos / name / "1.png")
    good(here("data", "prepare", "folder", "--source", photos, "--out", tmp_path / "out"))
    shown = good(here("data", "info", tmp_path / "out", "--picture", tmp_path / "grid.png")).out
    assert "c?[31mat, d?og" in shown
    assert "pho?tos?[2J (all)" in shown
    assert "\x1b[31m" not in shown
    assert "\x1b[2J" not in shown


def test_a_picture_in_a_folder_that_is_not_there_is_refused(tmp_path):
    good(here("data", "prepare", "digits", "--out", tmp_path / "digits"))
    ran = here("data", "info", tmp_path / "digits", "--picture", tmp_path / "nodir" / "x.png")
    assert ran.code == 2
    assert f"--picture {tmp_path}/nodir/x.png: folder {tmp_path}/nodir does not exist" in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert not (tmp_path / "nodir").exists()


def test_the_help_names_every_dataset_there_is():
    from cmray.cli.data import NAMES
    from cmray.datasets import datasets

    assert sorted(NAMES.split(", ")) == own(datasets)


PLUGIN = """
from pydantic import Field, model_validator
from cmray.datasets.base import datasets
from cmray.datasets.digits import Digits

@datasets.register("some-digits")
class SomeDigits(Digits):
    low: int = Field(0, ge=0)
    high: int = 9

    @model_validator(mode="after")
    def _order(self):
        if self.low > self.high:
            raise ValueError(f"low {self.low} exceeds high {self.high}")
        return self
"""


def test_what_is_wrong_with_a_field_of_a_dataset_is_one_line(tmp_path):
    """In a process of its own: a plug-in stays in the process that has imported it."""
    (tmp_path / "some_digits.py").write_text(PLUGIN)
    code = (
        "import contextlib, io, json, sys\n"
        "from cmray.cli import console\n"
        "from cmray.cli.main import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    try: main(['data', 'prepare', *words, '--out', 'out'])\n"
        "    except SystemExit as end: print(end.code, flush=True)\n"
    )
    cases = {
        "--set low=5 --set high=2": "low 5 exceeds high 2",
        "--set low=x": "--set low=x: Input should be a valid integer",
        "--set low=-1": "--set low=-1: Input should be greater than or equal to 0",
        "--set lo=1": "--set lo: some-digits has no field 'lo'; did you mean 'low'?",
        "--set name=digits": "--set name: some-digits has no field 'name'",
        "--source x": "--source is given, but some-digits comes with some_digits.py and takes no source",
        "--source x --set source=y": "--source is given, but some-digits",
    }
    words = [["some-digits", *case.split()] for case in cases]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(words)],
        cwd=tmp_path,
        env={**os.environ, "CMRAY_PLUGINS": "some_digits.py", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["2"] * len(cases)
    for line, complaint in zip(done.stderr.strip().splitlines(), cases.values(), strict=True):
        assert line.startswith(f"error: {complaint}"), line
    assert not (tmp_path / "out").exists()
