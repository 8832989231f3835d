"""The card of a real bundle, with scores put in by hand."""

import pytest

from tasks.bundles.card import card, score_words
from tasks.bundles.schema import Bundle, ScoreRecord, open_bundle
from tests.bundles import Pipeline


def score(target: str, image_set: str, images: int, metric: str, *values: float) -> ScoreRecord:
    value, low, high = values
    return ScoreRecord(
        target=target, image_set=image_set, images=images, metric=metric, value=value, low=low, high=high
    )


@pytest.fixture
def bundle(pipeline: Pipeline) -> Bundle:
    scores = (
        score("infection", "covid", 1583, "dice", 0.7182, 0.6961, 0.7404),
        score("infection", "covid", 1583, "missed", 0.07, 0.052, 0.0941),
        score("infection", "controls", 583, "false_positive_rate", 0.0241, 0.0142, 0.0398),
        score("lung", "all", 1166, "dice", 0.9642, 0.9611, 0.9658),
    )
    return open_bundle(pipeline.bundle("combined")).model_copy(update={"scores": scores})


def test_scores_of_images_are_percentages(bundle: Bundle) -> None:
    text = card(bundle)
    assert "| infection | COVID-19 | 1,583 | Dice | 0.718 (0.696 to 0.740) |" in text
    assert "| infection | COVID-19 | 1,583 | missed images | 7.0% (5.2% to 9.4%) |" in text
    assert "| infection | controls | 583 | images falsely marked | 2.4% (1.4% to 4.0%) |" in text
    assert (
        "**combined** predicts infection and lung. Trained on images of COVID-19, Non-COVID and Normal."
        in text
    )


def test_main_scores_in_words(bundle: Bundle) -> None:
    assert list(score_words(bundle)) == [
        "infection: Dice 0.718 on 1,583 COVID-19 images, 7.0% of them missed, "
        "2.4% of 583 controls falsely marked",
        "lung: Dice 0.964 on 1,166 images",
    ]
