"""An experiment as files that need nothing around them, to be carried to another machine."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cmray.config.experiment import ExperimentConfig
from cmray.config.identity import content_hash
from cmray.config.load import load_raw, validated
from cmray.core.errors import CmrayError, ConfigError

#: files of weights that travel when an experiment names them relative to the working directory
WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class Bundle:
    """An experiment file and all it needs, one beside the other.

    What a file extends, its overlays and its overrides are merged into it; teachers are files of their own. Places of
    datasets and checkpoints stay what they are: a dataset does not travel.
    """

    name: str  # of the experiment
    file: str  # name of its file, for the command line
    texts: Mapping[str, str]  # file name -> YAML
    copies: Mapping[str, Path]  # path relative to the working directory -> file of weights

    @property
    def digest(self) -> str:
        """SHA-256 in hex of everything in it."""
        copies = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in self.copies.items()}
        return content_hash({"file": self.file, "texts": dict(self.texts), "copies": copies})

    def write(self, folder: Path) -> Path:
        """Writes the files into a folder; returns the experiment's own."""
        for name, text in self.texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        for name, source in self.copies.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
        return folder / self.file


def bundle_experiment(path: Path, overrides: Sequence[str] = (), overlays: Sequence[Path] = ()) -> Bundle:
    """Everything that `path` stands for. Raises ConfigError for files that cannot be read or merged."""
    raw = load_raw(path, overrides, overlays)
    config = validated(ExperimentConfig, raw.values, raw)
    if not config.panels:
        raise ConfigError(f"{path} has no panels, so there is nothing to sweep")
    packer = _Packer()
    file = packer.add(path, raw.values)
    return Bundle(config.name, file, packer.texts, packer.copies)


class _Packer:
    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.copies: dict[str, Path] = {}
        self._teachers: dict[Path, str] = {}

    def add(self, path: Path, values: Mapping[str, Any]) -> str:
        """Takes in one file; returns its name in the bundle."""
        name, number = f"{path.stem}.yaml", 1
        while name in self.texts:
            number += 1
            name = f"{path.stem}-{number}.yaml"
        self.texts[name] = ""  # the name is taken while its teachers are packed
        packed = self._packed(copy.deepcopy(dict(values)))
        self.texts[name] = yaml.safe_dump(packed, sort_keys=False, allow_unicode=True, width=120)
        return name

    def _packed(self, node: Any, key: str = "") -> Any:
        """The value of `key` with files replaced by their names in the bundle."""
        if isinstance(node, dict):
            return {k: self._packed(v, f"{key}.{k}" if key else str(k)) for k, v in node.items()}
        if isinstance(node, list):
            return [self._packed(value, key) for value in node]
        if isinstance(node, str) and key.endswith("teacher.experiment"):
            return self._teacher(Path(node))
        if isinstance(node, str) and key.rpartition(".")[2] == "path" and node.endswith(WEIGHTS):
            self._copy(node)
        return node

    def _teacher(self, path: Path) -> str:
        known = path.resolve()
        if known not in self._teachers:
            self._teachers[known] = f"{path.stem}.yaml"  # a circle ends here, and is refused where it is planned
            self._teachers[known] = self.add(path, load_raw(path).values)
        return self._teachers[known]

    def _copy(self, text: str) -> None:
        path = Path(text)
        if path.is_absolute() or "://" in text or not path.is_file():
            return  # the other machine has it, or says that it does not
        if ".." in path.parts:
            raise CmrayError(f"{text} lies outside of the working directory and cannot travel; give an absolute path")
        self.copies[path.as_posix()] = path
