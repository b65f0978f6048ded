"""`cmray edit` on real models: the quickstart's kind on digits, and a small one of colours with classes."""

from __future__ import annotations

import itertools
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from cli_run import good, here, snapshot
from own_names import own
from PIL import Image
from shell_words import check
from small_run import checkpoint, digits, go, small

from cmray.cli.edit import TASKS
from cmray.datasets import ImageDataset
from cmray.editing import editing_tasks

LUMA = np.array([0.299, 0.587, 0.114])
SIDE = 16


@pytest.fixture(scope="module")
def gray(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gray")
    go(small(), folder, data=digits())
    return checkpoint(folder)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    go(small({"objective": {"name": "edm"}}), folder, data=digits())
    return checkpoint(folder)


@pytest.fixture(scope="module")
def rgb(tmp_path_factory) -> Path:
    """A model of coloured squares, 3x16x16, of two classes."""
    rng = np.random.default_rng(0)
    images = np.repeat(rng.integers(0, 256, (64, 3, 1, 1), dtype=np.uint8), SIDE, 2).repeat(SIDE, 3)
    folder = tmp_path_factory.mktemp("rgb")
    data = ImageDataset("squares", "train", "made", images, np.arange(64) % 2, ("a", "b"))
    go(small({"net.class_conditional": True}), folder, data=data)
    return checkpoint(folder)


def photo(path: Path, *size: int, mode: str = "RGB", seed: int = 0) -> Path:
    """Noise of (height, width), smooth enough to look at."""
    small_one = np.random.default_rng(seed).integers(0, 256, (4, 4, 4), dtype=np.uint8)
    image = Image.fromarray(small_one, "RGBA").resize(size[::-1], Image.Resampling.BILINEAR)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    image.save(path)
    return path


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(np.float64)


def facts(out: Path) -> list[dict]:
    return json.loads((out / "edit.json").read_text())["results"]


def test_the_names_in_the_help_are_those_registered():
    assert list(TASKS) == own(editing_tasks)


def test_inpainting_keeps_the_rest_of_every_file_to_the_bit(tmp_path, gray):
    out = tmp_path / "out"
    ran = good(here("edit", "inpaint", gray, "--input", "digits", "--take", 2, "--box", "2,2,4,4", "--out", out))
    assert "the known part is kept to the bit" in ran.out
    assert "PSNR to the input" in ran.out
    found = facts(out)
    assert [f["seed"] for f in found] == [0, 1, 2] * 2
    hole = np.zeros((8, 8), bool)
    hole[2:6, 2:6] = True
    for fact in found:
        given = pixels(out / f"{fact['file'].rpartition('-seed')[0]}-given.png")
        result = pixels(out / fact["file"])
        assert (result[~hole] == given[~hole]).all()
        assert (given[hole] == 128).all()
        assert fact["known_error"] == fact["known_error_8_bit"] == 0
        assert fact["nfe"] == 40
    assert Image.open(out / "overview.png").size[0] > 5 * 100
    assert "next: cmray edit inpaint" in ran.out
    assert "--box 2,2,4,4 --seed 3 --num 3" in ran.out


def test_a_result_depends_on_its_image_and_seed_only(tmp_path, gray):
    many, one = tmp_path / "many", tmp_path / "one"
    good(here("edit", "superres", gray, "--input", "digits", "--take", 5, "--factor", 2, "--out", many))
    source = tmp_path / "in.png"
    import torch

    from cmray.engine.edit_inputs import Rule, read_pictures

    torch.set_num_threads(1)
    last = read_pictures(["digits"], Rule((1, 8, 8)), 5, tmp_path, "--input")[-1]
    Image.fromarray(last.pixels[0]).save(source)
    options = ("--factor", 2, "--seed", 2, "--num", 1)
    good(here("edit", "superres", gray, "--input", source, *options, "--out", one))
    (a,) = [f["file"] for f in facts(one)]
    b = facts(many)[-1]["file"]
    assert (one / a).read_bytes() == (many / b).read_bytes()


def test_colours_are_made_and_the_luma_kept(tmp_path, rgb):
    out, file = tmp_path / "out", photo(tmp_path / "a.png", 40, 30)
    ran = good(here("edit", "colorize", rgb, "--input", file, "--class", 1, "--num", 2, "--out", out))
    assert "inputs of 40x30 were resized to 16x16" in ran.out
    given = pixels(out / "000-a-given.png")
    assert np.ptp(given, axis=2).max() == 0  # shown gray
    for fact in facts(out):
        result = pixels(out / fact["file"])
        assert np.abs(result @ LUMA - given[:, :, 0]).max() <= 1.01  # half a level for either picture
        assert np.ptp(result, axis=2).max() > 5
        assert fact["known_error"] < 1e-5
        assert fact["known_error_8_bit"] < 0.01
        assert fact["psnr_db"] is not None
    gray_file = photo(tmp_path / "g.png", SIDE, SIDE, mode="L")
    told = good(here("edit", "colorize", rgb, "--input", gray_file, "--json", "--out", tmp_path / "c.png")).json
    assert {r["psnr_db"] for r in told["results"]} == {None}  # nobody knows the truth
    assert (tmp_path / "c.png").is_file()


def test_a_small_image_is_enlarged_and_its_pixels_are_the_means(tmp_path, rgb):
    out, file = tmp_path / "out", photo(tmp_path / "a.png", SIDE // 4, SIDE // 4)
    good(here("edit", "superres", rgb, "--input", file, "--num", 1, "--out", out))
    (fact,) = facts(out)
    result = pixels(out / fact["file"])
    means = result.reshape(4, 4, 4, 4, 3).mean((1, 3))
    assert result.shape == (SIDE, SIDE, 3)
    assert np.abs(means - pixels(file)).max() <= 0.5
    assert fact["psnr_db"] is None
    assert fact["known_error"] < 1e-5


def test_a_mask_of_the_image_s_own_size_is_cropped_with_it(tmp_path, rgb):
    file, out = photo(tmp_path / "wide.png", 32, 64), tmp_path / "out"
    mask = np.zeros((32, 64), np.uint8)
    mask[:16, :32] = 255  # the upper half of what the central square has left of the middle
    Image.fromarray(mask).save(tmp_path / "mask.png")
    given = ("--input", file, "--mask", tmp_path / "mask.png")
    good(here("edit", "inpaint", rgb, *given, "--num", 1, "--out", out))
    shown = pixels(out / "000-wide-given.png")
    hole = np.zeros((SIDE, SIDE), bool)
    hole[:8, :8] = True
    assert ((shown == 128).all(2) == hole).all()
    good(here("edit", "stroke", rgb, *given, "--level", 2, "--num", 1, "--out", tmp_path / "stroke"))
    (fact,) = facts(tmp_path / "stroke")
    painting, result = pixels(tmp_path / "stroke" / "000-wide-given.png"), pixels(tmp_path / "stroke" / fact["file"])
    assert (painting[~hole] == result[~hole]).all()
    assert (painting[hole] != result[hole]).any()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16", "CMYK"])
def test_pictures_of_every_kind_can_be_painted_over(tmp_path, rgb, mode):
    file = photo(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), 20, 31, mode=mode)
    told = good(here("edit", "stroke", rgb, "--input", file, "--num", 1, "--out", tmp_path / "o.png", "--json")).json
    assert told["results"][0]["times"] == pytest.approx([1.0, 2.24 / 5.38])


def test_the_ends_of_an_interpolation_are_the_samples_of_its_seeds(tmp_path, gray):
    out = tmp_path / "out"
    good(here("edit", "interpolate", gray, "--between", "3,8", "--frames", 5, "--out", out))
    good(here("sample", gray, "--seed", 3, "--num", 6, "--out", tmp_path / "samples"))
    samples = tmp_path / "samples"
    assert (pixels(out / "way0-3-8-frame000.png") == pixels(samples / "000003.png")).all()
    assert (pixels(out / "way0-3-8-frame004.png") == pixels(samples / "000008.png")).all()
    assert Image.open(out / "way0.gif").n_frames == 8  # there and back
    good(here("edit", "interpolate", gray, "--between", "3,8", "--out", tmp_path / "way.gif"))
    assert Image.open(tmp_path / "way.gif").format == "GIF"


def test_a_ladder_of_noise_and_an_image_that_is_noisy_already(tmp_path, gray, teacher):
    for model in (gray, teacher):
        out = tmp_path / model.parent.parent.name
        given = ("--input", "digits", "--take", 1, "--level", "0.1,2")
        good(here("edit", "denoise", model, *given, "--out", out))
        assert [f["times"] for f in facts(out)] == [[0.1], [2.0]]
        assert facts(out)[0]["psnr_given_db"] > facts(out)[1]["psnr_given_db"]
    noisy = next((tmp_path / gray.parent.parent.name).glob("*given-2.png"))
    more = ("--level", 2, "--noisy", "--out", tmp_path / "n.png", "--json")
    told = good(here("edit", "denoise", gray, "--input", noisy, *more)).json
    assert told["results"][0]["psnr_db"] is None


def test_a_teacher_edits_with_its_solver(tmp_path, teacher):
    given = ("--input", "digits", "--take", 1, "--word", "I", "--steps", 6, "--num", 1)
    told = good(here("edit", "inpaint", teacher, *given, "--out", tmp_path / "o.png", "--json")).json
    (result,) = told["results"]
    assert result["nfe"] == 11
    assert result["known_error"] == 0


def test_a_folder_of_pictures_by_name(tmp_path, rgb):
    folder = tmp_path / "in"
    (folder / "below").mkdir(parents=True)
    photo(folder / "b.png", SIDE, SIDE)
    photo(folder / "below" / "a.jpg", 20, 20)
    (folder / "notes.txt").write_text("no picture")
    told = good(here("edit", "stroke", rgb, "--input", folder, "--num", 1, "--out", tmp_path / "o.png", "--json")).json
    assert [r["input"] for r in told["results"]] == ["b", "a"]


PICTURE = ("--input", "digits", "--take", 1)
BOX = ("--box", "2,2,4,4")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("inpant", *PICTURE), ["unknown editing task 'inpant'", "did you mean 'inpaint'?"]),
        (("inpaint", *PICTURE), ["inpaint", "takes one of mask, box and word, found none"]),
        (("inpaint", *BOX), ["inpaint needs --input"]),
        (("inpaint", *PICTURE, "--box", "2,2,4"), ["inpaint: box takes 4 numbers, found 3"]),
        (("inpaint", *PICTURE, "--word", "a中"), ["the font has no letter '中'"]),
        (("inpaint", *PICTURE, "--box", "a"), ["--box is 'a'"]),
        (("inpaint", *PICTURE, "--box", "6,6,4,4"), ["does not lie in images of 8 x 8"]),
        (("inpaint", *PICTURE, *BOX, "--factor", 2), ["inpaint has no option factor; it is for superres"]),
        (("inpaint", *PICTURE, *BOX, "--times", "90,1"), ["at most sigma_max 80", "found 90, 1"]),
        (("inpaint", *PICTURE, *BOX, "--times", "1,2"), ["descend"]),
        (("inpaint", *PICTURE, *BOX, "--times", "2,1", "--steps", 2), ["leave one of them out"]),
        (("inpaint", *PICTURE, *BOX, "--class", 1), ["not class-conditional"]),
        (("inpaint", *PICTURE, *BOX, "--crop", "middle"), ["--crop middle", "center, adm"]),
        (("inpaint", "--input", "nowhere.png", *BOX), ["--input: nowhere.png does not exist"]),
        (("inpaint", "--input", "text.png", *BOX), ["text.png", "not a JPEG, PNG"]),
        (("inpaint", "--input", "empty", *BOX), ["empty holds no images"]),
        (("inpaint", "--input", "wide.png", *BOX, "--crop", "none"), ["wide.png is 9x12", "8x8", "--crop none"]),
        (("inpaint", "--input", "wide.png", "--mask", "text.png"), ["--mask: text.png", "not a JPEG, PNG"]),
        (("inpaint", "--input", "wide.png", "--mask", "mask.png"), ["mask.png is 5x7", "8x8", "9x12 like wide"]),
        (("colorize", *PICTURE), ["colorize needs a model of images with 3 channels; this one makes 1x8x8"]),
        (("colorize", *PICTURE, "--mask", "mask.png"), ["colorize has no option mask; it is for inpaint, stroke"]),
        (("superres", *PICTURE, "--factor", 3), ["factor 3 does not divide", "use 2, 4, 8"]),
        (("superres", *PICTURE, "--factor", 17), ["superres: factor", "less than or equal to 16"]),
        (("stroke", *PICTURE, "--level", "1,2"), ["--level gives 2 noise levels"]),
        (("stroke", *PICTURE, "--level", 0), ["stroke: level", "greater than 0"]),
        (("stroke", *PICTURE, "--level", 1, "--times", "2,1"), ["leave one of them out"]),
        (("denoise", *PICTURE, "--level", 81), ["at most sigma_max 80, found 81"]),
        (("denoise", *PICTURE, "--level", 0.001), ["above sigma_min 0.002 and at most sigma_max 80, found 0.001"]),
        (("denoise", *PICTURE, "--level", "0.5,0.50000001"), ["found the same noise level twice: 0.5, 0.5"]),
        (("stroke", *PICTURE, "--level", 0.002), ["above sigma_min 0.002", "found 0.002"]),
        (("stroke", *PICTURE, "--level", 90, "--steps", 3), ["at most sigma_max 80, found 90"]),
        (("interpolate", "--between", 3), ["interpolate: between takes 2 numbers, found 1"]),
        (("interpolate", "--between", "3,4,5"), ["interpolate: between takes 2 numbers, found 3"]),
        (("interpolate", "--level", 0.001), ["above sigma_min 0.002", "found 0.001"]),
        (("interpolate", *PICTURE), ["from one image to another, or from seed to seed; found 1"]),
        (("interpolate", "--frames", 1), ["interpolate: frames", "greater than or equal to 2"]),
        (("interpolate", "--between", "1,-1"), ["seeds are 0 or more"]),
        (("interpolate", "--between", "1,2", "--num", 2), ["one way between two seeds"]),
    ],
)
def test_what_cannot_be_edited(tmp_path, monkeypatch, gray, arguments, words):
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("no picture")
    Path("empty").mkdir()
    photo(Path("wide.png"), 9, 12)
    photo(Path("mask.png"), 5, 7)
    before = snapshot(tmp_path)
    ran = here("edit", arguments[0], gray, *arguments[1:], "--out", "out.png")
    assert ran.code == 2, ran.out + ran.err
    assert ran.out == ""
    line = [line for line in ran.err.strip().splitlines() if line.startswith("error: ")]
    assert len(line) == 1
    assert "Traceback" not in ran.err
    for word in words:
        assert word in line[0]
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("arguments", [("stroke", *PICTURE, "--level", 2), ("interpolate", "--between", "3,8")])
def test_the_next_command_has_the_options_that_were_given(tmp_path, gray, arguments):
    more = ("--weights", "student", "--out", tmp_path / "two words.png")
    ran = good(here("edit", arguments[0], gray, *arguments[1:], *more))
    (line,) = [line for line in ran.out.splitlines() if line.startswith("next: ")]
    words = shlex.split(line.removeprefix("next: "))
    check(words)
    pairs = set(itertools.pairwise(words))
    assert {("--weights", "student"), ("--out", str(tmp_path / "two words-more.png"))} <= pairs
    assert ("--level", "2") in pairs or arguments[0] != "stroke"
    good(here(*words[1:]))
    assert (tmp_path / "two words-more.png").is_file()


@pytest.mark.parametrize("seed", [2**62, 2**63 - 1])
def test_after_the_last_seeds_the_next_command_begins_anew(tmp_path, gray, seed):
    ran = good(here("edit", "stroke", gray, *PICTURE, "--seed", seed, "--num", 1, "--out", tmp_path / "o.png"))
    (line,) = [line for line in ran.out.splitlines() if line.startswith("next: ")]
    good(here(*shlex.split(line.removeprefix("next: "))[1:]))


@pytest.mark.parametrize(
    ("out", "word"),
    [
        ("o.jpg", "write FILE.png"),
        ("o.gif", "write FILE.png for a picture, or a folder"),
        ("nowhere/o.png", "does not exist"),
        ("full", "not an empty folder"),
        ("dir.png", "is a folder"),
        ("link", "is a link; name a folder"),
        ("link.png", "is a folder"),
    ],
)
def test_places_that_cannot_be_written(tmp_path, monkeypatch, gray, out, word):
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/file").write_text("mine")
    Path("dir.png").mkdir()
    Path("empty").mkdir()
    for name in ("link", "link.png"):
        Path(name).symlink_to(Path("empty").absolute())
    ran = here("edit", "inpaint", gray, *PICTURE, *BOX, "--out", out)
    assert ran.code == 2
    assert word in ran.err
    assert not list(Path("empty").iterdir())
    assert Path("full/file").read_text() == "mine"


def test_from_python_the_same_bits_as_on_the_command_line(tmp_path, gray):
    import torch

    import cmray
    from cmray.core.errors import CmrayError

    torch.set_num_threads(1)
    images = digits().images[:3]
    model = cmray.load(gray, storage=tmp_path, device="cpu")
    out = model.edit("inpaint", images, box=(2, 2, 4, 4), num=2, seed=1, steps=5)
    assert out.shape == (3, 2, 1, 8, 8)
    assert out.dtype == torch.float32
    assert torch.equal(out, model.edit("inpaint", torch.from_numpy(images), box=(2, 2, 4, 4), num=2, seed=1, steps=5))
    exact = model.edit("inpaint", images, box=(2, 2, 4, 4), num=1, seed=2, steps=5, uint8=True)
    Image.fromarray(images[1][0]).save(tmp_path / "a.png")
    options = ("--box", "2,2,4,4", "--num", 1, "--seed", 2, "--steps", 5)
    good(here("edit", "inpaint", gray, "--input", tmp_path / "a.png", *options, "--out", tmp_path / "o"))
    assert (pixels(tmp_path / "o" / "000-a-seed2.png") == exact[1, 0, 0].numpy()).all()
    ladder = model.edit("denoise", images, level=(0.1, 1.0), num=2)
    assert ladder.shape == (3, 4, 1, 8, 8)
    assert torch.equal(ladder[:, :2], model.edit("denoise", images, level=(0.1, 1.0)))
    way = model.edit("interpolate", frames=4, seed=5)
    assert way.shape == (1, 4, 1, 8, 8)
    assert torch.allclose(way[0, 0], model.sample(1, seed=5)[0], atol=1e-5)
    between = model.edit("interpolate", images[:2], frames=4)
    assert between.shape == (1, 4, 1, 8, 8)
    with pytest.raises(CmrayError, match="inpaint has no option 'boxes'; did you mean 'box'"):
        model.edit("inpaint", images, boxes=(1, 1, 1, 1))
    with pytest.raises(CmrayError, match=r"the images are 1x4x4, the model's are 1x8x8"):
        model.edit("inpaint", images[:, :, :4, :4], box=(0, 0, 1, 1))
    with pytest.raises(CmrayError, match=r"finite and in \[-1, 1\]"):
        model.edit("stroke", torch.full((1, 1, 8, 8), 2.0))


def test_an_input_that_the_model_is_shown_whole(gray, tmp_path):
    """A flat image loses nothing when it is made small, so there is no PSNR of what the model was given."""
    Image.new("L", (8, 8), 90).save(tmp_path / "flat.png")
    given = ("--input", tmp_path / "flat.png", "--factor", 2, "--num", 2, "--out", tmp_path / "o.png", "--json")
    told = good(here("edit", "superres", gray, *given)).json
    assert [result["psnr_given_db"] for result in told["results"]] == [None, None]
    assert told["results"][0]["psnr_db"] > 0
    assert "of what the model was given" not in " ".join(told["notes"])
