"""Measure how often the gate passes a challenger that is worse, and how large a gain it finds.

    python -m benchmarks.gate [--trials 1000]

Draws scores of a champion and of challengers whose true difference is known, on as many images as the Val
split of COVID-QU-Ex has: 466 COVID-19, 233 Non-COVID and 233 Normal. They pass through `tasks.gate.rules`,
with the limits of params.yaml. Parity and audit are not drawn.

The networks differ as two trainings of `combined` in docs/results.md do. On COVID-19 images the champion has
a mean Dice of 0.71: it leaves 8% of the images unmarked, and has 0.77 on the others. On 4% of the images
only one of the two networks marks anything. On images that both mark, the standard deviation of the
difference in Dice is 0.08. The champion marks 4% of the Non-COVID and 0.7% of the Normal images; 2.9% and
0.6% are marked by only one of the two. The table also has networks that are half and twice as different.

A rate of 5% has a standard error of 0.7 points after 1,000 trials. A trial takes 0.04 s on one core, the
whole table 15 minutes.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))
from tasks.gate.rules import DECIDES, Scores, find
from tasks.gate.verdict import Finding, outcome_of
from tasks.settings.schema import Promotion

Drawn = NDArray[np.generic]

IMAGES = {"COVID-19": 466, "Non-COVID": 233, "Normal": 233}
COVID, CONTROLS = "COVID-19", ("Non-COVID", "Normal")
MISSED = 0.08  # share of COVID-19 images that the champion leaves unmarked
MEAN, SPREAD = 0.77, 0.19  # of its Dice on the others
FLIPPED = 0.04  # share of COVID-19 images that only one of the two networks marks
NOISE = 0.08  # standard deviation of the difference on images that both mark
ALARMS = {"Non-COVID": 0.04, "Normal": 0.007}  # share of controls that the champion marks
APART = {"Non-COVID": 0.029, "Normal": 0.006}  # share of controls that only one of the two marks
PIXELS = 256 * 256
#: A gain is found if it passes in this share of trials.
POWER = 0.8
#: Gains that are tried.
GAINS = [round(0.005 * step, 3) for step in range(1, 21)]


class Challenger(NamedTuple):
    """A challenger with a known true difference from the champion."""

    name: str
    gain: float = 0.0
    """Of the mean Dice on COVID-19 images."""
    more_alarms: Mapping[str, float] = {}
    """What is added to the share of marked images of a class of controls."""
    apart: float = 1.0
    """How different the two networks are, compared with two trainings of one experiment."""

    def draw(self, random: np.random.Generator) -> Scores:
        tables = [self._covid(random), *(self._controls(random, name) for name in CONTROLS)]
        champion, challenger = (pd.concat(of_one, ignore_index=True) for of_one in zip(*tables, strict=True))
        return Scores(challenger, champion)

    def _covid(self, random: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
        count, total = IMAGES[COVID], MEAN * (1 - MEAN) / SPREAD**2 - 1
        marked = random.beta(MEAN * total, (1 - MEAN) * total, count)
        drawn, only = random.random(count), FLIPPED * self.apart / 2
        missed = drawn < MISSED
        # Missed by both, by the champion alone, by the challenger alone.
        missed_too = (drawn < MISSED - only) | ((drawn >= MISSED) & (drawn < MISSED + only))
        # Student's t with 3 degrees of freedom, whose variance is 3: a few differences are large.
        noise = NOISE * self.apart * random.standard_t(3, count) / np.sqrt(3)
        # Not limited to [0, 1], so that the mean difference is exactly the gain.
        champion = np.where(missed, 0.0, marked)
        challenger = np.where(missed_too, 0.0, marked) + np.where(missed | missed_too, 0.0, noise) + self.gain
        return _table(COVID, champion, 0, 900), _table(COVID, challenger, 0, 900)

    def _controls(self, random: np.random.Generator, name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        drawn, only = random.random(IMAGES[name]), APART[name] * self.apart / 2
        more = self.more_alarms.get(name, 0.0)
        champion = drawn < ALARMS[name]
        # Those of the champion except `only`, and as many of the others, and more.
        added = (drawn >= ALARMS[name]) & (drawn < ALARMS[name] + only + more)
        challenger = (drawn < ALARMS[name] - only) | added
        return _table(name, ~champion, champion, 0), _table(name, ~challenger, challenger, 0)


def _table(image_class: str, dice: Drawn, marked: Drawn | int, reference: int) -> pd.DataFrame:
    """Scores, with pixel counts that say whether an image is marked and whether its reference is empty."""
    wrong = 900 * np.asarray(marked, dtype=int)
    return pd.DataFrame(
        {
            "set": DECIDES,
            "seed": 0,
            "id": [f"{image_class}/{number}" for number in range(len(dice))],
            "class": image_class,
            "tp": reference,
            "fp": wrong,
            "fn": 0,
            "tn": PIXELS - wrong - reference,
            "dice": dice.astype(float),
        }
    )


def judge(scores: Scores, promotion: Promotion) -> tuple[Finding, ...]:
    return tuple(find(scores, {DECIDES: [*IMAGES]}, promotion, "balanced"))


def rate(challenger: Challenger, promotion: Promotion, trials: int) -> float:
    """The share of trials in which the challenger passes."""
    random = np.random.default_rng(0)
    outcomes = [outcome_of(judge(challenger.draw(random), promotion)) for _ in range(trials)]
    return outcomes.count("passed") / trials


def found_gain(promotion: Promotion, trials: int, like: Challenger) -> float | None:
    """The least of `GAINS` that passes in at least `POWER` of the trials, by bisection; None if none does."""
    low, high = 0, len(GAINS)
    while low < high:
        middle = (low + high) // 2
        enough = rate(like._replace(gain=GAINS[middle]), promotion, trials) >= POWER
        low, high = (low, middle) if enough else (middle + 1, high)
    return GAINS[low] if low < len(GAINS) else None


def worse(promotion: Promotion) -> list[Challenger]:
    """Challengers that are worse by exactly a limit and otherwise clearly better, and some that are equal."""
    margin, by_class = promotion.margin, promotion.false_alarms_by_class
    both = dict.fromkeys(CONTROLS, promotion.false_alarms)
    fewer = {"Non-COVID": -0.03, "Normal": -0.005}
    return [
        Challenger("COVID-19: Dice worse by margin, hardly any false alarms", -margin, fewer),
        Challenger("false alarms more by false_alarms, Dice better by 0.1", 0.1, both),
        Challenger("Non-COVID: more by false_alarms_by_class, Dice +0.1", 0.1, {"Non-COVID": by_class}),
        Challenger("Normal: more by false_alarms_by_class, Dice +0.1", 0.1, {"Normal": by_class}),
        Challenger("equal"),
        Challenger("equal, half as different", apart=0.5),
        Challenger("equal, twice as different", apart=2.0),
    ]


LIKE = [
    Challenger("as different as two trainings"),
    Challenger("half as different", apart=0.5),
    Challenger("twice as different", apart=2.0),
]


def table(trials: int, promotion: Promotion) -> Iterator[str]:
    yield f"{'passes although it is worse, or not better':54} {'rate':>7}"
    for challenger in worse(promotion):
        yield f"{challenger.name:54} {rate(challenger, promotion, trials):7.1%}"
    yield f"{f'least gain of Dice on COVID-19 that passes in {POWER:.0%}':54} {'gain':>7} {'rate at 0.1':>13}"
    for like in LIKE:
        gain = found_gain(promotion, trials, like)
        most = rate(like._replace(gain=GAINS[-1]), promotion, trials)
        yield f"{like.name:54} {'none' if gain is None else format(gain, '.3f'):>7} {most:13.1%}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    for line in table(parser.parse_args(arguments).trials, Promotion()):
        print(line, flush=True)


if __name__ == "__main__":
    main()
