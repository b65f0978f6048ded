"""Curves and losses in features of the user's own file: the same wherever it lies, another with another content."""

import shutil

import pytest
import torch
from pydantic import ValidationError
from small_run import go, small

from cmray.config.identity import content_hash
from cmray.config.run import CurveConfig, RunConfig
from cmray.core.distances import distances
from cmray.core.errors import MissingWeightsError
from cmray.metrics.trained import TrainedCNN, save_features
from cmray.tracking.events import read_events

RECORD = {"dataset": {"shape": [1, 8, 8], "classes": [str(i) for i in range(10)]}}


@pytest.fixture
def features(tmp_path):
    torch.manual_seed(0)
    save_features(TrainedCNN((1, 8, 8), 10).eval(), RECORD, tmp_path / "own.safetensors")
    return tmp_path / "own.safetensors"


def run(path) -> RunConfig:
    own = {"name": "trained", "path": str(path)}
    return small(
        {"objective.distance": {"name": "features", "extractor": own}},
        curve={"every": 3, "num_samples": 16, "metric": {"name": "fd/trained", "extractor": {"path": str(path)}}},
    )


def test_a_run_learns_and_is_drawn_in_them(features, tmp_path):
    config = run(features)
    assert config.curve is not None
    assert config.curve.metric_name == "fd/trained"
    assert config.objective.features == "trained", "so that reports can flag the row"
    again = RunConfig.model_validate(config.model_dump(mode="json"))
    assert again == config, "a worker gets the same"
    go(again, tmp_path / "trial")
    drawn = [e for e in read_events(tmp_path / "trial" / "events.jsonl") if e.kind == "curve"]
    assert [list(e.metrics) for e in drawn] == [["fd/trained@1"]] * 2


def test_content_counts_and_place_does_not(features, tmp_path):
    moved = shutil.copy(features, tmp_path / "moved.safetensors")
    assert content_hash(run(features)) == content_hash(run(moved))
    torch.manual_seed(1)
    save_features(TrainedCNN((1, 8, 8), 10).eval(), RECORD, tmp_path / "other.safetensors")
    assert content_hash(run(features)) != content_hash(run(tmp_path / "other.safetensors"))


def test_a_plain_name_is_the_run_it_always_was():
    assert CurveConfig(every=1).model_dump()["metric"] == "fd/digits"
    assert distances.parse("features").model_dump() == {"name": "features", "extractor": "digits", "pixel_weight": 0.0}


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("fd/digit", "unknown metric 'fd/digit'; did you mean 'fd/digits'"),
        ({"name": "kid/digits"}, "is kid/digits, but only fd/EXTRACTOR is measured while training"),
        ({"name": "fd/trained", "extractor": {"paht": "x"}}, "did you mean 'path'"),
        (3, "must be fd/EXTRACTOR"),
    ],
)
def test_a_curve_of_something_else_is_refused(metric, words):
    with pytest.raises(ValidationError) as error:
        CurveConfig.model_validate({"every": 1, "metric": metric})
    assert words in str(error.value)


def test_a_file_that_is_missing_is_named_with_the_command_that_makes_it(tmp_path):
    config = run(tmp_path / "no.safetensors")
    with pytest.raises(MissingWeightsError, match=r"`cmray features train DATA --out .*no\.safetensors` makes it"):
        go(config, tmp_path / "trial")
