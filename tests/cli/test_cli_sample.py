"""`cmray sample`: the same pixels in every form, searched times, trajectories, and a stopped command that goes on."""

from __future__ import annotations

import csv
import itertools
import json
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_run import CT, EDM, Ran, Running, apart, good, here, snapshot, write
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from shell_words import check

from cmray.core.errors import DataError, StorageError
from cmray.core.files import sha256_of
from cmray.core.precond import to_pixels
from cmray.core.rng import SampleNoise
from cmray.engine.checkpoint import newest_checkpoint
from cmray.engine.drawing import Drawing, drawn
from cmray.engine.evaluator import InlinePool
from cmray.engine.model import load_model, make_sampler
from cmray.engine.results import subject
from cmray.engine.session import default_device, one_thread
from cmray.samplers import samplers

UNTRACKED = ("--tracking-uri", "none")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> tuple[Path, str]:
    """(storage, EXPERIMENT/TRIAL) of a class-conditional model."""
    folder = tmp_path_factory.mktemp("labelled")
    file = write(folder / "labelled.yaml", CT, net={"class_conditional": True})
    told = good(here("train", file, "--storage", folder / "storage", *UNTRACKED, "--json")).json
    return folder / "storage", told["trial"]


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as opened:
        return {name: opened[name] for name in opened.files}


def from_folder(folder: Path) -> tuple[np.ndarray, list[dict[str, str]]]:
    """Pixels [N,H,W,C] in the order of the index, and the index."""
    with (folder / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    pixels = [np.asarray(Image.open(folder / row["file"])) for row in rows]
    return np.stack([p if p.ndim == 3 else p[:, :, None] for p in pixels]), rows


# ---------------------------------------------------------------- forms


@pytest.mark.parametrize("classes", [None, "3,1,4"])
def test_every_form_holds_the_same_pixels_seeds_and_labels(labelled, tmp_path, classes):
    storage, trial = labelled
    more = ("--num", 70, "--seed", 11, *(("--class", classes) if classes else ()))
    for name in ("x.npz", "x.safetensors", "folder"):
        good(here("sample", trial, "--storage", storage, "--out", tmp_path / name, *more))
    found = arrays(tmp_path / "x.npz")
    assert list(found) == ["arr_0", "arr_1"]
    assert (found["arr_0"].dtype, found["arr_0"].shape) == (np.uint8, (70, 8, 8, 1))
    asked = [int(c) for c in classes.split(",")] if classes else None
    drawn = SampleNoise(range(11, 81), (1, 8, 8)).integers(10).tolist()
    expected = [asked[i % 3] for i in range(70)] if asked else drawn
    assert found["arr_1"].tolist() == expected
    assert len(set(expected)) > 2
    with safe_open(tmp_path / "x.safetensors", "np") as file:
        np.testing.assert_array_equal(file.get_tensor("images").transpose(0, 2, 3, 1), found["arr_0"])
        assert file.get_tensor("seeds").tolist() == list(range(11, 81))
        assert file.get_tensor("labels").tolist() == expected
        about = file.metadata()
    assert (about["model"], about["weights"], about["sampler"], about["times"]) == (
        trial, "ema 0.9", "one-step", "80.0",
    )  # fmt: skip
    pixels, rows = from_folder(tmp_path / "folder")
    np.testing.assert_array_equal(pixels, found["arr_0"])
    assert [(int(r["seed"]), int(r["label"])) for r in rows] == list(zip(range(11, 81), expected, strict=True))
    assert json.loads((tmp_path / "folder" / "sampler.json").read_text()) == about
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "x.npz", "x.safetensors"], "something was left"


def test_a_label_that_a_seed_draws_is_the_label_it_is_drawn_with(labelled, tmp_path):
    storage, trial = labelled
    good(here("sample", trial, "--storage", storage, "--out", tmp_path / "a.npz", "--num", 20))
    own = arrays(tmp_path / "a.npz")
    labels = ",".join(map(str, own["arr_1"].tolist()))
    good(here("sample", trial, "--storage", storage, "--out", tmp_path / "b.npz", "--num", 20, "--class", labels))
    np.testing.assert_array_equal(arrays(tmp_path / "b.npz")["arr_0"], own["arr_0"])


def test_without_classes_there_are_no_labels_and_the_arrays_can_be_measured(models, tmp_path):
    for name in ("x.npz", "folder", "x.safetensors"):
        good(here("sample", models.student, "--storage", models.storage, "--out", tmp_path / name, "--num", 5))
    assert list(arrays(tmp_path / "x.npz")) == ["arr_0"]
    assert {r["label"] for r in from_folder(tmp_path / "folder")[1]} == {""}
    with safe_open(tmp_path / "x.safetensors", "np") as file:
        assert set(file.keys()) == {"images", "seeds"}
    against = ("--reference-data", "digits", "--storage", tmp_path / "storage", "--json")
    values = [
        good(here("evaluate", "--images", tmp_path / name, *against)).json[0]["value"] for name in ("x.npz", "folder")
    ]
    assert values[0] == values[1]


def test_a_grid_shows_the_images_and_the_next_command_can_be_run(models, tmp_path):
    out = tmp_path / "grid.png"
    ran = good(here("sample", models.student, "--storage", models.storage, "--out", out, "--num", 4, "--seed", 9))
    good(here("sample", models.student, "--storage", models.storage, "--out", tmp_path / "x.npz", "--num", 4,
              "--seed", 9))  # fmt: skip
    picture = np.asarray(Image.open(out).convert("L"))
    for image in arrays(tmp_path / "x.npz")["arr_0"][..., 0]:
        large = image.repeat(6, 0).repeat(6, 1)
        windows = np.lib.stride_tricks.sliding_window_view(picture, large.shape)
        assert (windows == large).all((2, 3)).any(), "an image is not in the grid"
    (line,) = [line for line in ran.out.splitlines() if line.startswith("next: ")]
    assert good(here(*line.removeprefix("next: cmray ").split(), "--help")).out


# ---------------------------------------------------------------- times


def test_searched_times_are_those_that_the_search_found(models, tmp_path):
    storage = Path(shutil.copytree(models.storage, tmp_path / "storage"))
    draw = ("sample", models.student, "--storage", storage, "--num", 3, "--json")
    ran = here(*draw, "--times", "searched", "--out", tmp_path / "x.npz")
    assert ran.code == 2
    assert "no times were searched" in ran.err
    assert f"cmray search {models.student}" in " ".join(ran.err.split())
    searched = {}
    for nfe in (2, 3):
        (found,) = good(
            here("search", models.student, "--storage", storage, "--nfe", nfe, "--num-samples", 64, "--json")
        ).json
        searched[nfe] = found["times"]
        told = good(here(*draw, "--times", "searched", "--nfe", nfe, "--out", tmp_path / "x.npz")).json
        assert (told["times"], told["sampler"], told["nfe"]) == (found["times"], "multistep", nfe)
        given = ",".join(map(repr, found["times"]))
        good(here(*draw, "--times", given, "--out", tmp_path / "y.npz"))
        np.testing.assert_array_equal(arrays(tmp_path / "x.npz")["arr_0"], arrays(tmp_path / "y.npz")["arr_0"])
    several = here(*draw, "--times", "searched", "--out", tmp_path / "z.npz")
    assert several.code == 2
    assert "2, 3" in several.err
    other = here(*draw, "--times", "searched", "--nfe", 2, "--weights", "student", "--out", tmp_path / "z.npz")
    assert other.code == 2, "they were searched for other weights"
    assert "--nfe 2 --weights 'student'`" in " ".join(other.err.split())
    good(here("search", models.student, "--storage", storage, "--nfe", 2, "--num-samples", 64, "--weights", "student"))
    told = good(here(*draw, "--times", "searched", "--weights", "student", "--out", tmp_path / "z.npz")).json
    assert (told["weights"], told["nfe"]) == ("student", 2)
    assert (
        good(here(*draw, "--times", "searched", "--nfe", 2, "--out", tmp_path / "y.npz")).json["weights"] == "ema 0.9"
    )
    shown = good(here("sample", models.student, "--storage", storage, "--out", tmp_path / "x.png", "--num", 2)).out
    assert "--times searched --nfe 2" in shown


def test_a_teacher_is_sampled_with_heun_unless_told(models, tmp_path):
    told = good(
        here("sample", models.teacher, "--storage", models.storage, "--out", tmp_path / "x.npz", "--num", 2, "--json")
    ).json
    assert (told["sampler"], told["nfe"], len(told["times"])) == ("edm-heun", 35, 18)


# ---------------------------------------------------------------- trajectories


def test_an_animation_has_a_frame_for_each_level_and_one_for_the_images(models, tmp_path):
    good(here("sample", models.student, "--storage", models.storage, "--trajectory", tmp_path / "t.gif",
              "--times", "80,10,1", "--num", 3))  # fmt: skip
    with Image.open(tmp_path / "t.gif") as picture:
        assert picture.n_frames == 4
        frames = []
        for i in range(4):
            picture.seek(i)
            frames.append(np.asarray(picture.convert("RGB")))
    assert len({f.shape for f in frames}) == 1
    assert all((a != b).any() for a, b in itertools.pairwise(frames))
    assert [p.name for p in tmp_path.iterdir()] == ["t.gif"]


def test_a_strip_ends_in_the_image_and_is_drawn_beside_the_images(models, tmp_path):
    more = ("--storage", models.storage, "--num", 1, "--seed", 4, "--nfe", 9)
    told = good(here("sample", models.teacher, "--out", tmp_path / "x.npz", "--trajectory", tmp_path / "t.png", *more,
                     "--json")).json  # fmt: skip
    assert (told["out"], told["trajectory"]) == (str(tmp_path / "x.npz"), str(tmp_path / "t.png"))
    picture = np.asarray(Image.open(tmp_path / "t.png").convert("L"))
    image = arrays(tmp_path / "x.npz")["arr_0"][0, :, :, 0].repeat(8, 0).repeat(8, 1)
    windows = np.lib.stride_tricks.sliding_window_view(picture, image.shape)
    places = np.argwhere((windows == image).all((2, 3)))
    assert len({tuple(p) for p in places}) >= 2, "at the end of both rows"
    assert len({p[1] for p in places}) >= 1


# ---------------------------------------------------------------- bad input


WRONG = [
    ([], ["--out", "--trajectory"]),
    (["--out", "x.jpg"], ["x.jpg", ".safetensors"]),
    (["--out", "x.png", "--trajectory", "t.mp4"], ["t.mp4", "FILE.gif"]),
    (["--out", "x.png", "--trajectory", "x.png"], ["--trajectory", "file of its own"]),
    (["--out", "x.png", "--num", "5000"], ["at most 4,096", "FILE.npz"]),
    (["--out", "x.npz", "--seed", str(2**63 - 1)], ["--seed", "2**63"]),
    (["--trajectory", "missing/t.gif"], ["--trajectory", "missing", "does not exist"]),
    (["--out", "x.npz", "--times", "search"], ["--times", "search"]),
    (["--out", "x.npz", "--times", "80,0.8", "--nfe", "3"], ["2 noise levels", "--nfe is 3"]),
    (["--out", "x.npz", "--times", "100,1"], ["sigma_max 80"]),
    (["--out", "x.npz", "--times", "80,0.002"], ["sigma_min"]),
    (["--out", "x.npz", "--num", "2000", "--parallel", "999"], ["--parallel 999", "this machine has"]),
    (["--out", "x.npz", "--address", "nowhere"], ["nowhere", "no address"]),
    (["--out", "folder.npz"], ["folder.npz is a folder"]),
]


@pytest.mark.parametrize(("more", "words"), WRONG, ids=[" ".join(m) or "nothing" for m, _ in WRONG])
def test_what_cannot_be_is_one_line_and_leaves_nothing(models, tmp_path, monkeypatch, more, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.npz").mkdir()
    before = snapshot(tmp_path)
    ran = here("sample", models.student, "--storage", models.storage, *more)
    assert ran.code == 2
    text = " ".join(ran.err.split())
    assert text.count("error:") == 1
    assert "Traceback" not in text
    for word in words:
        assert word in text
    assert snapshot(tmp_path) == before


def test_labels_out_of_range_and_a_folder_that_is_not_empty(labelled, tmp_path):
    storage, trial = labelled
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for more, word in (
        (("--out", tmp_path / "x.npz", "--class", "10"), "labels are 0 to 9"),
        (("--out", tmp_path / "full"), "not an empty folder"),
    ):
        ran = here("sample", trial, "--storage", storage, *more)
        assert (ran.code, word in " ".join(ran.err.split())) == (2, True)
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


def test_a_model_that_diverged_is_said_and_leaves_nothing(models, tmp_path):
    storage = Path(shutil.copytree(models.storage, tmp_path / "storage"))
    (checkpoint,) = (storage / models.student / "checkpoints").iterdir()
    weights = checkpoint / "ema-0.9.safetensors"
    save_file({name: np.full_like(value, np.nan) for name, value in load_file(weights).items()}, weights)
    meta = json.loads((checkpoint / "meta.json").read_text())
    meta["files"][weights.name] = sha256_of(weights)
    (checkpoint / "meta.json").write_text(json.dumps(meta))
    ran = here("sample", checkpoint, "--storage", storage, "--out", tmp_path / "x.npz", "--num", 3)
    assert ran.code == 2
    assert "diverged" in ran.err
    assert [p.name for p in tmp_path.iterdir()] == ["storage"]


# ---------------------------------------------------------------- stopped, many, large


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_command_goes_on_where_it_was(models, tmp_path, stop):
    """What is there is not drawn again, and the images are those of a command that nobody stopped."""
    slow = ("--storage", models.storage, "--num", 1000, "--nfe", 401)
    out, parts = tmp_path / "desk" / "x.npz", tmp_path / "desk" / ".x.npz.parts"
    with Running(tmp_path / "desk", "sample", models.teacher, "--out", out, *slow) as running:
        running.until(lambda: len(list(parts.glob("[0-9]*.npy"))) >= 3, "three parts")
        running.process.send_signal(stop)
        ran = running.ended(60)
    assert ran.code == (130 if stop == signal.SIGTERM else -signal.SIGKILL)
    assert not out.exists()
    there = len(list(parts.glob("[0-9]*.npy")))
    assert 3 <= there < 16
    again = good(apart(tmp_path / "desk", "sample", models.teacher, "--out", out, *slow))
    assert f"{64 * there} of 1,000 images are there already" in " ".join(again.err.split())
    assert not parts.exists()
    storage = models.storage / models.teacher / "checkpoints"
    newest = newest_checkpoint(storage, lambda _: None)
    assert newest is not None
    model = load_model(newest[1], default_device())
    with one_thread():
        expected = model.images(model.sampler(401), range(936, 1000))
    found = arrays(out)["arr_0"]
    assert found.shape == (1000, 8, 8, 1)
    np.testing.assert_array_equal(found[936:, :, :, 0], to_pixels(expected).numpy()[:, 0])


def test_parts_of_other_images_are_not_taken(models, tmp_path):
    folder_of = models.storage / models.student
    newest = newest_checkpoint(folder_of / "checkpoints", lambda _: None)
    assert newest is not None
    who, sampler = subject(folder_of, newest[1]), make_sampler(newest[0].run, 1)

    def drawing(seed: int) -> Drawing:
        how = sampler.model_dump(mode="json")
        return Drawing(who.checkpoint, who.weights, who.weights_sha256, how, seed, 200, (1, 8, 8))

    pool, calls = InlinePool(default_device()), []
    run = pool.run
    pool.run = lambda asked, got: calls.extend(asked) or run(asked, got)  # type: ignore[method-assign]
    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt), drawn(drawing(0), folder, pool):
        raise KeyboardInterrupt
    assert len(calls) == 4
    (folder / "000000000064.npy").write_bytes(b"cut")
    with drawn(drawing(0), folder, pool) as parts:
        first = np.concatenate([pixels for _, pixels in parts.read()])
    assert len(calls) == 5, "only the damaged part is drawn again"
    assert not folder.exists()
    with pytest.raises(KeyboardInterrupt), drawn(drawing(0), folder, pool):
        raise KeyboardInterrupt
    with drawn(drawing(1), folder, pool) as parts:
        second = np.concatenate([pixels for _, pixels in parts.read()])
    np.testing.assert_array_equal(second[:-1], first[1:])
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match="not cmray's"), drawn(drawing(1), folder, pool):
        pass
    assert [(p.name, p.read_text()) for p in folder.iterdir()] == [("mine.txt", "mine")]


@pytest.mark.parametrize("error", [OSError("full"), StorageError("full"), ValueError("mine")])
def test_parts_outlive_an_error_in_writing_and_not_a_model_that_diverged(models, tmp_path, error):
    newest = newest_checkpoint(models.storage / models.student / "checkpoints", lambda _: None)
    assert newest is not None
    who, sampler = subject(models.storage / models.student, newest[1]), make_sampler(newest[0].run, 1)
    drawing = Drawing(
        who.checkpoint, who.weights, who.weights_sha256, sampler.model_dump(mode="json"), 0, 200, (1, 8, 8)
    )
    pool, calls = InlinePool(default_device()), []
    run = pool.run
    pool.run = lambda asked, got: calls.extend(asked) or run(asked, got)  # type: ignore[method-assign]
    folder = tmp_path / "parts"
    with pytest.raises(type(error)), drawn(drawing, folder, pool):
        raise error
    assert (len(calls), len(list(folder.glob("*.npy")))) == (4, 4)
    with pytest.raises(DataError), drawn(drawing, folder, pool):
        raise DataError("not finite")
    assert len(calls) == 4, "nothing was drawn again"
    assert not folder.exists()


def test_parts_that_could_not_be_written_are_one_sentence(models, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
    try:
        ran = here("sample", models.student, "--storage", models.storage, "--num", 70, "--out", tmp_path / "x.npz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ran.code == 2
    assert "000000000000.npy: File too large" in ran.err
    assert not list((tmp_path / ".x.npz.parts").glob("*.npy*"))


@pytest.mark.parametrize("name", ["x.png", "x.npz", "x.safetensors"])
def test_images_that_could_not_be_written_are_not_drawn_again(models, tmp_path, name):
    """Files may have 4,300 bytes for a while, as on a full disk: parts do, the file of all does not."""
    draw = ("sample", models.student, "--storage", models.storage, "--num", 70, "--out", tmp_path / name)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_300, before[1]))
    try:
        ran = here(*draw)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ran.code == 2
    (line,) = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert f"{tmp_path / name}" in line
    assert len(list((tmp_path / f".{name}.parts").glob("*.npy"))) == 2
    again = good(here(*draw))
    assert "70 of 70 images are there already" in " ".join(again.err.split())
    assert [p.name for p in tmp_path.iterdir()] == [name]


# ---------------------------------------------------------------- what is said at the end


def following(ran: Ran) -> list[str]:
    """The words of the command that is proposed, which must be one that cmray takes."""
    (line,) = [line for line in ran.out.splitlines() if line.startswith("next: ")]
    words = shlex.split(line.removeprefix("next: "))
    check(words)
    assert good(here(*words[1:], "--help")).out
    return words[1:]


def pairs(words: list[str]) -> set[tuple[str, str]]:
    return set(itertools.pairwise(words))


def test_low_first_levels_are_noted_and_said(models, tmp_path):
    draw = ("sample", models.student, "--storage", models.storage, "--num", 2, "--out", tmp_path / "x.png")
    low = " ".join(good(here(*draw, "--times", "0.8")).out.split())
    assert "note: samples begin as pure noise of level 80; from 0.8 they are bad" in low
    assert "2 images (one-step, 1 NFE at 0.8, ema 0.9, seeds 0 to 1)" in low  # the picture's title, too
    two = " ".join(good(here(*draw, "--times", "80,0.8")).out.split())
    assert "2 NFE at 80, 0.8, " in two
    usual = " ".join(good(here(*draw)).out.split())
    assert "1 NFE, ema 0.9" in usual
    assert "note:" not in two + usual
    assert good(here(*draw, "--times", "0.8", "--json")).json["times"] == [0.8]


@pytest.mark.parametrize("sampler", [None, *samplers.names()])
def test_no_sampler_of_a_teacher_is_noted(models, tmp_path, sampler):
    """Their first level is sigma_max up to rounding."""
    if sampler is not None and samplers.get(sampler).of_consistency:
        return
    ran = []
    for nfe in (None,) if sampler is None else (7, 8, 9, 10):
        more = () if sampler is None else ("--sampler", sampler, "--nfe", nfe)
        draw = ("sample", models.teacher, "--storage", models.storage, "--num", 1, "--out", tmp_path / "x.npz")
        ran.append(here(*draw, *more))
        assert "note:" not in ran[-1].out
    assert 0 in {one.code for one in ran}


def test_the_next_command_has_the_options_that_were_given(labelled, models, tmp_path):
    storage, trial = labelled
    draw = ("sample", trial, "--storage", storage, "--num", 2)
    own = {("--weights", "student"), ("--class", "3,1")}
    given = ("--weights", "student", "--class", "3,1")
    search = following(good(here(*draw, *given, "--out", tmp_path / "a.png")))
    assert search[:2] == ["search", trial]
    assert ("--weights", "student") in pairs(search)
    assert "--class" not in search
    watch = following(good(here(*draw, *given, "--times", "80,1", "--out", tmp_path / "b.png")))
    for words in (watch, following(good(here(*draw, *given, "--times", "80,1", "--trajectory", tmp_path / "t.gif")))):
        assert words[:2] == ["sample", trial] or words[0] == "search"
        if words[0] == "sample":
            assert own <= pairs(words)
    told = (
        "sample",
        models.teacher,
        "--storage",
        models.storage,
        "--num",
        2,
        "--sampler",
        "{name: edm-heun, S_churn: 4}",
    )
    words = following(good(here(*told, "--nfe", 9, "--out", tmp_path / "c.png")))
    assert {("--nfe", "9"), ("--sampler", "{name: edm-heun, S_churn: 4}")} <= pairs(words)
    words = following(good(here(*told, "--nfe", 9, "--trajectory", tmp_path / "t.png")))
    assert {("--nfe", "9"), ("--sampler", "{name: edm-heun, S_churn: 4}")} <= pairs(words)


def test_a_folder_behind_a_link_is_refused_before_anything_is_drawn(models, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("link", "link.npz", "link.png"):
        (tmp_path / name).symlink_to(tmp_path / "empty")
        ran = here("sample", models.student, "--storage", models.storage, "--out", tmp_path / name)
        assert ran.code == 2
        assert "is a link; name a folder" in ran.err or "is a folder; write a file's name" in ran.err
    assert list((tmp_path / "empty").iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "link", "link.npz", "link.png"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_actors_draw_the_same_images(models, tmp_path):
    more = ("--storage", models.storage, "--num", 1100, "--times", "80,1", "--json")
    good(apart(tmp_path / "desk", "sample", models.student, "--out", tmp_path / "two.npz", *more, "--parallel", 2))
    good(here("sample", models.student, "--out", tmp_path / "one.npz", *more))
    np.testing.assert_array_equal(arrays(tmp_path / "two.npz")["arr_0"], arrays(tmp_path / "one.npz")["arr_0"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["desk", "one.npz", "two.npz"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """200,000 images of 8x8 are 12.8 MB of pixels and would be 51 MB of floats; what grows are seeds and labels."""
    file = write(tmp_path / "run.yaml", EDM, train={"steps": 2, "checkpoint_every": 2}, curve=None)
    trial = good(here("train", file, "--storage", tmp_path / "storage", *UNTRACKED, "--json")).json["trial"]
    code = (
        "import resource, sys\nfrom cmray.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as end: assert not end.code\n"
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )

    def peak(num: int) -> int:
        arguments = (
            "sample",
            trial,
            "--storage",
            tmp_path / "storage",
            "--nfe",
            1,
            "--num",
            num,
            "--out",
            f"{num}.npz",
        )
        ran = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return int(ran.stderr.split("peak")[1])

    few, many = peak(5_000), peak(200_000)
    assert arrays(tmp_path / "200000.npz")["arr_0"].shape == (200_000, 8, 8, 1)
    assert many - few < 30_000, f"{few} KiB for 5,000 images, {many} KiB for 200,000"
