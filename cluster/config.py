"""The `cluster:` block of the job file, one class a provider."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class LocalCluster(BaseModel):
    """A single-node Ray on this machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: Literal["local"] = "local"
    workers: Annotated[int, Field(ge=1, le=512)] | None = Field(
        default=None, description="ranks; default: one per accelerator, or one on a machine without"
    )
    accelerators: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z][A-Za-z0-9-]*(:[1-9][0-9]*)?$",
        description="for example GPU:2: two ranks with a GPU each",
    )
    address: str | None = Field(default=None, description="a running Ray to attach to, as host:port")

    @model_validator(mode="after")
    def _one_way_to_count(self) -> LocalCluster:
        if self.workers is not None and self.accelerators is not None:
            raise ValueError("workers and accelerators exclude each other: accelerators GPU:2 is two ranks already")
        return self


ClusterConfig = LocalCluster
