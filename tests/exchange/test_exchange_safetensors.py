"""Our own folders: everything comes back, and the card says what was measured and how."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import yaml
from cli_run import good, here
from exchange_files import ADM, SONG, equal_bits, made, weights_of

from cmray.config.checkpoint_facts import read_checkpoint_facts
from cmray.core.errors import CheckpointError
from cmray.exchange import MismatchError, sources
from cmray.tracking.records import Evaluation, Provenance

NETS = {
    "mlp": {"name": "mlp", "width": 16, "depth": 1},
    "unet": {"name": "unet", "channels": 8},
    "adm": ADM,
    "ncsnpp": {"name": "ncsnpp", **SONG},
}


@pytest.mark.parametrize("classes", [0, 10])
@pytest.mark.parametrize("name", NETS)
def test_a_round_trip_changes_no_bit(tmp_path, name, classes):
    first = made(tmp_path, NETS[name], (1, 8, 8), classes, sigma_max=40.0)
    good(here("export", first, "--format", "safetensors", "--out", tmp_path / "out", "--licence", "mit"))
    good(here("import", "safetensors", tmp_path / "out", "--out", tmp_path / "back"))
    equal_bits(weights_of(tmp_path / "back"), weights_of(first))
    before, after = read_checkpoint_facts(first), read_checkpoint_facts(tmp_path / "back")
    assert (after.shape, after.num_classes) == (before.shape, before.num_classes)
    assert (after.run.net, after.run.noise, after.run.objective) == (
        before.run.net,
        before.run.noise,
        before.run.objective,
    )
    assert after.origin is not None
    assert after.origin.licence == "mit"


def measured(folder: Path, sha256: str, value: float = 3.25) -> None:
    """A record of one number, as `cmray evaluate` leaves it."""
    provenance = Provenance(
        metric="fd/digits", extractor="digits", extractor_sha256="a" * 64, reference_sha256="b" * 64, dataset="digits",
        split="all", reference_n=1797, n=2048, seed_first=0, seed_block=64, sampler="multistep", nfe=2,
        times=[80.0, 0.8], weights="ema 0.99", weights_sha256=sha256, searched=True,
    )  # fmt: skip
    record = Evaluation(
        key="k", value=value, provenance=provenance, seconds=1.0, time=time.time(), low=3.0, high=3.5
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{value}.json").write_text(record.model_dump_json())


def test_the_card_tells_data_objective_numbers_and_licence(tmp_path):
    trial = tmp_path / "study" / "ct-0123456789"
    checkpoint = made(trial, NETS["mlp"], (1, 8, 8))
    (trial / "config.yaml").write_text("seed: 0\n")
    sha256 = read_checkpoint_facts(checkpoint).weights_sha256
    measured(trial / "evaluations", sha256)
    measured(trial / "evaluations", "c" * 64, 99.5)  # of other weights
    (trial / "evaluations" / "damaged.json").write_text("{")
    good(here("export", checkpoint, "--format", "safetensors", "--out", tmp_path / "out", "--licence", "apache-2.0"))
    text = (tmp_path / "out" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    fields = yaml.safe_load(front)
    assert fields["license"] == "apache-2.0"
    assert fields["cmray_objective"]["name"] == "ct"
    assert "# study/ct-0123456789" in body
    row = next(line for line in body.splitlines() if line.startswith("| fd/digits"))
    for part in ("3.25", "3 to 3.5", "2 (multistep)", "80, 0.8 (searched)", "2,048", "digits/all bbbbbbbb", "aaaaaaaa"):
        assert part in row
    assert "99.5" not in body
    assert "`digits`" in body
    assert sha256 in body
    assert "4 steps of 8, 32 images seen" in body
    assert "only in Inception's features" in body


def test_without_a_licence_the_card_says_so(tmp_path):
    ran = good(
        here("export", made(tmp_path, NETS["mlp"], (1, 8, 8)), "--format", "safetensors", "--out", tmp_path / "o")
    )
    assert "no licence was given" in ran.out
    text = (tmp_path / "o" / "README.md").read_text()
    assert "license:" not in text
    assert "No licence was given." in text
    assert "Nothing was measured" in text


def test_where_weights_really_come_from_survives_a_detour(tmp_path):
    checkpoint = made(tmp_path, NETS["mlp"], (1, 8, 8))
    meta = json.loads((checkpoint / "meta.json").read_text())
    meta["origin"] = {"format": "edm", "file": "far.pkl", "sha256": "d" * 64, "licence": "cc-by-nc-sa-4.0", "note": "n"}
    (checkpoint / "meta.json").write_text(json.dumps(meta))
    good(here("export", checkpoint, "--format", "safetensors", "--out", tmp_path / "out"))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "license: cc-by-nc-sa-4.0" in text
    assert "far.pkl (edm), SHA-256 dddd" in text
    assert "cmray did not train it" in text
    told = good(here("import", "safetensors", tmp_path / "out", "--out", tmp_path / "back", "--json")).json
    assert told["origin"] == {**meta["origin"], "data_known": True}


def test_damaged_folders_are_refused_in_one_line(tmp_path):
    good(here("export", made(tmp_path, NETS["mlp"], (1, 8, 8)), "--format", "safetensors", "--out", tmp_path / "out"))
    source = sources.get("safetensors")

    def copy(name: str) -> Path:
        return Path(shutil.copytree(tmp_path / "out", tmp_path / name))

    other = copy("other")
    told = json.loads((other / "config.json").read_text())
    told["run"]["net"]["width"] = 24
    (other / "config.json").write_text(json.dumps(told))
    with pytest.raises(MismatchError, match="of another shape"):
        source().read(other)
    for content, message in (("[1]", "holds a list"), ("{}", "is not what cmray exports"), ("x", "is not JSON")):
        (other / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            source().read(other)
    cut = copy("cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        source().read(cut)
    with pytest.raises(CheckpointError, match="makes such a folder"):
        source().read(tmp_path)
    with pytest.raises(CheckpointError, match="leave --net and --image-size out"):
        source(image_size=8).read(tmp_path / "out")
