"""A process that trains what a JSON file lists, alone or as one of torchrun's. Not a test: tests start it.

usage: train_worker.py JOBS.json OUT      writes OUT/rank-R.json and OUT/*-rank-R.pt
"""

import json
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from small_run import CPU, digits, small_values

from cmray.config.run import RunConfig
from cmray.engine import loop as loops
from cmray.engine.batches import ResidentBatches
from cmray.engine.flat import FlatModule, GradientExchange
from cmray.engine.loop import _Loop, train
from cmray.engine.session import PlainSession, plain_session, prepare_process
from cmray.engine.spent import Cost, CostMeter
from cmray.engine.state import TrainState
from cmray.tracking.events import EventLog


class StopsAt(PlainSession):
    """Is asked to stop once, on one rank, when it is asked for the n-th time."""

    def __init__(self, of: PlainSession, rank: int, calls: int):
        super().__init__(of.device, of.rank, of.world_size)
        self.left = calls if of.rank == rank else 10**9

    def should_stop(self) -> bool:
        self.left -= 1
        return self.left <= 0


class Watches(PlainSession):
    """Notes which threads there are, whenever it is asked whether to stop."""

    def __init__(self, of: PlainSession):
        super().__init__(of.device, of.rank, of.world_size)
        self.of, self.threads = of, set[str]()

    def should_stop(self) -> bool:
        self.threads |= {thread.name for thread in threading.enumerate()}
        return self.of.should_stop()


def params_of_every_rank(run: RunConfig, session: PlainSession, out: Path, name: str) -> None:
    """The student of this rank after the run's steps, kept by this rank: train() saves that of rank 0 only."""
    state = TrainState(run, digits().shape, 10, None, session)
    batches = ResidentBatches(digits(), run.train.batch_size, run.seed, CPU)
    loop = _Loop(run, state, batches, session, EventLog(out / f"{name}-events-{session.rank}.jsonl"))
    for _ in range(run.train.steps):
        loop.one_step()
    saved = {"student": state.student.params.detach(), "target": state.target.params.detach(), **state.ema.averages}
    torch.save(saved, out / f"{name}-rank-{session.rank}.pt")


def gradients(session: PlainSession, out: Path) -> None:
    """Exchanged gradients beside the local ones, for buckets of several sizes, an unused parameter, and a jvp."""
    found = {}
    for bucket_bytes in (1, 200, 10**9):
        torch.manual_seed(0)
        net = torch.nn.ModuleDict(
            {
                "a": torch.nn.Linear(3, 5),
                "unused": torch.nn.Linear(2, 2),
                "b": torch.nn.Linear(5, 3),
                "only on rank 0": torch.nn.Linear(3, 3),
            }
        )

        def forward(x, net=net):
            h = net["b"](torch.tanh(net["a"](x)))
            return net["only on rank 0"](h) if session.rank == 0 else h

        flat = FlatModule(net, trained=True)
        exchange = GradientExchange(flat, bucket_bytes)
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(session.rank))
        for kind in ("plain", "jvp", "two parts"):
            for active in (False, True):  # the same gradient, kept here and exchanged
                flat.params.grad.zero_()
                exchange.active = active
                if kind == "plain":
                    forward(x).square().sum().backward()
                elif kind == "jvp":
                    value, tangent = torch.func.jvp(forward, (x,), (torch.ones_like(x),))
                    (value.square().sum() + tangent.square().sum()).backward()
                else:
                    exchange.active = False
                    forward(x[:2]).square().sum().backward()
                    exchange.active = active
                    forward(x[2:]).square().sum().backward()
                if active:
                    exchange.finish()
                found[f"{bucket_bytes} {kind} {'summed' if active else 'local'}"] = flat.params.grad.clone()
    torch.save(found, out / f"gradients-rank-{session.rank}.pt")


def spend(session: PlainSession, out: Path) -> None:
    """What the meter says when rank r has computed for 0.05 (r + 1) seconds."""
    cost = Cost()
    meter = CostMeter(cost, session, 0)
    end = time.process_time() + 0.05 * (session.rank + 1)
    while time.process_time() < end:
        pass
    meter.settle()
    (out / f"cost-rank-{session.rank}.json").write_text(json.dumps(asdict(cost)))


def agree(session: PlainSession, out: Path) -> None:
    """After which steps the ranks ask each other whether to stop, and at which they do when rank 1 is asked to.

    Steps are slow on rank 1 only; rank 0 waits for it in the exchange of gradients.
    """
    found = {}
    run = RunConfig.model_validate(small_values({"resources.workers": 2, "train.log_every": 500, "train.steps": 500}))
    for name, slow, patience, steps in (("fast", 0.0, 1e6, 50), ("slow", 0.05, 0.04, 5), ("between", 0.05, 0.5, 20)):
        loops.AGREE_SECONDS = patience
        state = TrainState(run, digits().shape, 10, None, session)
        batches = ResidentBatches(digits(), run.train.batch_size, run.seed, CPU)
        place = StopsAt(session, rank=1, calls=10**9)
        loop = _Loop(run, state, batches, place, EventLog(out / f"{name}-agree-{session.rank}.jsonl"))
        asked: list[int] = []
        while True:
            time.sleep(slow * session.rank)
            loop.one_step()
            if state.step == steps and session.rank == 1:
                place.left = 1
            before = place.left
            stop = loop.agreed_stop()
            if place.left < before:
                asked.append(state.step)
            if stop:
                break
        found[name] = asked
    (out / f"agree-rank-{session.rank}.json").write_text(json.dumps(found))


def main() -> None:
    jobs, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    prepare_process(1)
    outcomes = []
    with plain_session(CPU) as session, session.listening():
        for job in jobs:
            if job.get("what") == "gradients":
                gradients(session, out)
                continue
            if job.get("what") == "agree":
                agree(session, out)
                continue
            if job.get("what") == "cost":
                spend(session, out)
                continue
            run = RunConfig.model_validate(job["run"])
            if job.get("what") == "params":
                params_of_every_rank(run, session, out, job["name"])
                continue
            place = session  # which hears signals
            if "stop" in job:
                place = StopsAt(session, **job["stop"])
            elif session.world_size > 1:
                place = Watches(session)
            teacher = Path(job["teacher"]) if job.get("teacher") else None
            outcome = train(run, digits(), Path(job["folder"]), teacher, place)
            outcomes.append([outcome.status, outcome.step])
            if isinstance(place, Watches):
                (out / f"threads-rank-{session.rank}.json").write_text(json.dumps(sorted(place.threads)))
        (out / f"rank-{session.rank}.json").write_text(json.dumps(outcomes))
        if session.world_size > 1:
            dist.barrier()


if __name__ == "__main__":
    main()
