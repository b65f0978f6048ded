"""Editing with real networks: levels that a model does not know, labels of inputs, and ends that are samples."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from exchange_files import made
from small_run import CPU

from cmray.core.errors import CmrayError
from cmray.core.rng import SampleNoise
from cmray.editing import Levels, editing_tasks
from cmray.engine import edit_inputs
from cmray.engine.edit import edit, make_task
from cmray.engine.edit_inputs import Rule, read_pictures
from cmray.engine.model import Model, load_model

SHAPE = (1, 8, 8)
MLP = {"name": "mlp", "width": 16, "depth": 1}
IMAGES = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def model_of(folder: Path, kind: str, classes: int = 0) -> Model:
    objective = {"name": "edm"} if kind == "denoiser" else {"name": "ct", "num_sigmas": 18}
    return load_model(made(folder, MLP, SHAPE, classes, objective), CPU)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Model]:
    """With random weights: what comes out is no image, but which noise and labels go in can be told from it."""
    folder = tmp_path_factory.mktemp("models")
    return {kind: model_of(folder / kind, kind) for kind in ("consistency", "denoiser")}


@pytest.fixture(scope="module")
def conditional(tmp_path_factory) -> Model:
    return model_of(tmp_path_factory.mktemp("conditional"), "consistency", 10)


# ---------------------------------------------------------------- levels


@pytest.mark.parametrize("steps", [None, 1, 4])
@pytest.mark.parametrize("level", [0.0005, 0.002, 80.001, 1e6])
@pytest.mark.parametrize("name", ["stroke", "denoise", "interpolate", "interpolate images"])
@pytest.mark.parametrize("kind", ["consistency", "denoiser"])
def test_a_level_that_the_model_does_not_know_is_one_sentence(models, kind, name, level, steps):
    task = make_task(name.split()[0], {"level": (level,) if name == "denoise" else level})
    images = None if name == "interpolate" else IMAGES[:2]
    with pytest.raises(CmrayError) as error:
        edit(models[kind], task, images, steps=steps)
    words = "noise levels must be above sigma_min 0.002 and at most sigma_max 80, found "
    assert str(error.value).startswith(words)
    assert f"{level:g}" in str(error.value)


@pytest.mark.parametrize("steps", [None, 1, 3])
@pytest.mark.parametrize("level", [0.0021, 0.004, 80.0])
@pytest.mark.parametrize("name", ["stroke", "denoise", "interpolate"])
@pytest.mark.parametrize("kind", ["consistency", "denoiser"])
def test_every_level_between_is_taken(models, kind, name, level, steps):
    task = make_task(name, {"level": (level,) if name == "denoise" else level})
    results = edit(models[kind], task, IMAGES[:2], 1, steps=steps)
    assert len(results) == (task.frames if name == "interpolate" else 2)
    for result in results:
        assert result.times[0] == pytest.approx(level)
        assert result.image.isfinite().all()
        if steps is not None:
            assert len(result.times) == steps


@pytest.mark.parametrize("times", [[0.002], [81.0, 1.0], [80.0, 0.001]])
@pytest.mark.parametrize("kind", ["consistency", "denoiser"])
def test_times_out_of_range_are_the_same_sentence(models, kind, times):
    with pytest.raises(CmrayError, match=r"must be above sigma_min 0\.002 and at most sigma_max 80, found "):
        edit(models[kind], make_task("stroke", {}), IMAGES, times=times)


def test_a_second_level_of_stroke_that_would_be_too_low_is_left_out():
    task = editing_tasks.parse({"name": "stroke", "level": 0.003})
    assert task.schedules(Levels(0.002, 80.0), 8, None, True, 1) == [[0.003]]


@pytest.mark.parametrize("levels", [(0.5, 0.5), (0.5, 0.50000001), (2.0, 0.5, 2.0)])
def test_the_same_level_twice_is_refused_also_where_only_its_name_is_the_same(levels):
    with pytest.raises(CmrayError, match=r"denoise: level found the same noise level twice: [\d., ]+$"):
        make_task("denoise", {"level": levels})
    assert make_task("denoise", {"level": (0.5, 0.51)}).level == (0.5, 0.51)


# ---------------------------------------------------------------- labels


def test_labels_are_taken_in_turn_over_the_inputs_whatever_the_number_of_results(conditional):
    task = make_task("inpaint", {"box": (1, 1, 4, 4)})
    found = edit(conditional, task, IMAGES, 2, 5, [3, 1], steps=2)
    assert [result.row.group for result in found] == [0, 0, 1, 1, 2, 2]
    for i, label in enumerate([3, 1, 3]):
        alone = edit(conditional, task, IMAGES[i : i + 1], 2, 5, [label], steps=2)
        for one, same in zip(alone, found[2 * i : 2 * i + 2], strict=True):
            assert one.row.seed == same.row.seed
            assert torch.equal(one.image, same.image), (i, label)
    other = edit(conditional, task, IMAGES[1:2], 2, 5, [3], steps=2)
    assert not torch.equal(other[0].image, found[2].image), "labels decide nothing here, so this test shows nothing"


def test_labels_of_ways_are_one_for_each_way(conditional):
    found = edit(conditional, make_task("interpolate", {"frames": 3}), None, 2, 4, [3, 1])
    alone = [edit(conditional, make_task("interpolate", {"frames": 3}), None, 1, 4 + i, [(3, 1)[i]]) for i in (0, 1)]
    for one, same in zip([*alone[0], *alone[1]], found, strict=True):
        assert torch.equal(one.image, same.image)


def drawn_by(seed: int) -> int:
    return int(SampleNoise([seed], SHAPE).integers(10))


def sample(model: Model, seed: int, label: int | None) -> torch.Tensor:
    labels = None if label is None else torch.tensor([label])
    return model.images(model.sampler(1), [seed], labels, block=8)[0].clamp(-1, 1)


def test_between_seeds_that_draw_different_classes_a_label_must_be_said(conditional):
    a, b = 3, next(seed for seed in range(4, 100) if drawn_by(seed) != drawn_by(3))
    task = make_task("interpolate", {"between": (a, b), "frames": 4})
    with pytest.raises(CmrayError) as error:
        edit(conditional, task, None)
    assert f"the two ends draw {drawn_by(a)} and {drawn_by(b)}; say which class it has" in str(error.value)
    way = edit(conditional, task, None, labels=[7])
    assert torch.equal(way[0].image, sample(conditional, a, 7))
    assert torch.equal(way[-1].image, sample(conditional, b, 7))


def test_between_seeds_that_draw_one_class_the_ends_are_the_seeds_own_samples(conditional):
    a, b = 3, next(seed for seed in range(4, 100) if drawn_by(seed) == drawn_by(3))
    way = edit(conditional, make_task("interpolate", {"between": (a, b), "frames": 4}), None)
    assert torch.equal(way[0].image, sample(conditional, a, None))
    assert torch.equal(way[-1].image, sample(conditional, b, None))
    assert not torch.equal(way[0].image, way[1].image)


# ---------------------------------------------------------------- options and inputs


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("inpaint", {"box": (1, 1, 2)}, "inpaint: box takes 4 numbers, found 3"),
        ("inpaint", {"box": [1]}, "inpaint: box takes 4 numbers, found 1"),
        ("inpaint", {"box": (1, 1, 2, 2, 2)}, "inpaint: box takes 4 numbers, found 5"),
        ("interpolate", {"between": [3]}, "interpolate: between takes 2 numbers, found 1"),
        ("interpolate", {"between": (3, 4, 5)}, "interpolate: between takes 2 numbers, found 3"),
    ],
)
def test_too_few_or_too_many_numbers_are_counted(name, options, words):
    with pytest.raises(CmrayError) as error:
        make_task(name, options)
    assert str(error.value) == words


@pytest.mark.parametrize("options", [{"box": 5}, {"box": "a"}, {"box": ("a", 1, 1, 1)}, {"word": 5}, {"box": None}])
def test_what_is_no_option_s_value_is_one_sentence(options):
    with pytest.raises(CmrayError) as error:
        make_task("inpaint", options)
    assert "\n" not in str(error.value)


def test_a_letter_that_the_font_lacks_is_refused(models):
    for word, letter in (("a中b", "'中'"), ("ａ", "'ａ'"), ("a\nb", r"'\n'")):
        with pytest.raises(CmrayError, match=re.escape(f"the font has no letter {letter}; ")):
            edit(models["consistency"], make_task("inpaint", {"word": word}), IMAGES)
    for word in ("Ωé", "I"):
        assert edit(models["consistency"], make_task("inpaint", {"word": word}), IMAGES[:1], 1, steps=1)


def test_a_folder_of_too_many_pictures_is_refused_before_one_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(edit_inputs, "MOST", 3)
    for i in range(4):
        (tmp_path / f"{i}.png").write_text("no picture")
    with pytest.raises(CmrayError, match=r"holds 4 images; at most 3 are edited at once"):
        read_pictures([str(tmp_path)], Rule(SHAPE), 1, tmp_path, "--input")


def test_the_last_seeds_are_seeds(models):
    task = make_task("denoise", {"level": (1.0,)})
    found = edit(models["consistency"], task, IMAGES[:1], 2, 2**63 - 2)
    assert [result.row.seed for result in found] == [2**63 - 2, 2**63 - 1]
    with pytest.raises(CmrayError, match=r"seeds from 0 to 2\*\*63 - 1"):
        edit(models["consistency"], task, IMAGES[:1], 3, 2**63 - 2)
