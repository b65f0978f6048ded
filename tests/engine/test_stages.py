"""What a run carries beyond its networks: stages that replace the teacher, learned draws, constants, dropout masks."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_run import CPU, checkpoint, digits, go, small, teacher_checkpoint
from torch import nn
from train_worker import StopsAt

from cmray.config.checkpoint_facts import read_checkpoint_facts
from cmray.core.errors import CheckpointError
from cmray.engine.batches import ResidentBatches
from cmray.engine.flat import FlatModule
from cmray.engine.loop import _Loop
from cmray.engine.model import load_model
from cmray.engine.session import PlainSession
from cmray.engine.state import TrainState
from cmray.nn import NetConfig, nets
from cmray.tracking.events import EventLog, read_events

STEPS = 10  # start 4: stages of 4, 2 and 1 steps, 2, 4 and 4 training steps long


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return teacher_checkpoint(tmp_path_factory.mktemp("teacher"), {"train.steps": 3})


def pd_run(teacher: Path, **changes):
    objective = {"name": "pd", "num_sigmas": {"name": "halving", "start": 4}}
    values = {"objective": objective, "teacher": {"checkpoint": str(teacher)}, "train.steps": STEPS}
    return small(values | {"train.checkpoint_every": 1, "train.keep_checkpoints": 99, "train.log_every": 1} | changes)


def stepped(run, teacher, folder, steps):
    """The state after each step."""
    state = TrainState(run, digits().shape, 10, teacher, PlainSession(CPU))
    batches = ResidentBatches(digits(), run.train.batch_size, run.seed, CPU)
    loop = _Loop(run, state, batches, PlainSession(CPU), EventLog(folder / "events.jsonl"))
    for _ in range(steps):
        loop.one_step()
        yield state


def test_between_stages_the_student_becomes_the_teacher_and_the_optimizer_starts_anew(tmp_path, teacher):
    first = load_file(teacher / "ema-0.999.safetensors")
    taught = torch.cat([v.reshape(-1) for v in first.values()])
    seen = []
    for state in stepped(pd_run(teacher), teacher, tmp_path, STEPS):
        same = torch.equal(state.teacher.params, state.student.params)
        fresh = state.optimizer.steps == 0 and not state.optimizer.exp_avg.any()
        averaged = torch.equal(state.ema.averages[0.999], state.student.params)
        seen.append((same, fresh, averaged))
        if state.step == 1:
            names = [n for n, _ in state.teacher.module.named_parameters()]
            taught = torch.cat([first[n].reshape(-1) for n in names])
            assert torch.equal(state.teacher.params.detach(), taught)
    assert [all(flags) for flags in seen] == [k in (2, 6) for k in range(1, STEPS + 1)]
    assert not any(any(flags) for k, flags in enumerate(seen, 1) if k not in (2, 6))
    logged = [int(e.metrics["num_sigmas"]) - 1 for e in read_events(tmp_path / "events.jsonl")]
    assert logged == [4] * 2 + [2] * 4 + [1] * 4


@pytest.mark.parametrize("stop", [1, 2, 3, 6, 7], ids=lambda k: f"after {k}")
def test_a_run_in_stages_that_is_stopped_anywhere_goes_on_bit_for_bit(tmp_path, teacher, stop):
    run = pd_run(teacher)
    go(run, tmp_path / "whole", teacher)
    assert go(run, tmp_path / "parts", teacher, session=StopsAt(PlainSession(CPU), 0, stop)).step == stop
    facts = read_checkpoint_facts(checkpoint(tmp_path / "parts"))
    assert "teacher.safetensors" in facts.files
    go(run, tmp_path / "parts", teacher)
    files = [read_checkpoint_facts(checkpoint(tmp_path / n)).files for n in ("whole", "parts")]
    assert files[0] == files[1]


def test_a_teacher_of_another_data_scale_cannot_be_replaced_by_the_student(teacher):
    run = pd_run(teacher, **{"noise.sigma_data": 0.5})
    with pytest.raises(CheckpointError, match=r"sigma_data=0\.75.*sigma_data=0\.5"):
        TrainState(run, (1, 8, 8), 10, teacher, PlainSession(CPU))


def test_what_a_time_sampler_learned_survives_a_stop(tmp_path):
    objective = {"name": "ct", "num_sigmas": 3, "times": {"name": "loss-second-moment", "history": 2}}
    run = small({"objective": objective, "train.steps": 8, "train.checkpoint_every": 1, "train.log_every": 1})
    go(run, tmp_path / "whole")
    go(run, tmp_path / "parts", session=StopsAt(PlainSession(CPU), 0, 5))
    go(run, tmp_path / "parts")
    files = [read_checkpoint_facts(checkpoint(tmp_path / n)).files for n in ("whole", "parts")]
    assert files[0] == files[1]
    learned = load_file(checkpoint(tmp_path / "whole") / "objective.safetensors")
    assert int(learned["counts"].sum()) == 8 * run.train.batch_size


def test_accumulated_parts_teach_the_time_sampler_what_one_batch_teaches(tmp_path):
    """The parts draw other levels than the whole batch would, but the sampler sees all of them, once."""
    objective = {"name": "edm", "times": {"name": "loss-second-moment", "history": 1}}
    run = small({"objective": objective, "train.steps": 3, "train.accumulate": 4})
    go(run, tmp_path)
    learned = load_file(checkpoint(tmp_path) / "objective.safetensors")
    assert int(learned["counts"].sum()) == 3 * run.train.batch_size


# ---------------------------------------------------------------- constants


class WithConstant(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(2, 2)
        self.frequencies: torch.Tensor
        self.register_buffer("frequencies", torch.randn(3))


def test_buffers_that_belong_to_the_weights_travel_with_them():
    one, other = FlatModule(WithConstant(), trained=True), FlatModule(WithConstant(), trained=False)
    named = one.named(one.params)
    assert set(named) == {"lin.weight", "lin.bias", "frequencies"}
    other.load(named)
    assert torch.equal(other.module.frequencies, one.module.frequencies)
    third = FlatModule(WithConstant(), trained=False)
    third.copy_from(one)
    assert torch.equal(third.module.frequencies, one.module.frequencies)
    assert torch.equal(third.params, one.params)
    average = torch.zeros_like(one.params.detach())
    before = one.module.frequencies.clone()
    one.load({k: v + 1 for k, v in named.items()}, into=average)
    assert torch.equal(one.module.frequencies, before), "an average has no constants of its own"
    with pytest.raises(ValueError, match="frequencies has shape"):
        other.load(named | {"frequencies": torch.zeros(4)})
    with pytest.raises(KeyError, match="frequencies"):
        other.load({k: v for k, v in named.items() if k != "frequencies"})


# ---------------------------------------------------------------- dropout


@pytest.fixture(autouse=True, scope="module")
def drops():
    """Registered for this file only: other tests walk over every network there is."""
    nets.register("drops")(DropsConfig)
    yield
    del nets._classes["drops"]


class DropsConfig(NetConfig):
    """Keeps the masks it draws, for this file's tests."""

    dropout: float = 0.5

    def build(self, shape, num_classes):
        return Drops(self.dropout)


class Drops(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.drop = nn.Dropout(p)
        self.masks = []

    def forward(self, x, c_noise, label):
        kept = self.drop(torch.ones_like(x))
        self.masks.append(kept)
        return self.scale * x * kept


def masks_of(run, teacher=None):
    state = TrainState(run, digits().shape, 10, teacher, PlainSession(CPU))
    batches = ResidentBatches(digits(), run.train.batch_size, run.seed, CPU)
    for _ in range(2):
        for part in (0, 1):
            state.begin(part)
            x0, _ = batches.batch(0, part, 2)
            state.objective.loss(state.roles, x0, None, 0, torch.Generator().manual_seed(0)).mean().backward()
        state.step += 1
    return state


@pytest.mark.parametrize(
    "objective",
    [{"name": "ct"}, {"name": "ict"}, {"name": "ect", "init": "random", "stages": 1}],
    ids=lambda o: o["name"],
)
def test_student_and_target_see_the_same_mask_and_every_part_another(objective):
    run = small({"net": {"name": "drops"}, "objective": objective})
    state = masks_of(run)
    student = state.student.module.masks
    if state.target is None:  # the student is asked twice a part, once without gradients
        pairs = list(zip(student[::2], student[1::2], strict=True))
    else:
        pairs = list(zip(student, state.target.module.masks, strict=True))
    assert len(pairs) == 4
    assert all(torch.equal(a, b) for a, b in pairs)
    firsts = [a for a, _ in pairs]
    assert all(not torch.equal(a, b) for i, a in enumerate(firsts) for b in firsts[:i])
    assert 0.3 < (firsts[0] > 0).float().mean() < 0.7


def test_masks_are_those_of_the_step_whatever_was_drawn_before():
    run = small({"net": {"name": "drops"}, "objective": {"name": "ict"}})
    torch.manual_seed(1)
    first = masks_of(run).student.module.masks
    torch.manual_seed(2)
    torch.rand(5)
    assert all(torch.equal(a, b) for a, b in zip(first, masks_of(run).student.module.masks, strict=True))


def test_teachers_and_samples_are_not_dropped(tmp_path):
    run = small({"net": {"name": "drops"}, "objective": {"name": "edm"}, "train.steps": 1})
    go(run, tmp_path)
    model = load_model(checkpoint(tmp_path), CPU)
    model.denoise(torch.randn(4, 1, 8, 8), torch.ones(4), None)
    assert torch.equal(model.net.masks[-1], torch.ones(4, 1, 8, 8))
    student = small({"net": {"name": "drops"}, "objective": {"name": "cd"}, "teacher": {"checkpoint": "x"}})
    state = masks_of(student, checkpoint(tmp_path))
    assert all(bool((m == 1).all()) for m in state.teacher.module.masks)
