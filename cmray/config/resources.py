"""What a trial takes of a machine or a cluster."""

from __future__ import annotations

from pydantic import Field, model_validator

from cmray.core.strict import NOT_IDENTITY, Strict


class ResourcesConfig(Strict):
    """What one trial takes. More than one worker trains with DDP under Ray Train."""

    workers: int = Field(default=1, ge=1, description="processes that share each batch")
    min_workers: int | None = Field(
        default=None,
        ge=1,
        description="go on with as few as this while nodes are missing, and with more when they are back; null waits "
        "for all",
        json_schema_extra=NOT_IDENTITY,
    )
    cpus_per_worker: float = Field(
        default=1, gt=0, description="logical CPUs; also the threads of a worker", json_schema_extra=NOT_IDENTITY
    )
    gpus_per_worker: float = Field(
        default=0, ge=0, description="GPUs; fractions share one, 0 trains on CPUs", json_schema_extra=NOT_IDENTITY
    )
    retries: int = Field(
        default=0,
        ge=0,
        le=100,
        description="how often a trial that failed is tried again, from its last checkpoint, in the same sweep",
        json_schema_extra=NOT_IDENTITY,
    )

    @model_validator(mode="after")
    def _bounds(self) -> ResourcesConfig:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} exceeds workers {self.workers}")
        return self

    @property
    def least_workers(self) -> int:
        """The smallest number of workers that it trains with."""
        return self.workers if self.min_workers is None else self.min_workers

    def useful_workers(self, room: int) -> int | None:
        """How many of at most `room` workers to train with; None when that is too few.

        Each batch is cut into `workers` shares, and the slowest worker, who has the most of them, sets the pace. So
        this is the smallest number that is as fast as all that have room: 4 of 5 to 7 where `workers` is 8.
        """
        most = min(room, self.workers)
        if most < self.least_workers:
            return None
        longest = -(-self.workers // most)
        return max(self.least_workers, -(-self.workers // longest))
