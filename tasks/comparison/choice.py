"""Chooses an experiment by its score on the Val split. Test scores play no part in it."""

from models.metrics import Selection
from tasks.comparison.differences import family
from tasks.comparison.document import Choice
from tasks.comparison.inputs import Scored
from tasks.comparison.scores import as_score, predictor, selection_values
from tasks.scoring.intervals import scores


def choice(scored: Scored) -> Choice | None:
    """The experiment with the best `balanced` score on all Val images; None without experiments.

    All experiments are compared by this score, whatever score chose their own epochs and thresholds. Where
    every image has a reference mask, or none has, it is the mean Dice.
    """
    if not scored.experiments:
        return None
    table = scored.table("Val", "all")
    has = table.nonempty
    selection: Selection = "balanced" if has.any() and not has.all() else "all"
    values = {name: selection_values(table, name, selection) for name in scored.names}
    found = scores({name: predictor(table, name, values[name]) for name in values}, table.strata, (0.0, 1.0))
    ranking = sorted(values, key=lambda name: -found.intervals[name].value)
    best = ranking[0]
    of_pairs = family(table, selection, {name: values[name] for name in ranking})
    against = of_pairs.of(best, ranking)
    return Choice(
        selection=selection,
        images=len(table),
        chosen=best,
        scores={name: as_score(found.intervals[name]) for name in ranking},
        family=of_pairs,
        level=tuple(d.second for d in against if d.winner is None),
        beaten=tuple(d.second for d in against if d.winner == best),
    )
