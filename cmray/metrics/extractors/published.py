"""What extractors that read files share: the options that name the file, and programs stored in files."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator

from cmray.core.errors import DataError
from cmray.metrics.extractors.base import ExtractorConfig
from cmray.metrics.weights_files import FilePath, FileSha256, WeightsFile, content_of, reason_of

#: what tells the archives of torch apart
SCRIPTED, EXPORTED = "constants.pkl", "models/model.json"


class PublishedConfig(ExtractorConfig):
    """Options of an extractor whose weights are a published file."""

    file: ClassVar[WeightsFile]

    weights: FilePath = Field(None, description="the file of weights; null looks where it usually is")
    weights_sha256: FileSha256 = Field(None, description="SHA-256 of that file; filled in, or checked when given")

    @model_validator(mode="after")
    def _content(self) -> PublishedConfig:
        if self.weights_sha256 is None:
            object.__setattr__(self, "weights_sha256", content_of(self.file.path(self.weights)))
        return self

    def found(self) -> tuple[Path, str]:
        """The file and its SHA-256. Raises DataError when it is missing, or not of the content that was asked for."""
        path = self.file.path(self.weights)
        return path, self.file.check_content(path, self.weights_sha256)


class FileConfig(ExtractorConfig):
    """Options of an extractor that is the user's own file."""

    #: what the file is, as a clause
    made_by: ClassVar[str]

    path: FilePath = Field(None, description="the file")
    path_sha256: FileSha256 = Field(None, description="SHA-256 of that file; filled in, or checked when given")

    @model_validator(mode="after")
    def _content(self) -> FileConfig:
        if self.path_sha256 is None and self.path is not None:
            object.__setattr__(self, "path_sha256", content_of(Path(self.path)))
        return self

    def found(self) -> tuple[Path, str | None]:
        """The file and its SHA-256, None where it cannot be read. Raises DataError when it is another one."""
        if self.path is None:
            raise DataError(f"extractor '{self.name}' needs path: FILE, {self.made_by}")
        path = Path(self.path)
        content = content_of(path)
        if content is not None and self.path_sha256 not in (None, content):
            raise DataError(f"path_sha256 is {self.path_sha256}, but {path} has {content}")
        return path, content


def _entries(path: Path) -> set[str]:
    """Names in an archive without its folder; none where it is no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.partition("/")[2] for name in archive.namelist()}
    except zipfile.BadZipFile:
        return set()


def is_scripted(path: Path) -> bool:
    """Whether an existing file is one of torch.jit.save."""
    return SCRIPTED in _entries(path)


def load_program(path: Path, user: str, device: torch.device) -> Any:
    """The network in a TorchScript file or a file of torch.export, frozen, on `device`.

    Such files hold operators of torch, not Python code, and nothing else is loaded.

    Raises:
        DataError: the file is missing, damaged, of another kind, or its network is for another device.
    """
    try:
        names = _entries(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{user} cannot read {path}: {reason_of(error)}") from None
    scripted, exported = SCRIPTED in names, EXPORTED in names
    if not scripted and not exported:
        raise DataError(f"{user}: {path} is neither a TorchScript file (torch.jit.save) nor one of torch.export.save")
    try:
        with warnings.catch_warnings(action="ignore"):  # that torch.jit is old is no news to who uses a result
            network: Any = (
                torch.jit.load(str(path), map_location=device).eval()
                if scripted
                else torch.export.load(path).module().to(device)
            )
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        return network
    except Exception as error:  # a damaged archive can raise anything
        raise DataError(f"{user} cannot read {path}: {reason_of(error)}") from None


def images_at_a_time(device: torch.device) -> int:
    """For networks that enlarge images to some hundred pixels a side."""
    return 16 if device.type == "cpu" else 128
