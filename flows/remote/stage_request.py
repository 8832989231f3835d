"""The request to another machine: one stage, at a commit, with the same package versions."""

import platform
from importlib.metadata import version
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

#: Increase it when the request changes, or what a worker does with it. Workers with another number refuse it.
#: New fields need defaults, since the server checks requests against the schema of the last started worker.
PROTOCOL = "2"

#: Packages whose versions may change results.
PACKAGES = ("dvc", "numpy", "pandas", "pillow", "safetensors", "scipy", "torch")

#: Name of the failed state of a stage that its worker cannot run. The stage itself is not at fault.
REFUSED = "Refused"


#: The name of a stage, which is part of commands.
StageName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*(@[A-Za-z0-9_-]+)?$")]


class StageRequest(BaseModel):
    """The stage to bring up to date, and the run that needs it.

    Unknown fields, from a run with newer code, are ignored: its protocol differs, so the stage is refused.
    """

    model_config = ConfigDict(frozen=True)

    stage: StageName = Field(description="A stage of dvc.yaml.")
    upstream: tuple[StageName, ...] = Field(default=(), description="The stages whose outputs it reads.")
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] = Field(
        description="A commit of this repository, with the stage's inputs in its dvc.lock."
    )
    run: UUID = Field(description="The flow run that needs the stage, part of the ref at origin.")
    threads: int = Field(default=0, ge=0, description="The most CPU threads of a training; 0 uses all cores.")
    processes: int = Field(default=1, ge=1, description="The processes of this training, each with a GPU.")
    versions: dict[str, str] = Field(description="The versions of Python and packages that affect results.")


def versions() -> dict[str, str]:
    """Return the versions of Python, PACKAGES and the protocol, without build tags such as +cu130."""
    packages = {name: version(name).partition("+")[0] for name in PACKAGES}
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, "protocol": PROTOCOL} | packages
