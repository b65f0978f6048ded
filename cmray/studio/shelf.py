"""The models that a studio was opened with, and how they are called: one at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from cmray.config.checkpoint_facts import CheckpointFacts, read_checkpoint_facts
from cmray.config.run import RunConfig
from cmray.core.errors import CmrayError

if TYPE_CHECKING:
    from cmray.engine.trained import TrainedModel

T = TypeVar("T")


class Place(NamedTuple):
    """Where a model is: a trial's folder, and a checkpoint; of a bare checkpoint both are the same.

    Args:
        label: what the experiment calls the trial, such as "cd · heun · l2 · N=18".
    """

    folder: Path
    checkpoint: Path
    label: str = ""


@dataclass(frozen=True)
class Entry:
    """One model, known from its manifest: no weight is read before the model is used.

    Args:
        name: EXPERIMENT/TRIAL; of a bare checkpoint its folder.
        label: as in `Place`.
    """

    name: str
    label: str
    folder: Path
    checkpoint: Path
    facts: CheckpointFacts
    run: RunConfig

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.facts.shape

    @property
    def num_classes(self) -> int:
        return self.facts.num_classes

    @property
    def kind(self) -> str:
        return self.run.objective.kind


class Shelf:
    """Models by name, in the order in which they were given.

    Args:
        entries: at least one.
        storage: the folder of all results, where datasets are looked for.
        weights: "student" or "ema RATE"; None for the first EMA.
        command: makes a line to copy from the words after `cmray`.
    """

    def __init__(
        self, entries: Sequence[Entry], storage: Path, weights: str | None, command: Callable[[Sequence[str]], str]
    ):
        self.entries = {entry.name: entry for entry in entries}
        self.storage, self.weights, self._command = storage, weights, command
        self._lock = threading.RLock()

    @property
    def names(self) -> list[str]:
        return list(self.entries)

    @property
    def choices(self) -> list[tuple[str, str]]:
        """Titles with names, to choose from."""
        return [(self.title(name), name) for name in self.names]

    def title(self, name: str) -> str:
        """What a person is shown of a model: its label; where that is missing or another has it too, its name."""
        label = self.entry(name).label
        same = sum(entry.label == label for entry in self.entries.values())
        return name if not label else label if same == 1 else f"{label} ({name})"

    def entry(self, name: str | None) -> Entry:
        """Raises CmrayError for a model that is not on the shelf."""
        if name not in self.entries:
            raise CmrayError(f"no model '{name}' is open; choose one of {', '.join(self.names)}")
        return self.entries[name]

    @contextmanager
    def using(self, name: str) -> Iterator[TrainedModel]:
        """The model, for this thread alone: small networks only slow each other down.

        Raises:
            CheckpointError: its files are gone or damaged.
        """
        from cmray.engine.opened import open_trained

        entry = self.entry(name)
        with self._lock:
            yield open_trained(entry.checkpoint, entry.folder, weights=self.weights)

    def command(self, *words: str) -> str:
        """A command that does the same outside of the studio."""
        return self._command([*words, *(() if self.weights is None else ("--weights", self.weights))])


def open_shelf(
    places: Sequence[Place], storage: Path, weights: str | None, command: Callable[[Sequence[str]], str]
) -> Shelf:
    """Models from their places, each once.

    Raises:
        CheckpointError: a checkpoint is damaged, or lacks the weights.
    """
    from cmray.engine.model import weights_file
    from cmray.engine.searched import name_at

    entries: dict[str, Entry] = {}
    for folder, checkpoint, label in places:
        facts = read_checkpoint_facts(checkpoint)
        weights_file(facts, weights, checkpoint)
        name = name_at(folder, checkpoint)
        entries.setdefault(name, Entry(name, label, folder, checkpoint, facts, facts.run))
    return Shelf(list(entries.values()), storage, weights, command)


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """What a call returns, and the seconds it took."""
    began = time.perf_counter()
    result = call()
    return result, time.perf_counter() - began
