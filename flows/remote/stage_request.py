"""What a run asks of another machine: one stage, at a commit, made with the same versions."""

import platform
from importlib.metadata import version
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

#: Packages whose versions may change a result.
PACKAGES = ("dvc", "numpy", "pandas", "pillow", "safetensors", "scipy", "torch")

#: The name of a failed state that says that the worker, not the stage, is at fault.
REFUSED = "Refused"


class StageRequest(BaseModel):
    """Which stage to bring up to date, and for whom."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*(@[A-Za-z0-9_-]+)?$")] = Field(
        description="A stage of dvc.yaml."
    )
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] = Field(
        description="A commit of this repository, with the stage's inputs in its dvc.lock."
    )
    run: UUID = Field(description="The flow run that wants it, by which origin's ref is named.")
    versions: dict[str, str] = Field(description="What its results stand on: Python and the packages.")


def versions() -> dict[str, str]:
    """The versions that results stand on; torch's without the word for what it was built for."""
    packages = {name: version(name).partition("+")[0] for name in PACKAGES}
    return {"python": ".".join(platform.python_version_tuple()[:2])} | packages
