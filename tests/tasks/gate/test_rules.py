"""Rules on tables of scores whose differences are known."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from tasks.gate.rules import Scores, find
from tasks.gate.verdict import Finding, outcome_of
from tasks.settings.schema import Promotion

COUNT = 200
CLASSES = ("COVID-19", "Non-COVID", "Normal")
NOISE = np.random.default_rng(0).normal(0, 0.01, COUNT)


def covid(dice: float, of_set: str = "Val", image_class: str = "COVID-19") -> pd.DataFrame:
    """Images with a mask, on each of which a network has about this Dice."""
    return rows(of_set, image_class, dice + (NOISE if dice != 0.7 else 0 * NOISE), reference=100)


def controls(marked: int, image_class: str, of_set: str = "Val") -> pd.DataFrame:
    """Images without a mask. A network marks the first ones."""
    wrong = np.arange(COUNT) < marked
    return rows(of_set, image_class, 1.0 - wrong, wrong=wrong * 50)


def rows(of_set: str, image_class: str, dice: object, reference: int = 0, wrong: object = 0) -> pd.DataFrame:
    ids = [f"{of_set}/{image_class}/{number}" for number in range(COUNT)]
    table = pd.DataFrame(
        {"set": of_set, "seed": 0, "id": ids, "class": image_class, "dice": dice, "fp": wrong}
    )
    return table.assign(tp=reference, fn=0, tn=1000 - table["fp"] - reference)


def judge(
    champion: Sequence[pd.DataFrame], challenger: Sequence[pd.DataFrame], **limits: object
) -> list[Finding]:
    scores = Scores(pd.concat(challenger, ignore_index=True), pd.concat(champion, ignore_index=True))
    present = {
        name: [*of_set["class"].unique()] for name, of_set in scores.challenger.groupby("set", sort=False)
    }
    return list(find(scores, present, Promotion(**limits), "balanced"))  # type: ignore[arg-type]


def of(findings: list[Finding], rule: str, images: str) -> Finding:
    (found,) = (one for one in findings if (one.rule, one.images) == (rule, images))
    return found


CHAMPION = (covid(0.7), controls(10, "Non-COVID"), controls(4, "Normal"))


def test_a_better_network_passes_every_rule() -> None:
    findings = judge(CHAMPION, [covid(0.75), *CHAMPION[1:]])
    assert [(one.rule, one.images) for one in findings] == [
        ("main score", "Val, all"),
        ("image class", "Val, COVID-19"),
        ("false alarms", "Val, Non-COVID"),
        ("false alarms", "Val, Normal"),
        ("false alarms", "Val, controls"),
    ]
    assert outcome_of(tuple(findings)) == "passed"
    assert findings[0].difference == pytest.approx(0.05 / 2, abs=1e-3)  # half of balanced is on controls
    assert (findings[4].champion, findings[4].challenger) == (14 / 400, 14 / 400)


def test_a_gain_does_not_pay_for_more_false_alarms_in_one_class() -> None:
    """30 of 200 Normal images instead of 4: 13 points more, of the controls 6.5."""
    findings = judge(CHAMPION, [covid(0.95), CHAMPION[1], controls(30, "Normal")])
    assert {one.images: one.passed for one in findings} == {
        "Val, all": True,
        "Val, COVID-19": True,
        "Val, Non-COVID": True,
        "Val, Normal": False,
        "Val, controls": False,
    }
    normal = of(findings, "false alarms", "Val, Normal")
    assert (normal.difference, normal.bound) == (pytest.approx(26 / 200), Promotion().false_alarms_by_class)
    assert outcome_of(tuple(findings)) == "failed"


def test_the_limits_are_those_of_params() -> None:
    worse = [covid(0.695), *CHAMPION[1:]]
    assert of(judge(CHAMPION, worse), "image class", "Val, COVID-19").passed
    assert of(judge(CHAMPION, worse, margin=0.004), "image class", "Val, COVID-19").passed is False
    more = [CHAMPION[0], controls(12, "Non-COVID"), CHAMPION[2]]
    assert of(judge(CHAMPION, more), "false alarms", "Val, controls").passed
    assert of(judge(CHAMPION, more, false_alarms=0.006), "false alarms", "Val, controls").passed is False


def test_an_external_dataset_decides_with_the_margin() -> None:
    elsewhere = covid(0.7, "hospital"), covid(0.6, "hospital")
    findings = judge([*CHAMPION, elsewhere[0]], [covid(0.75), *CHAMPION[1:], elsewhere[1]])
    found = of(findings, "external set", "hospital")
    assert (found.passed, found.decides, found.bound) == (False, True, -0.02)
    assert found.difference == pytest.approx(-0.1, abs=2e-3)
    assert outcome_of(tuple(findings)) == "failed"


def test_an_external_dataset_of_controls_alone_is_judged_by_the_share_left_unmarked() -> None:
    elsewhere = controls(2, "Normal", "hospital"), controls(40, "Normal", "hospital")
    found = of(judge([*CHAMPION, elsewhere[0]], [*CHAMPION, elsewhere[1]]), "external set", "hospital")
    assert (found.champion, found.challenger, found.passed) == (0.99, 0.8, False)
    assert found.difference == pytest.approx(-38 / 200)


def test_a_control_with_an_infection_counts_in_no_false_alarm() -> None:
    odd = rows("Val", "Normal", 0.7, reference=100)
    champion = [CHAMPION[0], CHAMPION[1], pd.concat([CHAMPION[2].iloc[:150], odd.iloc[150:]])]
    findings = judge(champion, champion)
    assert of(findings, "false alarms", "Val, Normal").count == 150
    assert of(findings, "false alarms", "Val, controls").count == 350


def test_few_images_decide_nothing() -> None:
    findings = judge(CHAMPION, [covid(0.75), *CHAMPION[1:]], least_images=201)
    assert of(findings, "main score", "Val, all").passed  # 600 images
    few = of(findings, "image class", "Val, COVID-19")
    assert (few.passed, few.reason) == (None, "200 images, fewer than promotion.least_images = 201")
    assert outcome_of(tuple(findings)) == "undecided"


def test_lungs_have_a_mask_in_every_class() -> None:
    both = [covid(0.9, image_class=name) for name in CLASSES]
    findings = judge(both, both, target="lung")
    assert [one.rule for one in findings] == ["main score", *["image class"] * 3]
