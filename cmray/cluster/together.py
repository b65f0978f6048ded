"""Processes that train one run fail together. The first one to fail says why, for all of them.

When one of several processes leaves, the others wait in a collective operation for it, until torch gives up after half
an hour, and what they meet when its connections close says nothing of the reason. So the one that fails writes the
reason to a file that all of them can read, and only then parts with the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import traceback
import uuid
from pathlib import Path

import torch.distributed as dist

from cmray.cluster.work import TrialFailedError
from cmray.core.errors import CmrayError


def say_why(path: Path, error: BaseException) -> None:
    """Keeps the error in `path`, unless another process failed before: this error follows from that one then."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if not isinstance(error, CmrayError):
        reason = f"{type(error).__name__}: {reason}"
    text = json.dumps({"reason": reason, "trace": "".join(traceback.format_exception(error))})
    # a disk that is full may be what there is to say: the error then goes the way of any other
    own = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        try:
            own.write_text(text)
            os.link(own, path)  # whole at once: another rank may be reading; an error where there is one already
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            if not path.exists():
                os.replace(own, path)
        finally:
            own.unlink(missing_ok=True)


def why(path: Path) -> TrialFailedError | None:
    """What the first process to fail has said; None when none has."""
    try:
        said = json.loads(path.read_text())
        return TrialFailedError(said["reason"], said["trace"])
    except (OSError, ValueError, KeyError):
        return None


def part() -> None:
    """Leaves the process group, so that those who wait for this process learn of it now.

    gloo closes its connections, and the others meet an error. NCCL's are closed by the end of the process alone:
    leaving its group may itself wait for the others.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()
