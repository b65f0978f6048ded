"""Runs the quickstart with several seeds, teacher and students alike, and prints what holds on each.

    python analysis/quickstart_seeds.py --storage /tmp/seeds 0 1 2

The table in docs/quickstart.md is this script's output.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def sweep(seed: int, storage: Path) -> dict[str, Any]:
    """The --json outcome of the quickstart with a seed."""
    command = [
        sys.executable, "-m", "cmray", "sweep", str(ROOT / "experiments/quickstart.yaml"), "--json",
        "--storage", str(storage), "--set", f"name=quickstart-seed{seed}", "--set", f"seed={seed}",
        "--set", f"teacher.overrides.seed={seed}",
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def value(trial: dict[str, Any], nfe: int, *, searched: bool = False) -> float:
    """The reported value of a trial at a budget."""
    (found,) = (
        e["value"]
        for e in trial["evaluations"]
        if e["provenance"]["nfe"] == nfe and e["provenance"]["searched"] == searched
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="+", type=int)
    parser.add_argument("--storage", type=Path, required=True)
    arguments = parser.parse_args()
    rows, labels = [], []
    for seed in arguments.seeds:
        outcome = sweep(seed, arguments.storage)
        trials = outcome["trials"]
        teacher = next(t for t in trials if t["role"] == "teacher")
        students = [t for t in trials if t["role"] == "trial"]
        best = min((t for t in students if t["label"].startswith("cd")), key=lambda t: value(t, 1))
        by_label = {t["label"]: value(t, 1) for t in students}
        labels = list(by_label)
        adaptive = next(v for k, v in by_label.items() if k.startswith("ct") and "N(k)" in k)
        fixed = next(v for k, v in by_label.items() if k.startswith("ct") and "N=18" in k)
        times = best["searches"][0]["times"]
        rows.append(
            {
                "seed": seed,
                "teacher, 1 NFE": value(teacher, 1),
                "teacher, 35 NFE": value(teacher, 35),
                **by_label,
                "best CD": best["label"],
                "best CD / teacher's one step": value(best, 1) / value(teacher, 1),
                "best CD, 2 NFE searched": value(best, 2, searched=True),
                "its second time": times[1],
                "searched two / one": value(best, 2, searched=True) / value(best, 1),
                "adaptive CT / fixed": adaptive / fixed,
            }
        )
    print(f"fd/digits, {os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}\n")
    print("| | " + " | ".join(f"seed {r['seed']}" for r in rows) + " |\n| :--- |" + " ---: |" * len(rows))
    for key in [k for k in rows[0] if k != "seed"]:
        cells = [r[key] if isinstance(r[key], str) else f"{r[key]:#.3g}" for r in rows]
        print(f"| {key} | " + " | ".join(cells) + " |")
    good = all(
        r["best CD / teacher's one step"] <= 0.1 and r["searched two / one"] < 1 and r["adaptive CT / fixed"] < 1
        for r in rows
    )
    print(f"\nall three claims hold on every seed: {'yes' if good else 'NO'} ({len(labels)} trials each)")


if __name__ == "__main__":
    main()
