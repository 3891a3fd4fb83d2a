"""The `cluster:` block of the job file, one class a provider."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Workers(BaseModel):
    """A number of ranks that may change while a run goes on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: Annotated[int, Field(ge=1, le=512)] = Field(description="with fewer a run does not train, but waits for more")
    max: Annotated[int, Field(ge=1, le=512)] = Field(description="more are not used, however many there is room for")

    @model_validator(mode="after")
    def _in_order(self) -> Workers:
        if self.min > self.max:
            raise ValueError(f"min: {self.min} is more than max, which is {self.max}")
        return self


class LocalCluster(BaseModel):
    """A single-node Ray on this machine, or one that runs already."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: Literal["local"] = "local"
    workers: Annotated[int, Field(ge=1, le=512)] | Workers | None = Field(
        default=None,
        description="ranks: a number, or {min, max} for as many as there is room for; "
        "default: one per accelerator, or one on a machine without",
    )
    accelerators: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z][A-Za-z0-9-]*(:[1-9][0-9]*)?$",
        description="for example GPU:2: two ranks with a GPU each",
    )
    address: str | None = Field(
        default=None, description="a running Ray to attach to, as host:port; it may have many nodes"
    )
    usd_per_hour: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="what it costs, all its workers together, for budget.max_usd"
    )

    @property
    def accelerator_count(self) -> int | None:
        """How many accelerators it asks for; None: it names none."""
        return int(self.accelerators.partition(":")[2] or 1) if self.accelerators is not None else None

    @property
    def most_workers(self) -> int | None:
        """The most ranks that it allows; None: it sets no limit."""
        workers = self.workers.max if isinstance(self.workers, Workers) else self.workers
        return workers if self.accelerator_count is None else self.accelerator_count

    @model_validator(mode="after")
    def _one_way_to_count(self) -> LocalCluster:
        if self.workers is not None and self.accelerators is not None:
            raise ValueError("workers and accelerators exclude each other: accelerators GPU:2 is two ranks already")
        return self


ClusterConfig = LocalCluster
