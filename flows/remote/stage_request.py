"""The request to another machine: one stage, at a commit, with the same package versions."""

import platform
from importlib.metadata import version
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

#: Increase it when the request changes, or what a worker does with it. Workers with another number refuse it.
#: New fields need defaults, since the server checks requests against the schema of the last started worker.
PROTOCOL = "1"

#: Packages whose versions may change results.
PACKAGES = ("dvc", "numpy", "pandas", "pillow", "safetensors", "scipy", "torch")

#: Name of the failed state of a stage that its worker cannot run. The stage itself is not at fault.
REFUSED = "Refused"


class StageRequest(BaseModel):
    """The stage to bring up to date, and the run that needs it.

    Unknown fields, from a run with newer code, are ignored: its protocol differs, so the stage is refused.
    """

    model_config = ConfigDict(frozen=True)

    stage: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*(@[A-Za-z0-9_-]+)?$")] = Field(
        description="A stage of dvc.yaml."
    )
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] = Field(
        description="A commit of this repository, with the stage's inputs in its dvc.lock."
    )
    run: UUID = Field(description="The flow run that needs the stage, part of the ref at origin.")
    versions: dict[str, str] = Field(description="The versions of Python and packages that affect results.")


def versions() -> dict[str, str]:
    """Return the versions of Python, PACKAGES and the protocol, without build tags such as +cu130."""
    packages = {name: version(name).partition("+")[0] for name in PACKAGES}
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, "protocol": PROTOCOL} | packages
