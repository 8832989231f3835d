"""Which experiments beat which trivial predictors, from the paired differences of an image set."""

from collections.abc import Sequence

from tasks.comparison.differences import COMPARED, HIGHER_IS_BETTER, is_compared
from tasks.comparison.document import AgainstBaselines, Family, ScoreRow
from tasks.comparison.inputs import Scored


def against_baselines(
    scored: Scored, image_set: str, families: Sequence[Family]
) -> tuple[AgainstBaselines, ...]:
    """Which experiments beat each trivial predictor on which metric; a tie does not count as a win."""
    if not is_compared(scored, image_set) or not scored.predictors:
        return ()
    won = {
        (d.winner, d.second if d.winner == d.first else d.first, d.metric)
        for found in families
        for d in found.differences
        if d.winner
    }
    alike: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for name in scored.names:
        lost = tuple(
            tuple(metric for metric in COMPARED if (name, predictor, metric) not in won)
            for predictor in scored.predictors
        )
        alike.setdefault(lost, []).append(name)
    return tuple(
        AgainstBaselines(
            experiments=tuple(who),
            not_beaten=dict(zip(scored.predictors, lost, strict=True)),
            everyone=len(who) == len(scored.names),
        )
        for lost, who in alike.items()
    )


def best_baselines(rows: Sequence[ScoreRow]) -> dict[str, str]:
    """Metric -> the trivial predictor with the best score, for metrics that exist."""
    trivial = [row for row in rows if row.kind == "baseline"]
    return {
        metric: max(trivial, key=lambda row: row.scores[metric].value * (1 if higher else -1)).name
        for metric, higher in HIGHER_IS_BETTER.items()
        if trivial and all(metric in row.scores for row in trivial)
    }
