"""The rules by which a challenger is judged, from scores of both networks on the same images.

A table of scores has one row per image: `set` (Val, Test or the name of an external dataset), `id`, `class`,
and the pixel counts `tp`, `fp`, `fn`, `tn` with `dice`, as the stage evaluate computes them. Intervals are
those of `tasks.scoring.intervals`, over images. The weights of both networks are given, so they do not cover
other trainings.

Controls have no reference mask of an infection. They are judged by the share that is marked, with Tango's
interval. So is an external dataset that has only such images, by the share that is not marked.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from models.metrics import Selection
from tasks.common.raw import CLASSES, IMAGE_SETS
from tasks.gate.proportions import paired_proportions
from tasks.gate.verdict import Finding, Rule
from tasks.scoring import verdict as scoring
from tasks.scoring.intervals import Interval
from tasks.settings.schema import Promotion

#: The splits of the dataset: one decides, the other is reported.
DECIDES, REPORTED = "Val", "Test"


class Scores(NamedTuple):
    """The scores of both networks, for the same images in the same order."""

    challenger: pd.DataFrame
    champion: pd.DataFrame | None
    """None: there is no champion yet."""

    def only(self, chosen: "pd.Series[bool]") -> "Scores":
        return Scores(self.challenger[chosen], None if self.champion is None else self.champion[chosen])


def find(
    scores: Scores,
    present: Mapping[str, Iterable[str]],
    promotion: Promotion,
    selection: Selection,
) -> Iterator[Finding]:
    """The findings on all images.

    Args:
        scores: of the images that are judged.
        present: the classes of each set, before images were left out.
        selection: the main score.
    """
    rules = _Rules(promotion, selection)
    for name, classes in present.items():
        of_set = scores.only(scores.challenger["set"] == name)
        found = rules.of_split(name, of_set, set(classes)) if name in (DECIDES, REPORTED) else ()
        yield from found or [rules.external(name, of_set)]


class _Rules(NamedTuple):
    promotion: Promotion
    selection: Selection

    def of_split(self, split: str, scores: Scores, classes: set[str]) -> list[Finding]:
        found = [self._main(split, scores)]
        controls = IMAGE_SETS["controls"] if self.promotion.target == "infection" else ()
        for image_class in CLASSES:
            of_class = scores.only(scores.challenger["class"] == image_class)
            if image_class in classes and image_class in controls:
                bound = self.promotion.false_alarms_by_class
                found.append(self._false_alarms(split, image_class, of_class, bound))
            elif image_class in classes:
                found.append(self._no_worse("image class", f"{split}, {image_class}", of_class, split))
        if classes & set(controls):
            of_controls = scores.only(scores.challenger["class"].isin(controls))
            found.append(self._false_alarms(split, "controls", of_controls, self.promotion.false_alarms))
        return found

    def external(self, name: str, scores: Scores) -> Finding:
        return self._no_worse("external set", name, scores, name)

    def _main(self, split: str, scores: Scores) -> Finding:
        return self._finding("main score", f"{split}, all", scores, split, self.selection, 0.0)

    def _no_worse(self, rule: Rule, images: str, scores: Scores, of_set: str) -> Finding:
        return self._finding(rule, images, scores, of_set, "all", -self.promotion.margin)

    def _finding(
        self, rule: Rule, images: str, scores: Scores, of_set: str, selection: Selection, bound: float
    ) -> Finding:
        """A rule on Dice: the low end of the interval is above the bound."""
        found = self._start(rule, images, scores, of_set)
        if not found.count or scores.champion is None:
            score = scoring.selection_score(scores.challenger, selection) if found.count else None
            return found.model_copy(update={"challenger": score})
        compared = scoring.judge(scores.challenger, scores.champion, selection)
        interval = compared.difference
        if _is_empty(scores.challenger).all():
            interval = _share_difference(~_is_marked(scores.challenger), ~_is_marked(scores.champion))
        means = {"challenger": compared.challenger, "champion": compared.champion}
        return self._decided(found.model_copy(update=means), interval, bound, "low above", compared.reason)

    def _false_alarms(self, split: str, images: str, scores: Scores, bound: float) -> Finding:
        """The share of controls that are marked: the high end of the interval is at most the bound.

        A control in which the reference marks an infection is left out; the audit names it.
        """
        scores = scores.only(_is_empty(scores.challenger))
        found = self._start("false alarms", f"{split}, {images}", scores, split)
        marked = [None if table is None else _is_marked(table) for table in scores]
        shares = [None if one is None or not len(one) else float(one.mean()) for one in marked]
        found = found.model_copy(update=dict(zip(("challenger", "champion"), shares, strict=True)))
        first, second = marked
        if not found.count or first is None or second is None:
            return found
        interval = _share_difference(first, second)
        return self._decided(found, interval, bound, "high at most", "")

    def _start(self, rule: Rule, images: str, scores: Scores, of_set: str) -> Finding:
        """A finding about these images on which nothing is decided yet."""
        count, least = len(scores.challenger), self.promotion.least_images
        few = f"{count} image{'' if count == 1 else 's'}, fewer than promotion.least_images = {least}"
        return Finding(
            rule=rule,
            images=images,
            count=count,
            decides=scores.champion is not None and of_set != REPORTED,
            reason=few if count < least and scores.champion is not None else "",
        )

    def _decided(
        self, found: Finding, interval: Interval | None, bound: float, limit: str, reason: str
    ) -> Finding:
        if interval is None or not np.isfinite([interval.low, interval.high]).all():
            return found.model_copy(update={"reason": found.reason or reason or "no interval"})
        passed = interval.low > bound if limit == "low above" else interval.high <= bound
        return found.model_copy(
            update={
                "difference": interval.value,
                "low": interval.low,
                "high": interval.high,
                "bound": bound,
                "limit": limit,
                "passed": None if found.reason or not found.decides else bool(passed),
            }
        )


def _share_difference(first: "pd.Series[bool]", second: "pd.Series[bool]") -> Interval:
    one, other = first.to_numpy(), second.to_numpy()
    return paired_proportions(int((one & ~other).sum()), int((other & ~one).sum()), len(one))


def _is_empty(table: pd.DataFrame) -> "pd.Series[bool]":
    """Whether the reference mask of each image marks nothing."""
    return (table["tp"] + table["fn"]) == 0


def _is_marked(table: pd.DataFrame) -> "pd.Series[bool]":
    """Whether the predicted mask of each image marks anything."""
    return (table["tp"] + table["fp"]) > 0
