"""What a finished fig3 costs on the cluster of cluster.yaml, step by step: the table in docs/cluster.md.

    python analysis/cluster_cost.py
    python analysis/cluster_cost.py --experiment experiments/table1.yaml --price gpu=14.75 --efficiency 0.8

Nothing is asked of a cloud. GPU-hours are counted operations at an assumed speed (cmray/engine/cost.py), prices and
durations are the assumptions below; --price and the other options put yours in their place.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from cmray.config.checks import Missing
from cmray.config.plan import plan_experiment
from cmray.core.errors import CmrayError
from cmray.engine.cost import cost_of

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Price:
    """Dollars per hour of a machine, or per month of a GB."""

    dollars: float
    what: str
    source: str


#: list prices in us-east-1, before taxes. They were written down, not fetched: look them up before you rely on one.
PRICES = {
    "head": Price(0.40, "m7i.2xlarge, on demand, per hour", "AWS list price as remembered in 2025; check"),
    "cpu": Price(1.43, "c7i.8xlarge, on demand, per hour", "AWS list price as remembered in 2025; check"),
    "gpu": Price(21.96, "p4d.24xlarge (8 A100), on demand, per hour", "32.77 less the third that AWS took off in June "
                 "2025; check"),
    "gpu-spot": Price(11.00, "p4d.24xlarge (8 A100), spot, per hour", "half of on demand; it changes by the hour and "
                      "may not be there at all"),
    "disk": Price(0.08, "EBS gp3, per GB and month", "AWS list price; check"),
    "s3": Price(0.023, "S3 standard, per GB and month", "AWS list price; check"),
}  # fmt: skip

HOURS_A_MONTH = 730.0
#: GB of a machine's disk in cluster.yaml
DISK = 200.0


@dataclass(frozen=True)
class Assumed:
    """Durations (hours), sizes (GB) and shares that are not counted."""

    head_up: float = 0.15  # `ray up` until the head answers: 9 minutes, most of it for pip
    node_up: float = 0.15  # a worker, from being asked for until it has joined
    look: float = 0.1  # doctor, and a person who reads it
    smoke: float = 0.3  # the quickstart on one CPU node
    prepare: float = 0.2  # CIFAR-10: 170 MB to download, a minute to write
    idle: float = 10 / 60  # idle_timeout_minutes
    end: float = 0.5  # reading the report and copying it, before `ray down`
    gpus: int = 8  # of one machine
    efficiency: float = 0.9  # of 8 GPUs against one alone: waiting for each other, start-up, evaluation's tails
    repeated: float = 0.02  # of the work, after spot machines were taken away
    stored: float = 60.0  # GB in the bucket: checkpoints of 20 trials, samples, MLflow's files
    kept: float = 1.0  # months that they stay


@dataclass(frozen=True)
class Step:
    name: str
    hours: float
    machines: tuple[str, ...]  # that run all that time
    dollars: float


def steps_of(gpu_hours: float, assumed: Assumed, prices: dict[str, float], spot: bool) -> list[Step]:
    """From nothing to a finished experiment and back."""
    a, kind = assumed, "gpu-spot" if spot else "gpu"
    disk = DISK * prices["disk"] / HOURS_A_MONTH  # of each machine

    def step(name: str, hours: float, *machines: str) -> Step:
        return Step(name, hours, machines, hours * sum(prices[m] + disk for m in machines))

    training = gpu_hours / (a.gpus * a.efficiency) * (1 + (a.repeated if spot else 0.0))
    return [
        step("up: `ray up`", a.head_up, "head"),
        step("look: `cmray doctor`", a.look, "head"),
        step("try: the quickstart on a CPU node", a.node_up + a.smoke + a.idle, "head", "cpu"),
        step("data: `cmray data prepare`", a.prepare, "head"),
        step("start: the GPU node joins", a.node_up, "head", kind),
        step("run: the sweep on 8 GPUs", training, "head", kind),
        step("wait: the GPU node is idle, then gone", a.idle, "head", kind),
        step("read: report, MLflow; `ray down`", a.end, "head"),
        Step(f"keep: {a.stored:.0f} GB for {a.kept:g} month", 0.0, (), a.stored * a.kept * prices["s3"]),
    ]


def counted_gpu_hours(file: Path, storage: Path) -> float:
    """Of the whole file, whose dataset need not be there; to three digits, as nobody knows more."""
    return float(f"{cost_of(plan_experiment(file, [], storage, missing=Missing())).total:.3g}")


def money(value: float) -> str:
    """To the cent below ten dollars, else to three digits, as nobody knows more."""
    return f"{value:,.2f}" if value < 10 else f"{float(f'{value:.3g}'):,.0f}"


def hours(value: float) -> str:
    return "" if value == 0 else f"{value:.2f}" if value < 10 else f"{float(f'{value:.3g}'):,.0f}"


def cost_table(demand: list[Step], spot: list[Step]) -> str:
    """The steps side by side, as Markdown."""
    lines = ["| step | hours | on demand, $ | spot, hours | spot, $ |", "| :--- | ---: | ---: | ---: | ---: |"]
    for one, two in zip(demand, spot, strict=True):
        cells = (one.name, hours(one.hours), money(one.dollars), hours(two.hours), money(two.dollars))
        lines.append(f"| {' | '.join(cells)} |")
    totals = [f"**{f(sum(getattr(s, of) for s in steps))}**"
              for steps in (demand, spot) for f, of in ((hours, "hours"), (money, "dollars"))]  # fmt: skip
    return "\n".join([*lines, f"| **together** | {' | '.join(totals)} |"])


def price_table(prices: dict[str, float]) -> str:
    """The prices that were assumed, as Markdown."""
    lines = ["| | $ | what | source |", "| :--- | ---: | :--- | :--- |"]
    for name, price in PRICES.items():
        source = price.source if prices[name] == price.dollars else "given with --price"
        lines.append(f"| {name} | {prices[name]:g} | {price.what} | {source} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, default=ROOT / "experiments" / "fig3.yaml")
    parser.add_argument(
        "--gpu-hours", type=float, help="measured or counted elsewhere, instead of counting --experiment"
    )
    parser.add_argument("--price", action="append", default=[], metavar="NAME=DOLLARS", help=", ".join(PRICES))
    parser.add_argument(
        "--efficiency", type=float, default=Assumed.efficiency, help="of 8 GPUs against one alone, (0, 1]"
    )
    arguments = parser.parse_args()
    prices = {name: price.dollars for name, price in PRICES.items()}
    for text in arguments.price:
        name, _, value = text.partition("=")
        try:
            if name not in PRICES:
                raise ValueError
            prices[name] = float(value)
        except ValueError:
            parser.error(f"--price {text}: write one of {', '.join(PRICES)}, =, and dollars, such as gpu=14.75")
    if not 0 < arguments.efficiency <= 1:
        parser.error(f"--efficiency is {arguments.efficiency:g}; give a share above 0 and up to 1")
    assumed = replace(Assumed(), efficiency=arguments.efficiency)
    try:
        total = arguments.gpu_hours or counted_gpu_hours(arguments.experiment, Path("cmray-data").absolute())
    except CmrayError as error:
        parser.error(str(error))
    print(f"{total:,.0f} GPU-hours of an A100\n")
    print(cost_table(*(steps_of(total, assumed, prices, spot) for spot in (False, True))))
    print(f"\n{price_table(prices)}")


if __name__ == "__main__":
    main()
