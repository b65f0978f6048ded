"""A process that measures: python measure_worker.py STORAGE CHECKPOINT TRIAL METRIC[,METRIC...]. It says "ready", waits
for a line, and prints the values."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from small_run import CPU

from cmray.config.data_facts import facts_of
from cmray.config.metric import parse_metric
from cmray.core.rng import SEED_BASE
from cmray.engine.evaluator import InlinePool
from cmray.engine.images import image_set_of
from cmray.engine.model import make_sampler
from cmray.engine.references import Against, references_for
from cmray.engine.results import Measurement, evaluate, recorded, subject

if __name__ == "__main__":
    storage, trial = Path(sys.argv[1]), Path(sys.argv[3])
    who = subject(trial, Path(sys.argv[2]))
    metrics = [parse_metric(name) for name in sys.argv[4].split(",")]
    images = image_set_of(facts_of(who.run.data, storage))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    references = references_for(metrics, Against(images), (1, 8, 8), trial)  # its own, so that both describe it
    first = SEED_BASE["report"]
    asked = [Measurement(who, make_sampler(who.run, n), 2000, first, 16, metric=m) for n in (1, 2) for m in metrics]
    evaluate(asked, references, InlinePool(CPU))
    sys.stdout.write(json.dumps([recorded(m, references).value for m in asked]))
