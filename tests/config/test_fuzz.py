"""Whatever stands in an experiment file, planning works or ends in one line: never another exception."""

import contextlib
import copy
import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from small_run import digits

from cmray.config.load import load_raw
from cmray.config.plan import plan_experiment
from cmray.core.errors import CmrayError
from cmray.datasets.whole import write_shards

ROOT = Path(__file__).resolve().parents[2]

VALID: dict[str, Any] = {
    "name": "fuzz",
    "description": "every section is there",
    "seed": 3,
    "data": {"name": "digits"},
    "net": {"name": "mlp", "width": 16, "depth": 1, "class_conditional": False},
    "noise": {"sigma_min": 0.002, "sigma_max": 80, "rho": 7, "sigma_data": None},
    "objective": {
        "name": "cd",
        "solver": {"name": "heun"},
        "num_sigmas": 9,
        "mu": {"name": "fixed", "mu": 0.9},
        "distance": {"name": "features", "extractor": "digits", "pixel_weight": 1.0},
        "weight": "snr",
        "init": "teacher",
    },
    "teacher": {"experiment": "edm.yaml", "overrides": {"train.steps": 7}},
    "train": {
        "steps": 6,
        "batch_size": 8,
        "accumulate": 1,
        "grad_clip": 1.0,
        "ema": [0.9, 0.99],
        "precision": "fp32",
        "optimizer": {"name": "adam", "lr": 0.01, "betas": [0.9, 0.99], "warmup_steps": 1, "final_lr": 0.1},
        "checkpoint_every": 2,
        "keep_checkpoints": 1,
        "log_every": 1,
    },
    "curve": {"every": 2, "num_samples": 16, "nfe": [1], "metric": "fd/digits"},
    "panels": {
        "a": {"base": {"train": {"steps": 5}}, "grid": {"objective.mu": [0.5, 0.9], "seed": [0, 1]}},
        "b": {"points": [{"objective": {"name": "ct"}}, {"train.optimizer.lr": 0.5}]},
        "c": {
            "random": {
                "count": 2,
                "seed": 1,
                "fields": {
                    "train.optimizer.lr": {"log_uniform": [1e-4, 1e-2]},
                    "noise.rho": {"choice": [3, 7]},
                },
            }
        },
    },
    "evaluate": {"metric": "fd/digits", "num_samples": 32, "block": 8, "nfe": [1, 2], "times": {2: [80, 0.8]}},
    "search": {"nfe": [2], "num_sigmas": 9, "num_samples": 32, "trials": "best"},
    "report": {"x": "step"},
    "resources": {"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0},
    "replace": {"train.steps": {5: 4}, "objective.mu": {0.5: {"name": "fixed", "mu": 0.4}}},
    "drop": ["train.optimizer.betas", "noise.sigma_data"],
}


#: the same with components of other kinds, one panel and no search
REST = {k: v for k, v in VALID.items() if k not in ("objective", "panels", "search")}
FILES: dict[str, dict[str, Any]] = {
    "cd": VALID,
    "pd": {
        **REST,
        "objective": {
            "name": "pd",
            "num_sigmas": {"name": "halving", "start": 2, "end": 1, "stage_steps": 1},
            "distance": "linf",
            "weight": "truncated-snr",
        },
        "evaluate": {k: v for k, v in REST["evaluate"].items() if k != "times"},
    },
    "ict": {
        **REST,
        "net": {
            "name": "ddpmpp",
            "channels": 8,
            "multipliers": [1, 2],
            "attention_resolutions": [4],
            "dropout": 0.1,
            "embedding": "fourier",
            "fourier_scale": 0.02,
            "resample_filter": [1, 3, 3, 1],
        },
        "objective": {
            "name": "ict",
            "num_sigmas": {"name": "doubling", "s0": 3, "s1": 12},
            "times": {"name": "lognormal", "P_mean": -1.1, "P_std": 2.0},
            "distance": {"name": "pseudo-huber", "factor": 0.001},
            "weight_at": "upper",
        },
        "panels": {
            "net": {"points": [{"net": {"name": "adm", "channels": 32, "multipliers": [1, 2], "heads": 4}}]},
            "times": {"points": [{"objective": {"name": "ct", "times": {"name": "loss-second-moment", "history": 2}}}]},
            "limit": {"points": [{"objective": {"name": "ct-continuous", "weight": "1/dt"}}]},
            "ect": {
                "base": {"net": {"name": "mlp", "width": 16, "depth": 1}},
                "points": [{"objective": {"name": "ect", "stages": 2}}],
            },
        },
    },
}


def places(node: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    out = [prefix] if prefix else []
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        out += places(value, (*prefix, key))
    return out


PLACES = sorted({place for values in FILES.values() for place in places(values)}, key=repr)
NAMES = sorted({part for place in PLACES for part in place if isinstance(part, str)})
ODD = ["heun", "ct", "edm", "unet", "adaptive", "lpips", "halving", "name", "", "a.b", ".", "..", "~x", "\0", "a\nb"]
words = st.sampled_from([*NAMES, *ODD])
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 100),
    st.integers(),
    st.sampled_from([2**63, 10**30, -(2**64)]),
    st.floats(),
    words,
    st.text(max_size=8),
    st.text(min_size=300, max_size=300),
    st.dates(),
    st.datetimes(timezones=st.sampled_from([None, datetime.UTC])),
    st.binary(max_size=4),
)
keys = st.one_of(words, st.text(max_size=4), st.integers(-2, 5), st.booleans(), st.floats(allow_nan=False))
junk = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
)
mutations = st.lists(
    st.tuples(st.sampled_from(["delete", "replace", "add"]), st.sampled_from(PLACES), keys, junk),
    min_size=1,
    max_size=3,
)


def mutated(values: dict[str, Any], changes: list[tuple[str, tuple[Any, ...], Any, Any]]) -> dict[str, Any]:
    out = copy.deepcopy(values)
    for kind, place, key, value in changes:
        node: Any = out
        try:
            for part in place[:-1]:
                node = node[part]
            node[place[-1]]
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took this place away
        if isinstance(node, str | bytes):
            continue
        if kind == "delete":
            del node[place[-1]]
        elif kind == "replace":
            node[place[-1]] = value
        elif isinstance(node[place[-1]], dict):
            node[place[-1]][key] = value
        elif isinstance(node, dict):
            node[key] = value
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    write_shards(digits(), folder / "storage" / "datasets" / "digits", 1)
    teacher = {k: v for k, v in VALID.items() if k in ("data", "net", "train")}
    (folder / "edm.yaml").write_text(yaml.safe_dump({**teacher, "name": "edm", "objective": {"name": "edm"}}))
    return folder


def planned_or_told(path: Path, overrides: list[str], storage: Path) -> bool:
    """Whether it plans; asserts that it is told in one line otherwise, and that nothing is begun or written."""
    told, before = None, sorted(storage.rglob("*"))
    try:
        plan_experiment(path, overrides, storage)
    except CmrayError as error:
        told = str(error)
    assert told is None or len(told.splitlines()) == 1, repr(told)
    assert sorted(storage.rglob("*")) == before
    return told is None


@pytest.mark.parametrize("file", sorted(FILES))
def test_the_files_that_are_mutated_are_valid(folder, file):
    (folder / "x.yaml").write_text(yaml.safe_dump(FILES[file]))
    assert planned_or_told(folder / "x.yaml", [], folder / "storage")


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(file=st.sampled_from(sorted(FILES)), changes=mutations)
@example(file="cd", changes=[("replace", ("teacher", "overrides"), "", {"seed": datetime.date(2020, 1, 1)})])
@example(file="cd", changes=[("replace", ("teacher", "experiment"), "", "fuzz.yaml")])
@example(file="cd", changes=[("replace", ("data", "name"), "", "digit")])
@example(file="cd", changes=[("replace", ("panels", "c", "random", "count"), "", 10**15)])
@example(file="cd", changes=[("replace", ("teacher", "experiment"), "", "a" * 300)])
@example(file="cd", changes=[("replace", ("data",), "", {"path": "a" * 300})])
@example(file="cd", changes=[("replace", ("data",), "", {"path": "a\0b"})])
@example(file="cd", changes=[("replace", ("teacher",), "", {"checkpoint": "a" * 300})])
@example(file="pd", changes=[("replace", ("objective", "num_sigmas", "start"), "", 2**100)])
@example(file="pd", changes=[("replace", ("objective", "num_sigmas", "stage_steps"), "", 10**30)])
@example(file="ict", changes=[("replace", ("net", "multipliers"), "", [1] * 20_000)])
@example(file="ict", changes=[("replace", ("net", "resample_filter"), "", [1e308, 1e308])])
@example(file="ict", changes=[("replace", ("objective", "distance"), "", {"name": "lpips", "weights": "a\0b"})])
@example(file="ict", changes=[("replace", ("objective", "distance"), "", {"name": "lpips", "weights": "~x" * 300})])
def test_a_mutated_file_plans_or_is_told(folder, file, changes):
    path = folder / "fuzz.yaml"
    path.write_text(yaml.safe_dump(mutated(FILES[file], changes), allow_unicode=True), encoding="utf-8")
    planned_or_told(path, [], folder / "storage")


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(
    max_examples=1000,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(file=st.sampled_from(sorted(FILES)), changes=mutations)
def test_a_thousand_mutated_files_plan_or_are_told(folder, file, changes):
    path = folder / "thousand.yaml"
    path.write_text(yaml.safe_dump(mutated(FILES[file], changes), allow_unicode=True), encoding="utf-8")
    planned_or_told(path, [], folder / "storage")


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    file=st.sampled_from(sorted(FILES)),
    place=st.sampled_from(PLACES),
    text=st.text(max_size=12) | words | junk.map(lambda v: yaml.safe_dump(v)),
)
@example(file="cd", place=("seed",), text="1" * 5000)
@example(file="cd", place=("seed",), text='"\\ud800"')
@example(file="cd", place=("data", "name"), text='"\\ud800"')
@example(file="cd", place=("seed",), text="2020-99-99")
def test_a_set_of_anything_plans_or_is_told(folder, file, place, text):
    (folder / "set.yaml").write_text(yaml.safe_dump(FILES[file]))
    planned_or_told(folder / "set.yaml", [f"{'.'.join(map(str, place))}={text}"], folder / "storage")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(max_size=60) | st.binary(max_size=40))
@example('a: "\\ud800"\n"\\udfff": 1')
def test_any_text_is_read_or_told(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with contextlib.suppress(CmrayError):
        load_raw(path)
    planned_or_told(path, [], path.parent / "nowhere")
