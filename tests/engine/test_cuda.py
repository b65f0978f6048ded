"""What training promises on a GPU: equal masks, the CPU's losses, no waiting for the device, and a resume.

Everything takes its device as a parameter, so that without a GPU the same code runs on the CPU, where it means less.
A session with a GPU runs all of it with `pytest tests/engine/test_cuda.py -m ""`.
"""

import math
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_run import CPU, checkpoint, digits, go, small, teacher_checkpoint
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from train_worker import StopsAt

from cmray.core.precond import Denoiser
from cmray.engine.batches import ResidentBatches
from cmray.engine.curve import Curve, CurvePoints
from cmray.engine.loop import _Loop
from cmray.engine.session import PlainSession
from cmray.engine.state import TrainState
from cmray.nn import NetConfig, nets
from cmray.objectives import Roles, objectives
from cmray.tracking.events import EventLog, read_events

HERE = torch.cuda.is_available()
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not HERE, reason="needs a CUDA device, and torch finds none")]
NETS = {
    "mlp": {"name": "mlp", "width": 16, "depth": 1},
    "unet": {"name": "unet", "channels": 8, "multipliers": [1, 2], "attention_levels": [1], "head_width": 8},
    "adm": {
        "name": "adm",
        "channels": 32,
        "multipliers": [1, 1],
        "blocks": 1,
        "attention_resolutions": [4],
        "head_width": 16,
    },
    "ddpmpp": {
        "name": "ddpmpp",
        "channels": 16,
        "multipliers": [1, 1],
        "blocks": 1,
        "attention_resolutions": [4],
        "dropout": 0,
    },
}
#: what an objective needs in a run of two steps
SHORT = {"pd": {"num_sigmas": {"name": "halving", "start": 1}}, "ect": {"stages": 2}}


@pytest.fixture(params=["cpu", pytest.param("cuda:0", marks=needs_gpu)])
def device(request) -> torch.device:
    return torch.device(request.param)


def on(place: str, *values, slow=False):
    """Test parameters for one device."""
    marks = [*(needs_gpu if place != "cpu" else ()), *([pytest.mark.slow] if slow else ())]
    return pytest.param(torch.device(place), *values, marks=marks, id="-".join([place, *values]))


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("teachers")
    return {n: teacher_checkpoint(folder / n, {"net": v, "train.steps": 2}) for n, v in NETS.items()}


def configured(name: str, net: dict, teacher: Path | None, **changes):
    """A run of one objective; `teacher` is named whether it is used or not."""
    return small(
        {
            "net": net,
            "objective": {"name": name, **SHORT.get(name, {})},
            "teacher": {"checkpoint": str(teacher)},
            "train.steps": 2,
            "train.optimizer.lr": 1e-3,
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
    )


def state_of(run, device: torch.device, teacher: Path | None) -> TrainState:
    return TrainState(run, digits().shape, 10, teacher, PlainSession(device))


def batch_of(run, device: torch.device, step=0, part=0, parts=1) -> torch.Tensor:
    return ResidentBatches(digits(), run.train.batch_size, run.seed, device).batch(step, part, parts)[0]


def shaken(state: TrainState, scale=0.1, same=False) -> TrainState:
    """The state with other weights, because fresh networks answer zero, whose loss says nothing of them."""
    for seed, flat in enumerate((state.student, state.target, state.teacher)):
        if flat is not None:
            generator = torch.Generator().manual_seed(0 if same else seed)
            flat.params.data += scale * torch.randn(flat.params.shape, generator=generator).to(flat.params.device)
    return state


# ---------------------------------------------------------------- dropout


class MaskConfig(NetConfig):
    """A network whose output is the product of two dropout masks."""

    dropout: float = 0.3

    def build(self, shape, num_classes):
        return Mask(shape[0], self.dropout)


class Mask(nn.Module):
    def __init__(self, channels, p):
        super().__init__()
        self.ones = nn.Conv2d(channels, channels, 1)  # in the run's precision
        nn.init.zeros_(self.ones.weight)
        nn.init.ones_(self.ones.bias)
        self.drop = nn.Dropout(p)

    def forward(self, x, c_noise, label):
        first = self.drop(self.ones(x))
        return first * self.drop(self.ones(nn.functional.silu(first)))


@pytest.fixture
def mask_net():
    """Registered for one test: others walk over every network there is."""
    torch.compiler.reset()  # what was compiled for other tests counts towards the limit after which nothing is
    nets.register("mask")(MaskConfig)
    yield {"name": "mask"}
    del nets._classes["mask"]


def watched(denoise, seen: list[torch.Tensor]):
    """The same network, which leaves in `seen` where its output is not zero."""

    def net(*args):
        out = denoise.net(*args)
        seen.append(out.detach() != 0)
        return out

    return Denoiser(net, denoise.precond)


VARIANTS = {
    "fp32": {},
    "bf16": {"train__precision": "bf16"},
    "compile": {"train__compile": True},
    "bf16+compile": {"train__precision": "bf16", "train__compile": True},
}


@pytest.mark.parametrize("name", ["ct", "ict", "ect"])
@pytest.mark.parametrize(
    ("device", "variant"),
    [*(on("cpu", v, slow="compile" in v) for v in VARIANTS), *(on("cuda:0", v) for v in VARIANTS)],
)
def test_student_and_target_see_the_same_mask_and_every_step_and_part_another(device, variant, name, mask_net):
    run = configured(name, mask_net, None, **VARIANTS[variant])
    if name == "ect":
        run = small({"net": mask_net, "objective": {"name": "ect", "init": "random", "stages": 1}})
        run = run.model_copy(update={"train": configured("ct", mask_net, None, **VARIANTS[variant]).train})
    state = state_of(run, device, None)
    assert (state.target is None) == (name != "ct"), "with mu = 0 the student is asked twice"
    seen: list[torch.Tensor] = []
    target = None if state.target is None else watched(state.roles.target, seen)
    roles = Roles(student=watched(state.roles.student, seen), target=target)
    for _ in range(2):
        for part in (0, 1):
            state.begin(part)
            generator = torch.Generator(device=device).manual_seed(0)
            state.objective.loss(roles, batch_of(run, device), None, 0, generator).mean().backward()
        state.step += 1
    pairs = list(zip(seen[::2], seen[1::2], strict=True))  # the goal without gradients, then the student with them
    assert len(pairs) == 4
    assert all(torch.equal(a, b) for a, b in pairs)
    firsts = [a for a, _ in pairs]
    assert all(not torch.equal(a, b) for i, a in enumerate(firsts) for b in firsts[:i])
    assert all(0.3 < float(a.float().mean()) < 0.7 for a in firsts)
    assert all(a.device == device for a in firsts)


WHOLE = [
    *(on("cpu", n, v, c) for n in ("adm", "ddpmpp") for v in ("fp32", "bf16") for c in ("once", "twice")),
    on("cpu", "ddpmpp", "compile", "once", slow=True),
    on("cpu", "ddpmpp", "compile", "twice", slow=True),
    *(on("cuda:0", n, v, c) for n in ("adm", "ddpmpp") for v in VARIANTS for c in ("once", "twice")),
]


@pytest.mark.parametrize(("device", "net", "variant", "activations"), WHOLE)
def test_in_a_whole_network_the_same_mask_gives_the_same_output(device, net, variant, activations):
    """With and without gradients, which may take other kernels: hence a tolerance, far below what a mask changes."""
    torch.compiler.reset()
    values = {**NETS[net], "dropout": 0.5, "activation_checkpointing": activations == "twice"}
    state = shaken(state_of(configured("ct", values, None, **VARIANTS[variant]), device, None), same=True)
    x = torch.randn((8, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(device)
    sigma = torch.full((8,), 2.0, device=device)
    state.begin(0)
    student = state.roles.student(x, sigma, None)
    with torch.no_grad():
        target = state.roles.target(x, sigma, None)
        state.begin(1)
        other = state.roles.student(x, sigma, None)
    near = 3e-2 if "bf16" in variant else 1e-3
    spread = student.std()
    assert ((student - target).abs().max() / spread) < near
    assert ((student - other).abs().max() / spread) > 10 * near
    assert student.requires_grad
    assert not target.requires_grad


# ---------------------------------------------------------------- two steps, and the loss of the CPU


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", objectives.names())
@pytest.mark.parametrize(("device", "net"), [on("cpu", "unet"), *(on("cuda:0", net) for net in NETS)])
def test_two_real_steps_of_every_objective_are_finite(device, net, name, precision, tmp_path, teachers):
    run = configured(name, NETS[net], teachers[net], train__precision=precision)
    go(run, tmp_path, teachers[net], session=PlainSession(device))
    metrics = [e.metrics for e in read_events(tmp_path / "events.jsonl")]
    assert len(metrics) == 2
    assert all(math.isfinite(m["loss"]) and math.isfinite(m["grad_norm"]) for m in metrics)
    assert metrics[1]["grad_norm"] > 0
    saved = load_file(checkpoint(tmp_path) / "student.safetensors")
    assert all(value.isfinite().all() for value in saved.values())


class DrawnOnTheCPU(TorchFunctionMode):
    """Whatever is drawn with a generator is drawn on the CPU and moved, so that all devices get the same numbers."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        asked = kwargs.get("generator")
        if asked is None:
            return func(*args, **kwargs)
        kwargs["generator"] = self.generator
        if "device" in kwargs:
            kwargs["device"] = CPU
        args = [a.cpu() if isinstance(a, torch.Tensor) else a for a in args]
        return func(*args, **kwargs).to(asked.device)


def first_step(run, device: torch.device, teacher: Path):
    """(losses [B], flat gradient [P]) of step 0 on the CPU, with draws that do not depend on the device."""
    state = shaken(state_of(run, device, teacher))
    state.begin(0)
    x0 = batch_of(run, device)
    with DrawnOnTheCPU():
        loss = state.objective.loss(state.roles, x0, None, 0, torch.Generator(device=device))
    loss.mean().backward()
    return loss.loss.detach().cpu(), state.student.params.grad.cpu()


#: largest relative error of a sample's loss, and of the gradient. Two sets of CPU kernels differ by up to 2e-6 here.
#: Devices may round ln sigma in two ways: one ulp, which adm embeds times 1000, moves adm by 6e-5, others by 2e-6.
TOLERANCE = {"adm": 1e-3, "mlp": 3e-4, "unet": 3e-4, "ddpmpp": 3e-4}


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
@pytest.mark.parametrize("name", objectives.names())
@pytest.mark.parametrize(("device", "net"), [on("cpu", "unet"), on("cpu", "ddpmpp"), *(on("cuda:0", n) for n in NETS)])
def test_the_first_loss_and_gradient_in_fp32_are_those_of_the_cpu(device, net, name, teachers, monkeypatch):
    """Of the CPU's plain kernels, so that on the CPU itself two sets of kernels are compared."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert not torch.backends.cuda.matmul.allow_tf32
    run = configured(name, NETS[net], teachers[net])
    losses, gradient = first_step(run, device, teachers[net])
    with torch.backends.mkldnn.flags(enabled=False):
        expected, slope = first_step(run, CPU, teachers[net])
    assert expected.std() > 0
    assert losses.dtype == torch.float32
    scale = expected.abs().clamp(min=1e-3 * float(expected.abs().max()))
    assert float(((losses - expected).abs() / scale).max()) < TOLERANCE[net]
    assert float((gradient - slope).norm() / slope.norm()) < TOLERANCE[net]


# ---------------------------------------------------------------- waiting for the device


class NoQuestions(TorchDispatchMode):
    """Refuses every operation that asks a tensor for its values, which on a GPU waits for all that was started."""

    ASKS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "repeat_interleave")
    INDEXES = ("index", "index_put", "index_put_", "_unsafe_index")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in self.INDEXES and any(i is not None and i.dtype == torch.bool for i in args[1])
        asks = by_mask or name in self.ASKS
        assert not asks, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


class WaitingIsAnError:
    """CUDA's own watch: an operation that waits for the device raises."""

    def __enter__(self):
        torch.cuda.synchronize()
        self.before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_):
        torch.cuda.set_sync_debug_mode(self.before)


def watch(device: torch.device):
    """Context in which waiting for the device is an error."""
    return WaitingIsAnError() if device.type == "cuda" else NoQuestions()


WITHOUT_WAITING = ["edm", "cd", "ct", "ict", "ect"]


@pytest.mark.parametrize("name", WITHOUT_WAITING)
@pytest.mark.parametrize(
    ("device", "optimizer", "variant"),
    # radam keeps its step count on the CPU and reads it there, which waits for nothing but looks the same
    [on("cpu", "adam", "fp32"), *(on("cuda:0", o, v) for o in ("adam", "radam") for v in ("fp32", "bf16"))],
)
def test_between_log_points_a_step_does_not_wait_for_the_device(device, optimizer, variant, name, tmp_path, teachers):
    run = configured(
        name,
        {**NETS["ddpmpp"], "dropout": 0.1},
        teachers["ddpmpp"],
        train__steps=100,
        train__log_every=100,
        train__accumulate=2,
        train__grad_clip=1.0,
        train__optimizer__name=optimizer,
        **VARIANTS[variant],
    )
    state = state_of(run, device, teachers["ddpmpp"])
    batches = ResidentBatches(digits(), run.train.batch_size, run.seed, device)
    loop = _Loop(run, state, batches, PlainSession(device), EventLog(tmp_path / "events.jsonl"))
    for _ in range(3):  # grids, optimizer state and kernels are made once
        loop.one_step()
    before = state.student.params.detach().clone()
    with watch(device):
        for _ in range(4):
            loop.one_step()
    assert state.step == 7
    assert not torch.equal(state.student.params, before)
    assert not (tmp_path / "events.jsonl").exists()
    loop.check_finite(float(loop.loss_sum))


def test_what_watches_for_waiting_sees_it(device):
    values = torch.arange(4.0, device=device)
    asks = [lambda: float(values.sum()), lambda: values[values > 1], lambda: bool((values > 1).any())]
    for ask in asks:
        with pytest.raises((AssertionError, RuntimeError), match=r"waits for the device|synchroniz"), watch(device):
            ask()


# ---------------------------------------------------------------- going on


@pytest.mark.parametrize("variant", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["radam", "adam"])
def test_a_run_that_was_stopped_goes_on_from_its_checkpoint(device, optimizer, variant, tmp_path):
    run = configured(
        "ct",
        {**NETS["ddpmpp"], "dropout": 0.1},
        None,
        train__steps=8,
        train__log_every=1,
        train__checkpoint_every=2,
        train__optimizer__name=optimizer,
        **VARIANTS[variant],
    )
    go(run, tmp_path / "whole", session=PlainSession(device))
    assert go(run, tmp_path / "parts", session=StopsAt(PlainSession(device), 0, 5)).step == 5
    outcome = go(run, tmp_path / "parts", session=PlainSession(device))
    assert (outcome.status, outcome.step) == ("finished", 8)
    events = [read_events(tmp_path / name / "events.jsonl") for name in ("whole", "parts")]
    assert [[e.step for e in each] for each in events] == [list(range(1, 9))] * 2
    near = {"rtol": 0, "atol": 0}
    if device.type == "cuda":  # sums are in an order of their own in each run
        near = {"rtol": 1e-3, "atol": 1e-5} if variant == "fp32" else {"rtol": 2e-2, "atol": 1e-3}
    for path in sorted(checkpoint(tmp_path / "whole").glob("*.safetensors")):
        one, two = load_file(path), load_file(checkpoint(tmp_path / "parts") / path.name)
        torch.testing.assert_close(two, one, **near)
    for one, two in zip(*events, strict=True):
        assert two.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=max(near["rtol"], 1e-12))


@pytest.mark.parametrize(
    ("first", "then"),
    [pytest.param("cuda:0", "cpu", marks=needs_gpu), pytest.param("cpu", "cuda:0", marks=needs_gpu)],
)
@pytest.mark.parametrize("optimizer", ["radam", "adam"])
def test_a_checkpoint_of_one_device_goes_on_at_another(first, then, optimizer, tmp_path):
    run = configured("ct", NETS["unet"], None, train__steps=6, train__log_every=1, train__optimizer__name=optimizer)
    assert go(run, tmp_path, session=StopsAt(PlainSession(torch.device(first)), 0, 3)).step == 3
    assert go(run, tmp_path, session=PlainSession(torch.device(then))).status == "finished"
    events = read_events(tmp_path / "events.jsonl")
    assert [e.step for e in events] == list(range(1, 7))
    assert all(math.isfinite(e.metrics["loss"]) for e in events)


# ---------------------------------------------------------------- the curve beside the training


def test_a_point_is_taken_without_waiting_and_measured_while_its_weights_change(device, tmp_path):
    changes = {"train__steps": 100, "train__log_every": 100}
    run = configured("ct", NETS["ddpmpp"], None, curve={"every": 10, "num_samples": 300, "nfe": [1, 2]}, **changes)
    state = shaken(state_of(run, device, None))
    average = state.ema.averages[run.train.ema[0]]
    average.copy_(state.student.params.detach())
    curve = Curve(state, digits())
    curve.take(state)
    expected = curve.measure()
    with watch(device):
        curve.take(state)
    batches = ResidentBatches(digits(), run.train.batch_size, run.seed, device)
    loop = _Loop(run, state, batches, PlainSession(device), EventLog(tmp_path / "events.jsonl"))
    found = []
    with closing(CurvePoints(curve, found.append)) as points:
        for _ in range(2):
            points.start(state)
            average.mul_(1.5)  # on the trainer's stream, as its steps are
            for _ in range(3):
                loop.one_step()
            points.wait()
    assert [event.step for event in found] == [0, 3]
    first, second = (event.metrics for event in found)
    assert first == pytest.approx(expected, rel=1e-12 if device.type == "cpu" else 1e-3)
    assert all(second[name] != pytest.approx(value, rel=1e-2) for name, value in first.items())


def test_a_run_draws_its_curve_on_either_device(device, tmp_path):
    run = configured("ct", NETS["unet"], None, train__steps=6, curve={"every": 2, "num_samples": 300, "nfe": [1, 2]})
    go(run, tmp_path, session=PlainSession(device))
    points = [e for e in read_events(tmp_path / "events.jsonl") if e.kind == "curve"]
    assert [e.step for e in points] == [2, 4, 6]
    assert all(math.isfinite(value) for e in points for value in e.metrics.values())
