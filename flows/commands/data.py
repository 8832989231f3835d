"""`cxr data`: show changes of the dataset, at its source and between revisions."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flows.commands import ROOT


def look(
    *,
    params: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    raw: Annotated[Path | None, Parameter(metavar="FOLDER")] = None,
) -> None:
    """Compare the data source with data/raw, without downloading it.

    Prints the differences, and the fingerprint that pins the current contents of the source.

    Args:
        params: The file that names the data source. By default the checkout's params.yaml.
        raw: The downloaded dataset, if any. By default the checkout's data/raw.

    Examples:
        cxr data look
    """
    from tasks.look import describe

    for line in describe(params or ROOT / "params.yaml", raw or ROOT / "data" / "raw"):
        print(line)


def diff(old: str, new: str | None = None, /) -> None:
    """List the images that differ between two revisions of the dataset.

    Args:
        old: A branch, tag or commit.
        new: A second one. By default this checkout's data/raw.

    Examples:
        cxr data diff HEAD~1
        cxr data diff v1 main
    """
    from flows.dataset import print_difference
    from flows.repository.git import find_repository

    print_difference(find_repository(), old, new)
