"""Measure how often intervals tell equal networks apart, and how often they find a real difference.

    python -m benchmarks.false_wins [--trials 200]

Draws scores of networks whose true difference is known, and counts the trials in which an interval of a
difference excludes zero: in any pair of equal networks (a false win), or in the pair with a true difference.

- unadjusted: each pair by itself, by Student's interval over images. Seeds are averaged first.
- simultaneous: tasks.scoring.intervals.differences, over all pairs, images and trainings.

A score is the sum of a part that all networks share, of the network's own mean, and of noise with a standard
deviation of 0.05. The rates of 200 trials vary by about 1.5 points (standard error of a rate of 5%). Takes
half a minute on one core.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent.parent))
from tasks.scoring.intervals import COVERED, Interval, Predictor, differences

IMAGES = 583
NOISE = 0.05  # of an image, between networks and between seeds
SCATTER = 0.006  # of the seeds' means, where the situation has it

Predictors = Mapping[str, Predictor]
Judge = Callable[[Predictors], Sequence[Interval]]


class Situation(NamedTuple):
    """Networks with known true scores."""

    name: str
    seeds: Sequence[int]
    """The number of seeds of each network."""
    scatter: float = 0.0
    """Standard deviation of the seeds' true means."""
    better: float = 0.0
    """The advantage of the first network over all others."""

    def draw(self, random: np.random.Generator) -> dict[str, Predictor]:
        of_image = random.beta(5, 2, IMAGES)
        drawn = {}
        for k, seeds in enumerate(self.seeds):
            shift = random.normal(0, self.scatter, (seeds, 1)) + (self.better if k == 0 else 0.0)
            drawn[str(k)] = Predictor(of_image + shift + random.normal(0, NOISE, (seeds, IMAGES)))
        return drawn

    def trials(self, count: int) -> Iterator[dict[str, Predictor]]:
        random = np.random.default_rng(0)
        return (self.draw(random) for _ in range(count))


EQUAL = [Situation(f"{count} equal networks, 1 seed", [1] * count) for count in (2, 4, 12)]
RECIPES = [
    Situation("2 equal recipes, 3 seeds that scatter", [3, 3], SCATTER),
    Situation("4 equal recipes, 3 seeds that scatter", [3] * 4, SCATTER),
    Situation("4 equal recipes, 3 + 1 + 1 + 1 seeds that scatter", [3, 1, 1, 1], SCATTER),
]
REAL = [
    Situation("2 networks, 1 seed, true difference 0.02", [1, 1], better=0.02),
    Situation("12 networks, 1 seed, one better by 0.02", [1] * 12, better=0.02),
    Situation("2 recipes, 3 seeds that scatter, true difference 0.02", [3, 3], SCATTER, 0.02),
    Situation("12 recipes, 3 seeds that scatter, one better by 0.02", [3] * 12, SCATTER, 0.02),
]


def unadjusted(predictors: Predictors) -> list[Interval]:
    """Student's interval of each pair by itself, of the means over the seeds."""
    means = [predictor.values.mean(axis=0) for predictor in predictors.values()]
    found = stats.ttest_1samp(np.stack([a - b for a, b in combinations(means, 2)]), 0, axis=1)
    low, high = found.confidence_interval(COVERED)
    return [Interval(float("nan"), *bounds) for bounds in zip(low, high, strict=True)]


def simultaneous(predictors: Predictors) -> list[Interval]:
    strata = np.zeros(IMAGES, dtype=int)
    return list(differences(predictors, strata).intervals.values())


def rate(situation: Situation, judge: Judge, trials: int) -> float:
    """The share of trials with a false win, or that find the first network better than the second."""
    found = 0
    for predictors in situation.trials(trials):
        intervals = judge(predictors)
        if situation.better:
            found += intervals[0].low > 0
        else:
            found += any(interval.excludes_zero for interval in intervals)
    return found / trials


def table(trials: int) -> Iterator[str]:
    headings = {"false wins in any pair (nominal: 5%)": [*EQUAL, *RECIPES], "real difference found": REAL}
    for heading, situations in headings.items():
        yield f"{heading:54} {'unadjusted':>10} {'simultaneous':>12}"
        for situation in situations:
            rates = [rate(situation, judge, trials) for judge in (unadjusted, simultaneous)]
            yield f"{situation.name:54} {rates[0]:10.1%} {rates[1]:12.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    for line in table(parser.parse_args().trials):
        print(line, flush=True)


if __name__ == "__main__":
    main()
