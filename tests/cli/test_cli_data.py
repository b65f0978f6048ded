"""`cmray data`: prepare, look, verify."""

import json

import numpy as np
from cli_run import good, here
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
    good(here("data", "prepare", "digits", "--out", folder))
    shard = sorted(folder.glob("*.parquet"))[2]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    good(here("data", "info", folder))  # sizes alone do not tell
    ran = here("data", "info", folder, "--verify")
    assert ran.code == 2
    assert shard.name in ran.err
    assert len(ran.err.strip().splitlines()) == 1
