"""A served sampler: the same images as from the checkpoint it was taken from, and one line for each bad request."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from small_run import CPU, checkpoint, go, small

from cmray.config.checkpoint_facts import META
from cmray.core.errors import CheckpointError
from cmray.core.precond import to_pixels
from cmray.engine.model import load_model
from cmray.tracking.mlflow import PyfuncSampler
from cmray.tracking.served import MAX_IMAGES, SAMPLER, ServedModel, ServedSampler

TIMES = (80.0, 0.8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints of an unconditional and of a class-conditional consistency model, and of a denoiser."""
    folder = tmp_path_factory.mktemp("trained")
    runs = {
        "plain": small(),
        "classes": small({"net.class_conditional": True}),
        "denoiser": small({"objective": {"name": "edm"}}),
    }
    for name, run in runs.items():
        go(run, folder / name)
    return {name: checkpoint(folder / name) for name in runs}


def served(source: Path, folder: Path, nfe: int = 2, times: tuple[float, ...] | None = TIMES) -> PyfuncSampler:
    ServedModel("study", source, nfe, times).write(folder / "model")
    return PyfuncSampler(ServedSampler(folder / "model"))


def pixels(source: Path, nfe: int, times, seeds, labels=None) -> np.ndarray:
    model = load_model(source, CPU)
    given = None if labels is None else torch.tensor(labels)
    return to_pixels(model.images(model.sampler(nfe, times), seeds, given)).numpy().transpose(0, 2, 3, 1)


def test_its_files_are_the_weights_and_json_alone(trained, tmp_path):
    served(trained["plain"], tmp_path)
    files = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert files == ["ema-0.999.safetensors", META, SAMPLER]
    assert json.loads((tmp_path / "model" / SAMPLER).read_text()) == {"nfe": 2, "times": [80.0, 0.8]}


def test_it_gives_the_images_of_the_checkpoint(trained, tmp_path):
    asked = pd.DataFrame([{"seed": 7, "count": 3}, {"seed": 3}, {"seed": 9, "count": 2, "times": [80.0]}])
    images = served(trained["plain"], tmp_path).predict(asked)
    assert images.dtype == np.uint8
    assert images.shape == (6, 8, 8, 1)
    expected = [
        pixels(trained["plain"], 2, TIMES, range(7, 10)),
        pixels(trained["plain"], 2, TIMES, [3]),
        pixels(trained["plain"], 1, [80.0], [9, 10]),
    ]
    assert (images == np.concatenate(expected)).all()
    assert not (images[0] == images[1]).all(), "two seeds give one image"


def test_labels_are_repeated_in_turn(trained, tmp_path):
    sampler = served(trained["classes"], tmp_path)
    images = sampler.predict(pd.DataFrame([{"seed": 0, "count": 4, "labels": [3, 8]}]))
    assert (images == pixels(trained["classes"], 2, TIMES, range(4), [3, 8, 3, 8])).all()
    drawn = sampler.predict(pd.DataFrame([{"seed": 0, "count": 4, "labels": None}]))
    assert (drawn == pixels(trained["classes"], 2, TIMES, range(4))).all()


def test_a_denoiser_is_served_at_its_budget(trained, tmp_path):
    sampler = served(trained["denoiser"], tmp_path, nfe=3, times=None)
    assert (sampler.predict(pd.DataFrame([{"seed": 1}])) == pixels(trained["denoiser"], 3, None, [1])).all()
    with pytest.raises(MlflowException, match="times are for consistency models"):
        sampler.predict(pd.DataFrame([{"seed": 1, "times": [80.0]}]))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"count": 1}, "seed is missing"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63 - 2, "count": 4}, "goes beyond"),
        ({"seed": 0.5}, "seed must be whole numbers, found 0.5"),
        ({"seed": 0, "count": 0}, "count is 0; one call makes 1 to 4096"),
        ({"seed": 0, "count": MAX_IMAGES + 1}, "count is 4097"),
        ({"seed": 0, "labels": [1]}, "not class-conditional"),
        ({"seed": 0, "times": [0.8, 80.0]}, "times must descend"),
        ({"seed": 0, "times": [800.0]}, "at most sigma_max"),
        ({"seed": 0, "times": [float("nan")]}, "times must be finite"),
    ],
)
def test_a_bad_request_is_one_line(trained, tmp_path, request_, message):
    with pytest.raises(MlflowException, match=message) as caught:
        served(trained["plain"], tmp_path).predict(pd.DataFrame([request_]))
    assert "\n" not in caught.value.message
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_requests_of_one_call_are_limited_together(trained, tmp_path):
    with pytest.raises(MlflowException, match="4100 images are asked for"):
        served(trained["plain"], tmp_path).predict(pd.DataFrame({"seed": [0, 1], "count": [2050, 2050]}))


def test_a_label_that_does_not_exist_is_named(trained, tmp_path):
    with pytest.raises(MlflowException, match=r"labels are 0 to 9, found \[10\]"):
        served(trained["classes"], tmp_path).predict(pd.DataFrame([{"seed": 0, "labels": [10]}]))


def test_its_content_is_what_decides_its_images(trained, tmp_path):
    one = ServedModel("study", trained["plain"], 2, TIMES).content
    moved = shutil.copytree(trained["plain"], tmp_path / "elsewhere")
    assert ServedModel("other name", moved, 2, TIMES, "other words").content == one
    others = [
        ServedModel("study", trained["plain"], 1, (80.0,)),
        ServedModel("study", trained["plain"], 2, (80.0, 0.7)),
        ServedModel("study", trained["classes"], 2, TIMES),
    ]
    assert len({one, *(other.content for other in others)}) == 4


def test_a_damaged_checkpoint_is_not_served(trained, tmp_path):
    damaged = shutil.copytree(trained["plain"], tmp_path / "damaged")
    (weights,) = damaged.glob("ema-*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match="changed after it was written"):
        ServedModel("study", damaged, 2, TIMES).write(tmp_path / "model")
    assert not (tmp_path / "model").exists()
