"""200 short trials in one sweep, and every ten seconds one of its processes is killed."""

from __future__ import annotations

import random
import time

import psutil
import pytest
from cli_run import CT, Running, write
from survival import note

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TRIALS, KILL_EVERY = 200, 10.0
#: a trial's, an evaluator's, or any other worker's; the raylet, which leaves with its agents, is the machine itself
VICTIMS, MACHINE = ("ImplicitFunc", "_EvaluatorActor", "ray::"), "Agent"


def test_two_hundred_trials_under_random_kills_all_finish_and_the_driver_does_not_grow(tmp_path):
    file = write(
        tmp_path / "soak.yaml",
        CT,
        train={"steps": 30, "batch_size": 32, "checkpoint_every": 10, "log_every": 10},
        curve=None,
        panels={"seeds": {"grid": {"seed": list(range(TRIALS))}}},
        evaluate={"num_samples": 64, "nfe": [1]},
    )
    storage, rng = tmp_path / "storage", random.Random(0)
    arguments = ("sweep", file, "--storage", storage, "--tracking-uri", "none", "--json")
    killed, memory, began = [], {}, time.monotonic()
    with Running(tmp_path / "desk", *arguments) as running:
        driver, next_kill = psutil.Process(running.process.pid), began + KILL_EVERY
        while running.process.poll() is None:
            time.sleep(0.5)
            done = len(list(storage.glob("soak/*/result.json")))
            if done >= TRIALS // 4 and done < TRIALS:
                memory[done] = driver.memory_info().rss
            if time.monotonic() >= next_kill:
                next_kill += KILL_EVERY
                victims = [p for name in VICTIMS for p in running.named(name) if MACHINE not in " ".join(p.cmdline())]
                if victims:
                    victim = rng.choice(victims)
                    killed.append(" ".join(victim.cmdline())[:40])
                    victim.kill()
        ran = running.ended(600)
        running.gone(20)
    seconds = time.monotonic() - began
    assert ran.code == 0, ran.err
    told = ran.json
    assert len(list(storage.glob("soak/*/result.json"))) == TRIALS
    assert not list(storage.glob("soak/*/error.txt"))
    assert len(list(storage.glob("soak/*/evaluations/*.json"))) == TRIALS
    assert killed
    assert told
    first, last = memory[min(memory)], memory[max(memory)]
    note(
        f"{TRIALS} trials in {seconds:.0f} s with {len(killed)} kills ({', '.join(sorted(set(killed)))}); "
        f"the driver at {min(memory)} trials {first / 2**20:.0f} MiB, at {max(memory)} {last / 2**20:.0f} MiB"
    )
    assert last - first < 64 * 2**20, f"the driver grew from {first / 2**20:.0f} to {last / 2**20:.0f} MiB"
