"""What one process trains: the update it claims, a resume that leaves no trace, and errors that say what to change."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_run import CPU, checkpoint, digits, go, small, teacher_checkpoint
from train_worker import StopsAt

from cmray.config.checkpoint_facts import read_checkpoint_facts
from cmray.config.run import RunConfig
from cmray.core.errors import CheckpointError, CmrayError
from cmray.core.precond import Denoiser, make_precond
from cmray.core.rng import torch_generator
from cmray.datasets import ImageDataset
from cmray.engine.batches import ResidentBatches
from cmray.engine.loop import TrainingError, clear_trial
from cmray.engine.model import load_model
from cmray.engine.session import PlainSession
from cmray.engine.state import TrainState
from cmray.objectives import Roles, objectives
from cmray.tracking.events import read_events

#: what an objective whose stages fill a run needs in one of two steps
SHORT = {"pd": {"num_sigmas": {"name": "halving", "start": 1}}, "ect": {"stages": 2}}
PARTS = ("student.safetensors", "target.safetensors", "ema-0.999.safetensors", "optimizer.safetensors")


def hashes(folder: Path) -> dict[str, str]:
    facts = read_checkpoint_facts(checkpoint(folder))
    return {"step": str(facts.step), "nimg": str(facts.nimg), **facts.files}


def by_step(folder: Path) -> list:
    """The log by step: points of the curve are written when they are there, perhaps behind later steps."""
    return sorted(read_events(folder / "events.jsonl"), key=lambda event: event.step)


def stopping(calls: int) -> PlainSession:
    return StopsAt(PlainSession(CPU), 0, calls)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return teacher_checkpoint(tmp_path_factory.mktemp("teacher"), {"train.steps": 3})


# ---------------------------------------------------------------- the update


def by_hand(run: RunConfig) -> dict[str, dict[str, torch.Tensor]]:
    """The run written out with plain modules, torch's optimizer and averages updated by their formulas."""
    torch.manual_seed(0)
    state = TrainState(run, (1, 8, 8), 10, None, PlainSession(CPU))  # for the first weights only
    student = state._new_net()
    target = state._new_net()
    average = {k: v.detach().clone() for k, v in student.named_parameters()}
    precond = make_precond(run.objective.precond, run.noise.sigma_data, run.noise.sigma_min)
    config = run.train.optimizer
    optimizer = torch.optim.Adam(student.parameters(), lr=1.0, betas=config.betas, eps=config.eps)
    batches = ResidentBatches(digits(), run.train.batch_size, run.seed, CPU)
    rate = run.train.ema[0]
    for step in range(run.train.steps):
        x0, _ = batches.batch(step, 0, 1)
        generator = torch_generator(CPU, "train", run.seed, step, 0)
        roles = Roles(Denoiser(student, precond), Denoiser(target, precond), None)
        optimizer.zero_grad()
        state.objective.loss(roles, x0, None, step, generator).loss.mean().backward()
        if run.train.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(student.parameters(), run.train.grad_clip)
        warm = config.warmup_steps
        cosine = (1 + math.cos(math.pi * (step - warm) / (run.train.steps - warm))) / 2
        lr = (step + 1) / warm if step < warm else config.final_lr + (1 - config.final_lr) * cosine
        optimizer.param_groups[0]["lr"] = config.lr * lr
        optimizer.step()
        n = run.objective.num_sigmas.num_sigmas_at(step, run.train.steps)
        mu = run.objective.mu.mu_at(n, getattr(run.objective.num_sigmas, "s0", None))
        with torch.no_grad():
            for (name, s), t in zip(student.named_parameters(), target.parameters(), strict=True):
                t.copy_(mu * t + (1 - mu) * s)
                average[name] = rate * average[name] + (1 - rate) * s
    named = {"student": student, "target": target}
    return {**{k: dict(v.named_parameters()) for k, v in named.items()}, "ema-0.9": average}


@pytest.mark.parametrize("grad_clip", [None, 0.05])
@pytest.mark.parametrize(
    "schedules",
    [
        {"objective.mu": 0.7},
        {
            "objective.num_sigmas": {"name": "adaptive", "s0": 2, "s1": 30},
            "objective.mu": {"name": "adaptive", "mu0": 0.5},
        },
    ],
    ids=["fixed", "adaptive"],
)
def test_training_is_the_algorithm_written_out(tmp_path, grad_clip, schedules):
    run = small(
        {
            "train.optimizer": {"name": "adam", "lr": 0.02, "betas": [0.8, 0.9], "warmup_steps": 2, "final_lr": 0.1},
            "train.ema": [0.9],
            **schedules,
            "train.grad_clip": grad_clip,
            "train.steps": 7,
        }
    )
    go(run, tmp_path)
    expected = by_hand(run)
    for part, tensors in expected.items():
        found = load_file(checkpoint(tmp_path) / f"{part}.safetensors")
        assert set(found) == set(tensors)
        for name, tensor in tensors.items():
            torch.testing.assert_close(
                found[name], tensor.detach(), rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_student_target_and_averages_are_three_different_things(tmp_path):
    go(small({"train.ema": [0.9, 0.5], "objective.mu": 0.7}), tmp_path)
    loaded = [load_file(checkpoint(tmp_path) / f"{n}.safetensors") for n in ("student", "target", "ema-0.9", "ema-0.5")]
    flat = [torch.cat([v.reshape(-1) for v in part.values()]) for part in loaded]
    for i in range(4):
        for j in range(i):
            assert not torch.equal(flat[i], flat[j])


def test_every_rank_and_every_start_begins_with_the_same_weights_of_the_seed():
    def first(seed: int) -> torch.Tensor:
        torch.randn(3)  # the global generator must not matter
        return TrainState(small({"seed": seed}), (1, 8, 8), 10, None, PlainSession(CPU)).student.params.detach()

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


@pytest.mark.parametrize("name", objectives.names())
def test_every_objective_trains_two_real_steps(tmp_path, teacher, name):
    objective = {"name": name, **SHORT.get(name, {})}
    run = small({"objective": objective, "train.steps": 2, "teacher": {"checkpoint": str(teacher)}})
    outcome = go(run, tmp_path, teacher)
    assert outcome.status == "finished"
    assert outcome.result.steps == 2
    facts = read_checkpoint_facts(checkpoint(tmp_path))
    assert ("target.safetensors" in facts.files) == run.objective.needs_target
    state = TrainState(run, (1, 8, 8), 10, teacher, PlainSession(CPU))
    begin = state.student.params.detach().clone()
    state.load(facts, checkpoint(tmp_path))
    assert torch.isfinite(state.student.params).all()
    assert not torch.equal(begin, state.student.params)
    losses = [e.metrics["loss"] for e in read_events(tmp_path / "events.jsonl")]
    assert len(losses) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)


def test_a_distilled_student_starts_from_the_teachers_average(tmp_path, teacher):
    run = small({"objective": {"name": "cd"}, "teacher": {"checkpoint": str(teacher)}})
    state = TrainState(run, (1, 8, 8), 10, teacher, PlainSession(CPU))
    average = load_file(teacher / "ema-0.999.safetensors")
    for name, tensor in state.student.module.named_parameters():
        assert torch.equal(tensor, average[name])
    assert torch.equal(state.target.params, state.student.params.detach())


def test_a_class_conditional_net_is_given_the_labels(tmp_path):
    run = small({"net.class_conditional": True})
    go(run, tmp_path / "labels")
    whole = digits()
    shuffled = ImageDataset("d", "s", "t", whole.images, np.roll(whole.labels, 1), whole.classes)
    go(run, tmp_path / "other labels", data=shuffled)
    assert hashes(tmp_path / "labels") != hashes(tmp_path / "other labels")


def test_training_learns(tmp_path):
    run = small(
        {
            "objective": {"name": "edm"},
            "train.steps": 120,
            "train.batch_size": 64,
            "net.width": 32,
            "train.log_every": 20,
            "train.optimizer": {"name": "adam", "lr": 0.01},
        }
    )
    go(run, tmp_path)
    losses = [e.metrics["loss"] for e in read_events(tmp_path / "events.jsonl")]
    assert losses[-1] < 0.9 * losses[0]


def test_bf16_trains_near_fp32_with_float32_weights(tmp_path):
    go(small(), tmp_path / "fp32")
    go(small({"train.precision": "bf16"}), tmp_path / "bf16")
    one, two = (load_file(checkpoint(tmp_path / n) / "student.safetensors") for n in ("fp32", "bf16"))
    assert all(v.dtype == torch.float32 for v in two.values())
    a, b = (torch.cat([v.reshape(-1) for v in part.values()]) for part in (one, two))
    assert not torch.equal(a, b)
    assert (a - b).norm() / a.norm() < 0.02


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_teacher_and_the_target_run_in_the_precision_of_the_student(tmp_path, teacher, precision):
    run = small({"objective": {"name": "cd"}, "train.precision": precision, "teacher": {"checkpoint": str(teacher)}})
    state = TrainState(run, (1, 8, 8), 10, teacher, PlainSession(CPU))
    kinds: set[torch.dtype] = set()
    for net in (state.student.module, state.target.module):
        net.inp.register_forward_hook(lambda _m, _i, out: kinds.add(out.dtype))
    x, sigma = torch.full((2, 1, 8, 8), 0.3), torch.ones(2)
    with torch.no_grad():
        outs = [role(x, sigma, None) for role in (state.roles.student, state.roles.target, state.roles.teacher)]
    assert kinds == {torch.float32 if precision == "fp32" else torch.bfloat16}
    assert all(out.dtype == torch.float32 for out in outs)
    assert torch.equal(outs[2], load_model(teacher, CPU).denoise(x, sigma, None)) == (precision == "fp32")


def test_gradient_parts_average_to_the_whole_batch():
    """Each part draws its own noise, so accumulate=2 is not accumulate=1 bit for bit: it is its own trial. What must
    hold is that the gradient is the mean over the whole batch, part by part with the noise of that part."""
    run = small({"train.accumulate": 2, "train.batch_size": 8})
    state = TrainState(run, (1, 8, 8), 10, None, PlainSession(CPU))
    batches = ResidentBatches(digits(), 8, run.seed, CPU)
    losses = []
    for part in (0, 1):
        x0, _ = batches.batch(0, part, 2)
        generator = torch_generator(CPU, "train", run.seed, 0, part)
        losses.append(state.objective.loss(state.roles, x0, None, 0, generator).loss)
    torch.cat(losses).mean().backward()
    whole = state.student.params.grad.clone()

    from cmray.engine.loop import _Loop
    from cmray.tracking.events import EventLog

    fresh = TrainState(run, (1, 8, 8), 10, None, PlainSession(CPU))
    loop = _Loop(run, fresh, batches, PlainSession(CPU), EventLog(Path("/nonexistent/never-written")))
    loop.run = run.model_copy(update={"train": run.train.model_copy(update={"log_every": 100})})
    loop.one_step()
    torch.testing.assert_close(fresh.student.params.grad, whole, rtol=1e-5, atol=1e-7)


def test_clipping_bounds_the_gradient_and_the_log_tells_it_unclipped(tmp_path):
    changes = {"train.optimizer": {"name": "adam", "lr": 1e-9}, "train.steps": 1}
    go(small(changes), tmp_path / "free")
    free = read_events(tmp_path / "free" / "events.jsonl")[0].metrics["grad_norm"]
    run = small({**changes, "train.grad_clip": free / 10})
    go(run, tmp_path / "clipped")
    assert read_events(tmp_path / "clipped" / "events.jsonl")[0].metrics["grad_norm"] == free
    momenta = [
        load_file(checkpoint(tmp_path / n) / "optimizer.safetensors")["exp_avg"].norm() for n in ("free", "clipped")
    ]
    assert momenta[0] == pytest.approx(0.1 * free, rel=1e-4)  # exp_avg = (1 - beta1) g after one step
    assert momenta[1] == pytest.approx(0.1 * free / 10, rel=1e-4)
    loose = small({**changes, "train.grad_clip": free * 10})
    go(loose, tmp_path / "loose")
    assert hashes(tmp_path / "loose") == hashes(tmp_path / "free"), "a bound above the norm does nothing"


@pytest.mark.parametrize(
    ("changes", "step", "expected"),
    [
        ({}, 0, 1.0),
        ({}, 9, 1.0),
        ({"warmup_steps": 4}, 0, 0.25),
        ({"warmup_steps": 4}, 3, 1.0),
        ({"warmup_steps": 4}, 9, 1.0),
        ({"final_lr": 0.2}, 0, 1.0),
        ({"final_lr": 0.2}, 5, 0.6),
        ({"final_lr": 0.2}, 10, 0.2),
        ({"warmup_steps": 2, "final_lr": 0.0}, 6, 0.5),
        ({"warmup_steps": 10, "final_lr": 0.5}, 9, 1.0),
    ],
)
def test_the_learning_rate_warms_up_and_follows_a_cosine(changes, step, expected):
    run = small({"train.steps": 10, "train.optimizer": {"lr": 0.5, **changes}})
    state = TrainState(run, (1, 8, 8), 10, None, PlainSession(CPU))
    assert state.lr_at(step) == pytest.approx(0.5 * expected)


# ---------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    ("name", "optimizer"), [("ct", "radam"), ("cd", "radam"), ("edm", "radam"), ("ct", "adam"), ("edm", "adamw")]
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, teacher, name, optimizer):
    run = small(
        {
            "objective": {"name": name},
            "teacher": {"checkpoint": str(teacher)},
            "train.steps": 9,
            "train.optimizer": {"name": optimizer, "warmup_steps": 2, "final_lr": 0.1},
            "train.log_every": 1,
            "curve": {"every": 2, "num_samples": 8},
        }
    )
    go(run, tmp_path / "whole", teacher)
    for calls in (1, 3, 1):  # stopped after steps 1, 4 and 5
        assert go(run, tmp_path / "parts", teacher, session=stopping(calls)).status == "stopped"
        assert not (tmp_path / "parts" / "result.json").exists()
    outcome = go(run, tmp_path / "parts", teacher)
    assert outcome.status == "finished"
    assert hashes(tmp_path / "parts") == hashes(tmp_path / "whole")

    def logged(folder: str) -> list:
        kept = ("loss", "grad_norm", "lr", "fd/digits@1")
        events = by_step(tmp_path / folder)
        return [(e.kind, e.step, e.nimg, {k: v for k, v in e.metrics.items() if k in kept}) for e in events]

    assert logged("parts") == logged("whole")


def test_events_after_the_checkpoint_are_dropped_and_written_again_once(tmp_path):
    run = small({"train.steps": 8, "train.log_every": 1})
    go(run, tmp_path, session=stopping(3))
    log = tmp_path / "events.jsonl"
    line = log.read_text().splitlines()[-1]
    torn = line[: len(line) // 2]
    later = [line.replace('"step":3', f'"step":{step}') + "\n" for step in (4, 5)]  # the process was killed in step 6
    log.write_text(log.read_text() + "".join(later) + torn)
    go(run, tmp_path)
    assert [e.step for e in read_events(log)] == list(range(1, 9))
    go(run, tmp_path / "whole")
    losses = [[e.metrics["loss"] for e in read_events(f / "events.jsonl")] for f in (tmp_path, tmp_path / "whole")]
    assert losses[0] == losses[1]


def test_a_finished_run_is_not_trained_again(tmp_path):
    run = small()
    go(run, tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != "result.json"}
    first = json.loads((tmp_path / "result.json").read_text())
    outcome = go(run, tmp_path)
    assert (outcome.status, outcome.step) == ("finished", 6)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != "result.json"} == before
    assert json.loads((tmp_path / "result.json").read_text())["weights_sha256"] == first["weights_sha256"]


def test_clearing_a_trial_begins_anew(tmp_path):
    run = small()
    go(run, tmp_path)
    whole = hashes(tmp_path)
    clear_trial(tmp_path)
    assert not (tmp_path / "result.json").exists()
    go(run, tmp_path, session=stopping(2))
    assert [e.step for e in read_events(tmp_path / "events.jsonl")] == [1, 2]
    go(run, tmp_path)
    assert hashes(tmp_path) == whole


def test_a_checkpoint_of_another_network_is_refused_by_name(tmp_path):
    go(small({"net.width": 24}), tmp_path)
    with pytest.raises(CheckpointError, match=r"step-00000006 does not fit this run: .*shape") as error:
        go(small({"train.steps": 9}), tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="does not fit this run"):
        go(small({"train.steps": 9, "net.width": 24, "train.ema": [0.5]}), tmp_path)


@pytest.mark.parametrize(
    ("keep", "every", "expected"), [(1, 2, [7]), (2, 2, [6, 7]), (9, 3, [3, 6, 7]), (2, None, [6, 7])]
)
def test_the_wanted_number_of_checkpoints_is_kept_while_training(tmp_path, keep, every, expected):
    run = small({"train.steps": 10, "train.keep_checkpoints": keep, "train.checkpoint_every": every})
    go(run, tmp_path, session=stopping(7))
    assert [int(p.name[5:]) for p in sorted((tmp_path / "checkpoints").iterdir())] == expected


# ---------------------------------------------------------------- what is left behind


def test_a_run_leaves_its_config_events_and_result(tmp_path):
    run = small({"train.steps": 5, "train.log_every": 2, "curve": {"every": 2, "num_samples": 8, "nfe": [1, 2]}})
    outcome = go(run, tmp_path)
    assert RunConfig.model_validate(yaml.safe_load((tmp_path / "config.yaml").read_text())) == run
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == json.loads(outcome.result.model_dump_json())
    facts = read_checkpoint_facts(tmp_path / "checkpoints" / result["checkpoint"])
    assert result["weights_sha256"] == facts.weights_sha256 == facts.files["ema-0.999.safetensors"]
    assert (result["steps"], result["nimg"], result["world_size"]) == (5, 40, 1)
    assert result["seconds"] > 0
    events = by_step(tmp_path)
    assert [(e.kind, e.step, e.nimg) for e in events] == [
        ("train", 2, 16),
        ("curve", 2, 16),
        ("train", 4, 32),
        ("curve", 4, 32),
        ("train", 5, 40),
        ("curve", 5, 40),
    ]
    for event in events:
        if event.kind == "curve":
            assert set(event.metrics) == {"fd/digits@1", "fd/digits@2"}
            assert all(v > 0 for v in event.metrics.values())
        else:
            assert {"loss", "grad_norm", "lr", "images_per_second", "data_wait", "num_sigmas", "mu"} == set(
                event.metrics
            )
            assert 0 < event.metrics["data_wait"] < 1
    assert not list(tmp_path.rglob(".*")), "no half-written files"


def test_the_logged_loss_is_the_mean_since_the_last_line(tmp_path):
    go(small({"train.log_every": 1}), tmp_path / "each")
    go(small({"train.log_every": 3}), tmp_path / "third")
    each = [e.metrics["loss"] for e in read_events(tmp_path / "each" / "events.jsonl")]
    third = [e.metrics["loss"] for e in read_events(tmp_path / "third" / "events.jsonl")]
    assert third == pytest.approx([sum(each[:3]) / 3, sum(each[3:]) / 3], rel=1e-12)


def test_the_curve_changes_nothing_that_is_trained(tmp_path):
    go(small(), tmp_path / "without")
    go(small(curve={"every": 1, "num_samples": 8}), tmp_path / "with")
    assert hashes(tmp_path / "without") == hashes(tmp_path / "with")


def test_curve_points_are_reported_to_the_scheduler(tmp_path):
    class Listens(PlainSession):
        heard: list

        def report(self, step, metrics):
            self.heard.append((step, dict(metrics)))

    session = Listens(CPU)
    session.heard = []
    go(small(curve={"every": 4, "num_samples": 8}), tmp_path, session=session)
    curve = [(e.step, e.metrics) for e in read_events(tmp_path / "events.jsonl") if e.kind == "curve"]
    assert [step for step, _ in curve] == [4, 6], "at each interval and at the end"
    assert session.heard == curve


def test_an_exploding_run_ends_in_one_line_that_says_what_may_help(tmp_path):
    run = small({"train.optimizer": {"name": "adam", "lr": 1e10}, "train.steps": 50})
    with pytest.raises(TrainingError) as error:
        go(run, tmp_path)
    text = str(error.value)
    assert "\n" not in text
    assert "the loss is" in text
    assert "train.optimizer.lr" in text
    assert isinstance(error.value, CmrayError)
    assert not (tmp_path / "result.json").exists()


def test_shared_arrays_that_may_not_be_written_train_without_a_warning(tmp_path):
    images, labels = digits().images.copy(), digits().labels.copy()
    images.flags.writeable = labels.flags.writeable = False
    data = ImageDataset("digits", "all", "t", images, labels, digits().classes)
    run = small({"net.class_conditional": True}, curve={"every": 3, "num_samples": 8})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        go(run, tmp_path / "read-only", data=data)
    go(run, tmp_path / "usual")
    assert hashes(tmp_path / "read-only") == hashes(tmp_path / "usual")


def test_data_of_another_channel_count_and_without_labels_trains(tmp_path):
    rng = np.random.default_rng(0)
    data = ImageDataset("rgb", "s", "t", rng.integers(0, 256, (5, 3, 6, 4), dtype=np.uint8), None)
    for net in ({"name": "mlp", "width": 16, "depth": 1}, {"name": "unet", "channels": 4}):
        outcome = go(small({"net": net, "train.steps": 2}), tmp_path / net["name"], data=data)
        assert outcome.status == "finished"


def test_a_teacher_of_another_shape_is_refused(tmp_path, teacher):
    data = ImageDataset("rgb", "s", "t", np.zeros((5, 3, 6, 4), np.uint8), None)
    run = small({"objective": {"name": "cd"}, "teacher": {"checkpoint": str(teacher)}})
    with pytest.raises(CheckpointError, match=r"makes .* images, the data has"):
        go(run, tmp_path, teacher, data=data)
