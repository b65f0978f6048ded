"""Train the classifier behind the extractor 'digits' and write its weights file.

    python analysis/train_digits_classifier.py [--out FILE | --splits N]

Deterministic: one thread, fixed seeds; the same versions on the same kind of processor write the same bytes.
The network shipped is the one whose held-out accuracy is recorded: it never sees the held-out fifth, and
neither epoch nor seed is chosen by it (the network's shape was chosen for the speed of its distance).

A random split shares its writers between both sides and is nearly saturated: split 0, the one shipped, gives
358 of 360 and the six splits 0 to 5 together 2,150 of 2,160 (`--splits 6`). Trained on the first four fifths
of the file, the same recipe gets 353 of the last 360, whose writers it has probably not seen.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import sklearn
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from cmray.core.rng import torch_generator
from cmray.metrics.digits_cnn import METADATA_KEY, WEIGHTS, DigitsCNN, digits_images, held_out_split

SPLIT_SEED = 0
TRAIN_SEED = 0
EPOCHS = 60
BATCH = 64
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-2
LABEL_SMOOTHING = 0.05
TRACE = 100.0


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image of x [B, 1, 8, 8], moved by -1, 0 or 1 pixels each way; background comes in at the edge."""
    padded = F.pad(x, (1, 1, 1, 1), value=-1.0)
    offset = torch.randint(3, (2, len(x)), generator=generator)
    rows = torch.arange(8) + offset[0][:, None]
    columns = torch.arange(8) + offset[1][:, None]
    return padded[torch.arange(len(x))[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def train(x: Tensor, labels: Tensor) -> DigitsCNN:
    torch.manual_seed(TRAIN_SEED)
    generator = torch_generator("cpu", "digits classifier", TRAIN_SEED)
    network = DigitsCNN(norm=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(x), generator=generator)
        for index in order[: len(x) // BATCH * BATCH].split(BATCH):
            logits = network(shifted(x[index], generator))
            loss = F.cross_entropy(logits, labels[index], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.fused()


def count_correct(network: DigitsCNN, x: Tensor, labels: Tensor) -> int:
    with torch.no_grad():
        return int((network(x).argmax(1) == labels).sum())


def compare_splits(x: Tensor, labels: Tensor, number: int) -> None:
    """How much of the recorded accuracy is the split's luck. Writes nothing."""
    for seed in range(number):
        train_index, test_index = held_out_split(labels, seed)
        correct = count_correct(train(x[train_index], labels[train_index]), x[test_index], labels[test_index])
        print(f"split {seed}: {correct} of {len(test_index)}", flush=True)
    fifth = len(x) // 5 + 1
    correct = count_correct(train(x[:-fifth], labels[:-fifth]), x[-fifth:], labels[-fifth:])
    print(f"last fifth of the file: {correct} of {fifth}")


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--splits", type=int, metavar="N", help="only measure the recipe on N splits")
    arguments = parser.parse_args()
    out = arguments.out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    started = time.perf_counter()

    images, labels = digits_images()
    x = images.float() / 127.5 - 1
    if arguments.splits:
        compare_splits(x, labels, arguments.splits)
        return
    train_index, test_index = held_out_split(labels, SPLIT_SEED)
    network = train(x[train_index], labels[train_index])

    correct = count_correct(network, x[test_index], labels[test_index])
    with torch.no_grad():
        trace = network.penultimate(x).double().var(0, correction=1).sum()
        network.feature_scale.fill_((TRACE / trace).sqrt())
    record = {
        "accuracy": correct / len(test_index),
        "n_correct": correct,
        "n_test": len(test_index),
        "split": "stratified 80/20, sklearn.model_selection.train_test_split",
        "split_seed": SPLIT_SEED,
        "scale": float(network.feature_scale),
        "trace": TRACE,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "script": "analysis/train_digits_classifier.py",
        "sklearn": sklearn.__version__,
        "torch": torch.__version__,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), out, metadata={METADATA_KEY: json.dumps(record, sort_keys=True)})
    # safetensors leaves the file readable by its owner only; a shared installation needs more.
    out.chmod(0o644)
    print(f"held-out accuracy {record['accuracy']:.2%} ({correct} of {len(test_index)})")
    print(f"{record['parameters']} parameters, {time.perf_counter() - started:.0f} s; wrote {out}")


if __name__ == "__main__":
    main()
