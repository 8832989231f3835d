"""`cxr data`: show changes of the dataset, at its source and between revisions."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flows.commands import ROOT


def look(
    *,
    external: Annotated[str | None, Parameter(metavar="NAME")] = None,
    params: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    raw: Annotated[Path | None, Parameter(metavar="FOLDER")] = None,
) -> None:
    """Compare the data source with data/raw, without downloading it.

    Prints the differences, and the fingerprint that pins the current contents of the source.

    Args:
        external: Look at this dataset of the section external instead.
        params: The file that names the data source. By default the checkout's params.yaml.
        raw: The downloaded dataset, if any. By default the checkout's data/raw, or the external dataset.

    Examples:
        cxr data look
        cxr data look --external montgomery
    """
    from tasks.sources.look import describe

    data = ROOT / "data" / (f"external/{external}/raw" if external else "raw")
    for line in describe(params or ROOT / "params.yaml", raw or data, external):
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
