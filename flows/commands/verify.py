"""`cxr verify`: recompute published scores."""

from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number


def verify(
    revision: Annotated[str, Parameter(metavar="REVISION")] = "HEAD",
    /,
    *,
    scores: Annotated[tuple[str, ...], Parameter(name="--score", metavar="NAME")] = (),
    depth: Annotated[Literal["rows", "weights", "data"], Parameter(name="--from")] = "rows",
    tolerance: Annotated[float | None, Parameter(metavar="T", validator=Number(gte=0))] = None,
) -> None:
    """Recompute the published scores of a revision, and say whether they hold.

    Gets what dvc.lock names from the DVC cache or the DVC remote, hashes every byte of it, and runs the
    revision's own code in a git worktree. Your files, the DVC cache and the run cache stay as they are. Exits
    with status 1 if a score does not hold.

    Args:
        revision: The branch, tag or commit.
        scores: A score of metrics.json, or the beginning of its name, such as combined.test. Can be repeated.
            By default all scores.
        depth: rows: the scores of single images (seconds). weights: the networks (minutes). data: the
            dataset, which trains again.
        tolerance: The largest difference with which a score holds. By default 0 from rows, 0.001 from
            weights, 0.02 from data.

    Examples:
        cxr verify
        cxr verify retrain/laptop --score combined.test.infection.covid.iou
        cxr verify retrain/laptop --score combined --from weights
        cxr verify retrain/laptop --score combined --from data
    """
    from flows.repository.git import find_repository
    from flows.verify import verify as verify_scores

    verify_scores(find_repository(), revision, scores, depth, tolerance)
