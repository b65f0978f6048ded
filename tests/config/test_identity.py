"""Every field of a run changes the trial's name and what is trained, or is on the list of those that do neither."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file
from small_run import checkpoint, digits, go, small_values, teacher_checkpoint

from cmray.config.identity import content_hash
from cmray.config.load import set_dotted
from cmray.config.run import RunConfig
from cmray.core.curricula import mu_schedules, num_sigmas_schedules
from cmray.core.distances import distances
from cmray.core.errors import CmrayError
from cmray.core.registry import ComponentConfig, Registry
from cmray.core.times import time_samplers
from cmray.nn.base import nets
from cmray.objectives import objectives
from cmray.solvers import solvers

#: where components sit in a run; a new kind of component is added here
PLACES: dict[str, Registry] = {
    "net": nets,
    "objective": objectives,
    "objective.solver": solvers,
    "objective.distance": distances,
    "objective.num_sigmas": num_sigmas_schedules,
    "objective.mu": mu_schedules,
    "objective.times": time_samplers,
}

#: the fields that do not count, and why that is safe
NOT_IDENTITY = {
    "data.name": "the digest counts",
    "data.path": "the digest counts",
    "data.dataset": "only what is said before the folder is there",
    "objective.distance.weights": "weights_sha256 counts",
    "data.feed": "data.shuffle_buffer, filled in where it streams, counts",
    "teacher.experiment": "the identity counts",
    "teacher.checkpoint": "the identity counts",
    "teacher.overrides": "the identity counts",
    "train.checkpoint_every": "only what is kept",
    "train.keep_checkpoints": "only what is kept",
    "train.log_every": "only what is logged",
    "net.activation_checkpointing": "only what is computed twice: no bit changes",
    "resources.cpus_per_worker": "only how fast",
    "resources.gpus_per_worker": "only how fast",
    "resources.min_workers": "only who takes which part of a batch",
    "resources.retries": "only how often it is tried",
}

#: every optional field filled in, so that nothing is hidden behind a null; adam, as radam's first steps use no eps;
#: a weight that depends on the noise level, so that the level it is taken at matters
FULL: dict[str, Any] = {
    "data.digest": "0" * 64,
    "objective.weight": "snr",
    "teacher": {"experiment": "/x/edm.yaml", "overrides": {"seed": 1}, "identity": "1" * 64},
    "train.steps": 4,
    "train.batch_size": 8,
    "train.grad_clip": 1.0,
    "train.checkpoint_every": 8,
    "train.log_every": 2,
    "train.optimizer": {"name": "adam", "lr": 0.01, "warmup_steps": 1, "final_lr": 0.5, "weight_decay": 0.1},
    "curve": {"every": 2, "num_samples": 20},
}

#: a grid that halves once in eight steps and then stays
HALVING: dict[str, Any] = {
    "objective": {"name": "pd", "num_sigmas": {"name": "halving", "start": 2, "end": 1, "stage_steps": 1}},
    "train.steps": 8,
    "curve.nfe": [1, 2],
}
#: a small net of each kind for 8x8 digits, with attention beside the middle
SMALL_NETS: dict[str, dict[str, Any]] = {
    "adm": {"channels": 32, "multipliers": [1, 1], "blocks": 1, "attention_resolutions": [4], "head_width": 16},
    "ddpmpp": {
        "channels": 8,
        "multipliers": [1, 1],
        "blocks": 1,
        "attention_resolutions": [4],
        "embedding": "fourier",
        "fourier_scale": 16.0,
    },
    "ncsnpp": {"channels": 8, "multipliers": [1, 1], "blocks": 1, "attention_resolutions": [4]},
    "unet": {"channels": 8, "multipliers": [1, 1], "attention_levels": [1], "head_width": 4},
}

#: what must hold beside a component for it to be allowed or to have an effect
BESIDE: dict[tuple[str, str], dict[str, Any]] = {
    **{
        ("objective", name): {"objective": {"name": name, "weight": "snr"}}
        for name, cls in objectives.classes().items()
        if "weight_at" in cls.model_fields and name != "ct"  # a level matters to this weight; ct has it from FULL
    },
    ("objective", "ect"): {"objective": {"name": "ect", "stages": 2}},
    ("objective", "pd"): HALVING,
    ("objective.num_sigmas", "halving"): HALVING,
    ("objective.mu", "adaptive"): {"objective.num_sigmas": {"name": "adaptive", "s0": 3, "s1": 20}},
    # few bins with a short memory, so that they are full after the first step, and of losses of a similar size
    ("objective.times", "loss-second-moment"): {
        "objective.weight": "uniform",
        "objective.num_sigmas": 3,
        "objective.times": {"name": "loss-second-moment", "history": 2},
    },
    **{("objective.solver", name): {"objective": {"name": "cd"}} for name in solvers.names()},
    **{("net", name): {"net": {"name": name, **values}} for name, values in SMALL_NETS.items()},
}

#: other values where the obvious ones are not allowed, or too small to be seen in a few steps; `path@component` is for
#: the field of that component only
OTHER: dict[str, Any] = {
    "data.shuffle_buffer": {"data.shuffle_buffer": 100},
    "objective.distance.weights_sha256": {"objective.distance.weights_sha256": "2" * 64},
    "data.name": {"data": {"path": "/x/digits", "digest": "0" * 64}},
    "data.path": {"data": {"path": "/x/digits", "digest": "0" * 64}},
    "data.dataset": {"data": {"path": "/x/digits", "digest": "0" * 64, "dataset": "mnist"}},
    "teacher.experiment": {"teacher.experiment": "/y/edm.yaml"},
    "teacher.checkpoint": {"teacher": {"checkpoint": "/y/c", "identity": "1" * 64}},
    "teacher.overrides": {"teacher.overrides": {"seed": 2}},
    "curve.nfe": {"curve.nfe": [1, 2]},
    "resources.workers": {"resources.workers": 2},
    "resources.min_workers": {"resources.min_workers": 1},
    "train.batch_size": {"train.batch_size": 16},
    "train.ema": {"train.ema": [0.9]},
    "train.optimizer.betas": {"train.optimizer.betas": [0.5, 0.9]},
    "train.optimizer.eps": {"train.optimizer.eps": 0.1},
    "train.grad_clip": {"train.grad_clip": 1e-3},
    "train.optimizer.weight_decay": {"train.optimizer.weight_decay": 100.0},
    "net.multipliers": {"net.multipliers": [1, 2]},
    "net.attention_levels": {"net.attention_levels": []},
    "net.head_width": {"net.head_width": 8},
    "net.channels": {"net.channels": 12},
    "net.channels@adm": {"net.channels": 64},
    "net.heads": {"net.heads": 4, "net.head_width": None},
    "net.attention_resolutions": {"net.attention_resolutions": []},
    "net.resample_filter": {"net.resample_filter": [1, 2, 2, 1]},
    "net.embedding@ddpmpp": {"net.embedding": "positional", "net.fourier_scale": None},
    "objective.distance.factor": {"objective.distance.factor": 0.5},
    "objective.num_sigmas.num_sigmas": {"objective.num_sigmas": 19},
    "objective.mu.mu": {"objective.mu": 0.5},
    "objective.num_sigmas.s1": {"objective.num_sigmas.s1": 40},
    "objective.num_sigmas.start": {"objective.num_sigmas.start": 1},
    "objective.num_sigmas.end": {"objective.num_sigmas.end": 2},
    # with few grid points all noise levels are above 1, where truncated-snr is uniform
    "objective.weight@pd": {"objective.weight": "snr"},
    "objective.q": {"objective.q": 4.0},
    "objective.distance.size": {"objective.distance.size": "native"},
    "objective.distance.weights": {"objective.distance.weights": "/x/vgg16.pth"},
    "objective.times.name@lognormal": {"objective.times": {"name": "uniform"}},
    # pd alone halves, and needs it
    "objective.num_sigmas.name@halving": None,
    # one extractor is registered: no other value to compare with
    "objective.distance.extractor": None,
    "curve.metric": None,
}


def base(place: str, name: str, **more: Any) -> dict[str, Any]:
    """The full run with component `name` at `place`."""
    values = small_values({"noise.sigma_data": None, **FULL})
    values["noise"] = {"sigma_data": 0.75, "sigma_min": 0.01}
    if place.startswith("objective.") and place != "objective.solver":
        set_dotted(values, "objective", {"name": "ct"})
    beside = BESIDE.get((place, name), {})
    for key, value in beside.items():
        if key == place:
            values.pop(key, None)
        set_dotted(values, key, value)
    if place == "objective" and place not in beside:
        values["objective"] = {"name": name}
    elif place not in beside:
        set_dotted(values, place, {"name": name})
    for key, value in more.items():
        set_dotted(values, key, value)
    return values


def leaves(model: BaseModel, prefix: str = "") -> dict[str, tuple[BaseModel, str]]:
    """Every field that is not itself a group of fields: dotted path -> (its model, its name)."""
    out = {}
    for key in type(model).model_fields:
        value = getattr(model, key)
        if isinstance(value, BaseModel):
            out |= leaves(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = (model, key)
    return out


def another(path: str, model: BaseModel, key: str) -> dict[str, Any] | None:
    """Dotted changes that give the field another allowed value; None when there is no other."""
    for known in (f"{path}@{getattr(model, 'name', None)}", path):
        if known in OTHER:
            return OTHER[known]
    value, info = getattr(model, key), type(model).model_fields[key]
    if info.examples:  # of a plug-in, which cannot be named in OTHER
        return {path: next(example for example in info.examples if example != value)}
    place = path.removesuffix(".name")
    if isinstance(model, ComponentConfig) and key == "name":
        other = next(n for n in PLACES[place].names() if n != value)
        beside = {k: v for k, v in BESIDE.get((place, other), {}).items() if not place.startswith(f"{k}.")}
        return {**beside, place: {"name": other}} if place not in beside else beside
    options = literal(info.annotation)
    if options:
        return {path: next(o for o in options if o != value)}
    if isinstance(value, bool):
        return {path: not value}
    if isinstance(value, int):
        return {path: value + 1}
    if isinstance(value, float):
        return {path: value * 0.5 if value else 0.25}
    if isinstance(value, str):
        return {path: value[:-1] + "2"}
    raise AssertionError(f"{path} = {value!r}: say in OTHER, or as the field's examples, what else it can be")


def literal(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if get_origin(annotation) is Union:
        return sum((literal(a) for a in get_args(annotation)), ())
    return ()


def every_field() -> list[tuple[str, str, str]]:
    """(place, component, path of the field) for every field of every component, each once."""
    seen: dict[str, tuple[str, str, str]] = {}
    # what every run has is looked at with the fastest net
    components = [("net", "mlp"), *((place, name) for place, registry in PLACES.items() for name in registry.names())]
    for place, name in components:
        run = RunConfig.model_validate(base(place, name))
        for path, (model, _) in leaves(run).items():
            owner = f"{path}@{model.name}" if isinstance(model, ComponentConfig) else path
            seen.setdefault(owner, (place, name, path))
    extra = ("data.path", "teacher.checkpoint")
    return [*seen.values(), *(("net", "mlp", path) for path in extra if path not in seen)]


def flipped(place: str, name: str, path: str) -> tuple[RunConfig, RunConfig] | None:
    values = base(place, name)
    run = RunConfig.model_validate(values)
    model, key = leaves(run)[path]
    changes = another(path, model, key)
    if changes is None:
        return None
    inner, _, field = path.rpartition(".")
    if inner in PLACES and inner.startswith("objective.") and field != "name":
        # an objective may have options of its own for a component, which naming the component would lose
        values["objective"][inner.partition(".")[2]] = model.model_dump(mode="json")
        assert RunConfig.model_validate(values) == run
    for k, value in changes.items():
        set_dotted(values, k, value)
    if path in ("data.name", "data.path", "data.dataset"):
        values["data"] = changes["data"]
    if path == "teacher.checkpoint":
        values["teacher"] = changes["teacher"]
    return run, RunConfig.model_validate(values)


FIELDS = every_field()


@pytest.mark.parametrize(("place", "name", "path"), FIELDS, ids=[f"{n}:{p}" for _, n, p in FIELDS])
def test_the_hash_changes_with_every_field_that_counts_and_with_no_other(place, name, path):
    both = flipped(place, name, path)
    if both is None:
        pytest.skip("there is one allowed value only")
    run, other = both
    assert run != other, "the test changed nothing"
    changed = content_hash(run) != content_hash(other)
    assert changed == (path not in NOT_IDENTITY), f"{path} {'changes' if changed else 'does not change'} the hash"


def test_the_walk_reaches_all_models_of_a_run():
    paths = {path for _, _, path in FIELDS}
    for wanted in (
        "seed",
        "data.digest",
        "net.width",
        "net.multipliers",
        "net.dropout",
        "net.fourier_scale",
        "noise.rho",
        "objective.times.P_std",
        "objective.times.history",
        "objective.num_sigmas.stage_steps",
        "objective.theta_minus",
        "objective.weight_at",
        "objective.distance.pooling",
        "objective.mu.mu0",
        "objective.distance.pixel_weight",
        "objective.solver.name",
        "teacher.identity",
        "train.optimizer.betas",
        "train.ema",
        "curve.nfe",
        "resources.workers",
    ):
        assert wanted in paths
    assert set(NOT_IDENTITY) <= paths


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return teacher_checkpoint(tmp_path_factory.mktemp("teacher"), {"train.steps": 2})


def fingerprint(run: RunConfig, folder: Path, teacher: Path) -> str:
    """What training leaves: weights, averages, targets, and the curve; not what helps to go on training."""
    go(run, folder, teacher)
    digest = hashlib.sha256()
    for path in sorted(checkpoint(folder).glob("*.safetensors")):
        if not path.name.startswith(("optimizer", "objective")):
            for tensor in load_file(path).values():
                digest.update(tensor.numpy().tobytes())
    for line in (folder / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["kind"] == "curve":
            digest.update(json.dumps([event["step"], event["metrics"]]).encode())
    return digest.hexdigest()


#: fields that are not seen, or not at once, in a single process's weights; each has a test of its own
ELSEWHERE = {
    "data.shuffle_buffer": "tests/engine/test_stream.py",
    "data.digest": "config/test_plan",
    "teacher.identity": "config/test_plan",
    "resources.workers": "engine/test_processes",
    "train.compile": "the slow test below: it rounds differently, which counts, and takes half a minute",
}
_BASES: dict[str, str] = {}


@pytest.mark.parametrize(
    ("place", "name", "path"),
    [f for f in FIELDS if f[2] not in NOT_IDENTITY and f[2] not in ELSEWHERE],
    ids=[f"{n}:{p}" for _, n, p in FIELDS if p not in NOT_IDENTITY and p not in ELSEWHERE],
)
def test_every_field_that_counts_changes_what_is_trained(place, name, path, tmp_path, teacher):
    both = flipped(place, name, path)
    if both is None:
        pytest.skip("there is one allowed value only")
    for run in both:
        try:
            if hasattr(run.objective, "distance"):
                run.objective.distance.check(digits().shape)
        except CmrayError as error:
            pytest.skip(str(error))
    runs = [r if path.startswith("curve") else r.model_copy(update={"curve": None}) for r in both]
    key = content_hash(runs[0])
    if key not in _BASES:
        _BASES[key] = fingerprint(runs[0], tmp_path / "a", teacher)
    assert fingerprint(runs[1], tmp_path / "b", teacher) != _BASES[key], f"{path} reaches nothing"


def test_the_fields_that_do_not_count_change_nothing_that_is_trained(tmp_path, teacher):
    values = base("objective", "ct", **{"train.log_every": 1})
    one = fingerprint(RunConfig.model_validate(values), tmp_path / "a", teacher)
    for key, value in (("train.checkpoint_every", 1), ("train.keep_checkpoints", 5), ("train.log_every", 4)):
        set_dotted(values, key, value)
    assert fingerprint(RunConfig.model_validate(values), tmp_path / "b", teacher) == one


@pytest.mark.parametrize("name", ["adm", "ddpmpp", "ncsnpp"])
def test_computing_activations_twice_changes_no_bit(name, tmp_path, teacher):
    values = base("net", name, **{"net.dropout": 0.3, "train.accumulate": 2})
    runs = [
        RunConfig.model_validate({**values, "net": {**values["net"], "activation_checkpointing": on}})
        for on in (False, True)
    ]
    one, two = (fingerprint(run, tmp_path / str(i), teacher) for i, run in enumerate(runs))
    assert one == two


@pytest.mark.slow
def test_compiling_changes_no_more_than_rounding(tmp_path, teacher):
    weights = []
    for on in (False, True):
        run = RunConfig.model_validate(base("net", "mlp", **{"train.compile": on}))
        go(run, tmp_path / str(on), teacher)
        weights.append(load_file(checkpoint(tmp_path / str(on)) / "student.safetensors"))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-5)


def test_the_hash_does_not_know_the_order_of_keys():
    values = base("objective", "ct")

    def reversed_keys(node: Any) -> Any:
        return {k: reversed_keys(node[k]) for k in reversed(node)} if isinstance(node, dict) else node

    backward = reversed_keys(values)
    assert list(backward) != list(values)
    assert content_hash(RunConfig.model_validate(backward)) == content_hash(RunConfig.model_validate(values))
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert content_hash([1, 2]) != content_hash([2, 1])


def test_a_value_written_out_is_the_default_and_shorthands_are_what_they_stand_for():
    plain = base("objective", "ct")
    written = base("objective", "ct")
    written["objective"] = {
        "name": "ct",
        "mu": {"name": "fixed", "mu": 0.95},
        "distance": {"name": "l2"},
        "num_sigmas": {"name": "fixed", "num_sigmas": 18},
        "weight": "uniform",
    }
    short = base("objective", "ct")
    short["objective"] = {"name": "ct", "mu": 0.95, "num_sigmas": 18, "distance": "l2"}
    hashes = {content_hash(RunConfig.model_validate(v)) for v in (plain, written, short)}
    assert len(hashes) == 1
    assert RunConfig.model_validate({**plain, "seed": 0.0}).seed == 0


def test_a_dumped_run_reads_back_as_itself():
    for place, name, _ in FIELDS:
        run = RunConfig.model_validate(base(place, name))
        again = RunConfig.model_validate(json.loads(json.dumps(run.model_dump(mode="json"))))
        assert again == run
        assert content_hash(again) == content_hash(run)
