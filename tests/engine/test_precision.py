"""bf16 trains every objective on every network: two real steps, with all that the forward derivative needs."""

import math

import pytest
import torch
from small_run import CPU, checkpoint, digits, go, small, teacher_checkpoint

from cmray.config.checkpoint_facts import read_checkpoint_facts
from cmray.engine.session import PlainSession
from cmray.engine.state import TrainState
from cmray.objectives import objectives
from cmray.tracking.events import read_events

NETS = {
    "mlp": {"name": "mlp", "width": 16, "depth": 1},
    "unet": {"name": "unet", "channels": 8, "multipliers": [1, 2], "attention_levels": [1], "head_width": 8},
    "adm": {"name": "adm", "channels": 32, "multipliers": [1, 1], "blocks": 1, "head_width": 16},
    "ddpmpp": {"name": "ddpmpp", "channels": 16, "multipliers": [1, 1], "blocks": 1, "dropout": 0.1},
}
SHORT = {"pd": {"num_sigmas": {"name": "halving", "start": 1}}, "ect": {"stages": 2}}
CASES = [(net, name, {}) for net in NETS for name in objectives.names()] + [
    (net, "cd-continuous", {"theta_minus": "student"}) for net in NETS
]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    return {n: teacher_checkpoint(folder / n, {"net": v, "train.steps": 1}) for n, v in NETS.items()}


@pytest.mark.parametrize(("net", "name", "more"), CASES, ids=["-".join([n, o, *m.values()]) for n, o, m in CASES])
def test_two_steps_in_bf16(tmp_path, teachers, net, name, more):
    run = small(
        {
            "net": NETS[net],
            "objective": {"name": name, **SHORT.get(name, {}), **more},
            "teacher": {"checkpoint": str(teachers[net])},
            "train.steps": 2,
            "train.precision": "bf16",
            "train.optimizer.lr": 1e-3,
        }
    )
    go(run, tmp_path, teachers[net])
    losses = [e.metrics["loss"] for e in read_events(tmp_path / "events.jsonl")]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    state = TrainState(run, digits().shape, 10, teachers[net], PlainSession(CPU))
    begin = state.student.params.detach().clone()
    state.load(read_checkpoint_facts(checkpoint(tmp_path)), checkpoint(tmp_path))
    assert state.student.params.dtype == torch.float32
    assert not torch.equal(begin, state.student.params)
