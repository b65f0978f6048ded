"""Sweeps as jobs of a cluster: the driver lives there, and the machine that submitted it may leave."""

from __future__ import annotations

import asyncio
import logging
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cmray
from cmray.cluster.address import ClusterError, environment, job_server, use_token
from cmray.cluster.plugins import pack_plugins
from cmray.config.bundle import Bundle
from cmray.config.identity import content_hash
from cmray.core.errors import CmrayError, nearest
from cmray.core.plugins import used
from cmray.engine.versions import REVISION_FILE, git_revision

#: seconds that a job has to save and leave after `stop`, before it is killed
STOP_SECONDS = 60
#: states that a job does not leave
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_KEYS = ("experiment", "hash", "storage", "revision")


@dataclass(frozen=True)
class Request:
    """A sweep that a cluster is asked for; `options` are those of the command line beside the places."""

    bundle: Bundle
    storage: str  # as the cluster's nodes name it
    only: tuple[str, ...] = ()
    tracking_uri: str | None = None
    max_concurrent: int | None = None
    max_hours: float | None = None

    @property
    def hash(self) -> str:
        """Of what will be there in the end: experiment, panels and storage, not of how fast or with what code."""
        return content_hash({"bundle": self.bundle.digest, "only": sorted(self.only), "storage": self.storage})

    @property
    def name(self) -> str:
        """The submission id: the experiment's name and the hash."""
        return f"{self.bundle.name.replace(' ', '-')}-{self.hash[:10]}"

    def words(self) -> list[str]:
        """The command that the cluster runs."""
        words = ["python", "-m", "cmray", "sweep", self.bundle.file, "--address", "auto", "--storage", self.storage]
        for panel in self.only:
            words += ["--only", panel]
        for option, value in (
            ("--tracking-uri", self.tracking_uri),
            ("--max-concurrent", self.max_concurrent),
            ("--max-hours", self.max_hours),
        ):
            if value is not None:
                words += [option, str(value)]
        return words


@dataclass(frozen=True)
class Job:
    """What the cluster says of one job. Times are seconds since the epoch."""

    id: str
    status: str  # PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED
    experiment: str
    hash: str
    storage: str
    revision: str
    submitted: float | None
    ended: float | None
    exit_code: int | None
    message: str
    entrypoint: str

    @property
    def is_over(self) -> bool:
        return self.status in ENDED

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Jobs:
    """The job server of a cluster's head.

    Args:
        address: as for `job_server`.

    Raises:
        ClusterError: nothing answers there, or it wants another token.
    """

    def __init__(self, address: str | None = None):
        self.url = job_server(address)
        use_token()
        with self._asked():
            from ray.job_submission import JobSubmissionClient

            for name in (
                "dashboard.modules.dashboard_sdk",
                "dashboard.modules.job.sdk",
                "_private.runtime_env.packaging",
            ):
                logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)  # they tell of every package they send
            # Ray prefers its environment to the address that it is given
            with environment("RAY_API_SERVER_ADDRESS", self.url):
                self._client = JobSubmissionClient(self.url)

    def submit(self, request: Request) -> tuple[Job, bool]:
        """The job of this sweep, and whether it is a new one: a sweep that runs or waits is not submitted again."""
        known = self.all()
        for job in known:
            if job.hash == request.hash and not job.is_over:
                return job, False
        taken, name, number = {job.id for job in known}, request.name, 1
        while name in taken:
            number += 1
            name = f"{request.name}-{number}"
        revision = git_revision() or f"cmray {cmray.__version__}"
        facts = {"experiment": request.bundle.name, "hash": request.hash, "storage": request.storage,
                 "revision": revision}  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="cmray-job-") as folder, self._asked():
            pack(request.bundle, Path(folder), revision)
            more = pack_plugins(used(), Path(folder))
            self._client.submit_job(
                entrypoint="exec " + shlex.join(request.words()),
                submission_id=name,
                metadata={f"cmray.{key}": value for key, value in facts.items()},
                # the copy of the package comes first on the path of the job and of all its workers
                runtime_env={
                    "working_dir": folder,
                    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), "COLUMNS": "120", **more},
                },
            )
        return self.job(name), True

    def all(self) -> list[Job]:
        """The sweeps that were submitted by cmray, the newest first."""
        with self._asked():
            found = [_job(details) for details in self._client.list_jobs()]
        return sorted((job for job in found if job.hash), key=lambda job: -(job.submitted or 0))

    def job(self, name: str) -> Job:
        """The job of exactly this id."""
        with self._asked():
            return _job(self._client.get_job_info(name))

    def find(self, text: str) -> Job:
        """A job by its id, the beginning of one, or its experiment's name, of which the newest is meant.

        Raises:
            CmrayError: there is none, or several begin so.
        """
        known = self.all()
        for matches in ([job for job in known if job.id == text], [job for job in known if job.experiment == text][:1]):
            if matches:
                return matches[0]
        begun = [job for job in known if job.id.startswith(text)]
        if len(begun) == 1:
            return begun[0]
        if begun:
            names = ", ".join(job.id for job in begun[:6])
            raise CmrayError(f"'{text}' is the beginning of {len(begun)} jobs at {self.url}: {names}; write more of it")
        raise CmrayError(f"no job '{text}' at {self.url}; {nearest(text, [job.id for job in known])}")

    def logs(self, name: str) -> str:
        """All that the job has printed so far."""
        with self._asked():
            return self._client.get_job_logs(name)

    def follow(self, name: str, write: Callable[[str], None]) -> Job:
        """Passes on what the job prints until it has ended, over broken connections too; returns it then."""
        shown, broken = 0, 0
        while True:
            try:
                shown = asyncio.run(self._tail(name, write, shown))
                job = self.job(name)
                if job.is_over:
                    rest = self.logs(name)[shown:]  # the stream may end before the last words
                    if rest:
                        write(rest)
                    return job
                broken = 0
            except ClusterError:
                broken += 1
                if broken == 10:
                    raise
            time.sleep(min(2.0 * max(1, broken), 15.0))

    async def _tail(self, name: str, write: Callable[[str], None], shown: int) -> int:
        """Passes on what comes after the first `shown` characters, until the stream ends; how many there were then."""
        from aiohttp import ClientError

        seen = 0
        try:
            async for text in self._client.tail_job_logs(name):
                new = text[max(0, shown - seen) :]
                seen += len(text)
                if new:
                    write(new)
        except (ClientError, RuntimeError, OSError):  # a new stream begins at the beginning, and so does the counting
            pass
        return max(shown, seen)

    def stop(self, name: str, wait: float = STOP_SECONDS + 30) -> Job:
        """Asks the job to end, and waits until it has. Trials keep their last checkpoint."""
        with self._asked():
            self._client.stop_job(name)
        end = time.monotonic() + wait
        while True:
            job = self.job(name)
            if job.is_over or time.monotonic() > end:
                return job
            time.sleep(0.5)

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Errors of a question to the job server, as one line."""
        try:
            from ray.exceptions import RayError

            try:
                yield
            except RayError as error:  # a token that is missing or another is one
                raise RuntimeError(str(error)) from None
        except ImportError as error:
            raise ClusterError(f"jobs need {error.name}; pip install -c constraints.txt 'ray[default]'") from None
        except (RuntimeError, OSError, ValueError) as error:  # requests' and Ray's own are among them
            text = str(error)
            if re.search(r"[Aa]uthenti|status code:? 40[13]\b|\b40[13] (Client Error|Unauthorized|Forbidden)", text):
                raise ClusterError(
                    f"{self.url} wants the token of its cluster: put it into ~/.ray/auth_token (or RAY_AUTH_TOKEN) "
                    f"and set RAY_AUTH_MODE=token"
                ) from None
            reason = " ".join((text.strip() or type(error).__name__).splitlines()[0].split())
            raise ClusterError(f"the job server at {self.url} refuses: {reason}") from None


def pack(bundle: Bundle, folder: Path, revision: str) -> None:
    """Fills the working directory of a job: the experiment's files, and this very cmray with its revision noted.

    The cluster's installed cmray is not used: results are made by the code that was submitted, on all nodes.
    """
    source = Path(cmray.__file__).parent
    shutil.copytree(source, folder / "cmray", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    (folder / "cmray" / REVISION_FILE).write_text(f"{revision}\n")
    bundle.write(folder)


def _job(details: Any) -> Job:
    facts = {key: (details.metadata or {}).get(f"cmray.{key}", "") for key in _KEYS}
    return Job(
        id=details.submission_id or details.job_id or "",
        status=str(getattr(details.status, "value", details.status)),
        submitted=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        exit_code=details.driver_exit_code,
        message=details.message or "",
        entrypoint=details.entrypoint or "",
        **facts,
    )
