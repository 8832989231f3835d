"""Which experiments beat which others, from the paired differences of an image set."""

from collections.abc import Sequence

from tasks.comparison.differences import AGAINST_BASELINES, HIGHER_IS_BETTER, RANKED_BY
from tasks.comparison.document import AgainstBaselines, Difference, Lead
from tasks.comparison.inputs import Scored


def lead(ranking: Sequence[str], differences: Sequence[Difference]) -> Lead | None:
    """How the best of these experiments (by decreasing IoU) compares with the others; None if it is alone."""
    if len(ranking) < 2:
        return None
    best = ranking[0]
    found = {d.second: d for d in differences if d.first == best and d.metric == RANKED_BY}
    others = [found[name] for name in ranking[1:] if name in found]
    if not others:
        return None
    beaten = [d for d in others if d.winner == best]
    return Lead(
        best=best,
        images=others[0].images,
        level=tuple(d.second for d in others if not d.winner),
        beaten=tuple(d.second for d in beaten),
        nearest=beaten[0] if beaten else None,
    )


def against_baselines(
    scored: Scored, image_set: str, differences: Sequence[Difference]
) -> tuple[AgainstBaselines, ...]:
    """Which experiments beat each trivial predictor on which metric; a tie does not count as a win."""
    trivial = list(scored.trivial_scores(image_set))
    if image_set not in AGAINST_BASELINES or not trivial:
        return ()
    won = {(d.first, d.second, d.metric) for d in differences if d.winner == d.first}
    names = [e.name for e in scored.experiments if image_set in e.results[scored.target]]
    alike: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for name in names:
        lost = tuple(
            tuple(metric for metric in HIGHER_IS_BETTER if (name, predictor, metric) not in won)
            for predictor in trivial
        )
        alike.setdefault(lost, []).append(name)
    return tuple(
        AgainstBaselines(
            experiments=tuple(who),
            not_beaten=dict(zip(trivial, lost, strict=True)),
            everyone=len(who) == len(names),
        )
        for lost, who in alike.items()
    )


def best_baselines(scored: Scored, image_set: str) -> dict[str, str]:
    """Metric -> the trivial predictor with the best score; empty if there are none."""
    trivial = scored.trivial_scores(image_set)
    return {
        metric: max(trivial, key=lambda name: trivial[name][metric] * (1 if higher else -1))
        for metric, higher in HIGHER_IS_BETTER.items()
        if trivial
    }
