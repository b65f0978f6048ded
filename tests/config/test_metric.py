"""Names of wanted numbers, and their options."""

import pytest

from cmray.config.experiment import EvaluateConfig
from cmray.config.metric import parse_metric, parse_metrics
from cmray.core.errors import ConfigError


def test_names_and_options():
    plain, kid = parse_metrics(["fd/digits", "{name: kid/digits, subset_size: 50}"])
    assert plain == parse_metric("fd/digits")
    assert (kid.name, kid.options["subset_size"]) == ("kid/digits", 50)
    assert parse_metric(kid.model_dump()) == kid
    assert parse_metric(kid) is kid


def test_commas_and_repetitions():
    names = [m.name for m in parse_metrics(["fd/digits, is/digits", "is/digits", "recall/digits"])]
    assert names == ["fd/digits", "is/digits", "recall/digits"]


BAD = [
    ("fid", "unknown metric 'fid'; did you mean 'fd/digits'?"),
    ("digits", "did you mean 'fd/digits'?"),
    ("kidd/digits", "did you mean 'kid/digits'?"),
    ("fd/digit", "did you mean 'fd/digits'?"),
    ("zzzz/qqqq", "allowed: MEASURE/EXTRACTOR, of coverage, density, fd"),
    ("", "unknown metric ''"),
    ("{name: kid/digits, subset_sise: 5}", "kid/digits: subset_sise: unknown key; did you mean 'subset_size'?"),
    ("{name: kid/digits, subset_size: 1}", "kid/digits: subset_size: must be greater than or equal to 2"),
    ("{name: fd/digits, extractor: 5}", "fd/digits: extractor holds the extractor's options; found 5"),
    ("{name: fd/digits, extractor: {size: 5}}", "fd/digits: size: unknown key"),
    ("{kid/digits", "write MEASURE/EXTRACTOR"),
    ("{subset_size: 5}", "a metric is MEASURE/EXTRACTOR"),
]


@pytest.mark.parametrize(("text", "said"), BAD)
def test_bad_metrics_are_one_line(text, said):
    with pytest.raises(ConfigError) as error:
        parse_metrics([text])
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("--metric")


def test_the_metric_that_ranks_comes_first_with_its_options():
    config = EvaluateConfig.model_validate({"metrics": ["is/digits", "recall/digits"]})
    assert [m.name for m in config.wanted] == ["fd/digits", "is/digits", "recall/digits"]
    config = EvaluateConfig.model_validate(
        {"metric": "kid/digits", "metrics": ["fd/digits", {"name": "kid/digits", "subset_size": 9}]}
    )
    assert [m.name for m in config.wanted] == ["kid/digits", "fd/digits"]
    assert config.wanted[0].options["subset_size"] == 9
    assert config.extractor == "digits"
    assert EvaluateConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"metrics": ["fd/digits", "fd/digits"]}, "fd/digits is listed twice"),
        ({"metrics": ["fid/digits"]}, "unknown metric 'fid/digits'"),
        ({"repeats": 0}, "greater than or equal to 1"),
    ],
)
def test_contradictions_are_told(values, said):
    with pytest.raises(ValueError, match=said):
        EvaluateConfig.model_validate(values)
