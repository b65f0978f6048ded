"""Trains with two workers on two nodes of a cluster, and alone with the same batches. Not a test: a test starts it.

usage: two_nodes.py ADDRESS OUT      writes OUT/0.pt, OUT/1.pt (by rank) and OUT/alone.pt
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PATHS = [str(HERE.parents[1]), str(HERE.parent), str(HERE)]
sys.path[:0] = PATHS

STEPS = 20
CHANGES = {"train.steps": STEPS, "train.batch_size": 64, "resources.workers": 2, "resources.min_workers": 1}


def trained(session: Any, out: Path) -> dict[str, Any]:
    """All that a process holds after its steps, and its part of the mean loss of each [STEPS]."""
    import torch
    from small_run import digits, small

    from cmray.engine.batches import open_batches
    from cmray.engine.loop import _Loop
    from cmray.engine.state import TrainState
    from cmray.tracking.events import EventLog

    torch.set_num_threads(1)
    run = small({**CHANGES, "train.log_every": 10**6})
    state = TrainState(run, digits().shape, 10, None, session)
    loop = _Loop(run, state, open_batches(run, digits(), session), session, EventLog(out / f"{session.rank}.jsonl"))
    sums = []
    for _ in range(STEPS - 1):
        loop.one_step()
        sums.append(float(loop.loss_sum))
    before = loop.loss_sum.clone()
    loop._log = lambda norm: None  # type: ignore[method-assign]  # at its end it would add up the ranks
    loop.one_step()
    sums.append(float(loop.loss_sum))
    assert float(before) < sums[-1]
    loss = torch.tensor([0.0, *sums], dtype=torch.float64).diff()
    assert state.target is not None
    weights = {"student": state.student.params.detach(), "target": state.target.params.detach()}
    return {**weights, **{f"ema {rate}": value for rate, value in state.ema.averages.items()}, "loss": loss}


def worker(config: dict[str, Any]) -> None:
    sys.path[:0] = config["paths"]
    import ray
    import torch
    from two_nodes import trained

    from cmray.cluster.work import TrainSession

    out = Path(config["out"])
    session = TrainSession(out, out)
    torch.save({**trained(session, out), "node": ray.get_runtime_context().get_node_id()}, out / f"{session.rank}.pt")


def main() -> None:
    import ray
    import ray.train
    import torch
    from ray.train.torch import TorchConfig, TorchTrainer

    from cmray.engine.session import PlainSession

    out = Path(sys.argv[2])
    ray.init(address=sys.argv[1], log_to_driver=False)
    TorchTrainer(
        worker,
        train_loop_config={"out": str(out), "paths": PATHS},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(name="two", storage_path=str(out / "ray")),
    ).fit()
    ray.shutdown()
    torch.save(trained(PlainSession(torch.device("cpu")), out), out / "alone.pt")


if __name__ == "__main__":
    main()
