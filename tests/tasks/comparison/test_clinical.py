import pytest

from tests.results import Work

BOTH = ("infection", "lung")


def test_detection_by_image(work: Work) -> None:
    work.add("dead", shift=0, dead=True)
    found = {of_one.experiment: of_one for of_one in work.compare().sections[0].detection}
    assert found.keys() == {"bce", "bce_iou", "dead"}
    assert found["bce"].sensitivity.value == 1
    assert found["bce"].specificity.keys() == {"controls", "non_covid", "normal"}
    assert found["bce"].specificity["controls"].value == 1
    areas = {curve.image_set: curve.area.value for curve in found["bce"].curves}
    assert areas == {"controls": 1, "non_covid": 1, "normal": 1}
    assert found["dead"].sensitivity.value == 0
    assert found["dead"].curves[0].area.value == 0.5


def test_infected_share_agrees_within_limits(work: Work) -> None:
    work.add("both", shift=1, targets=BOTH)
    (found,) = work.compare().sections[0].limits
    assert found.experiment == "both"
    assert found.images == 6
    assert found.bias.value == pytest.approx(0.1)
    assert found.error == pytest.approx(0.1)
    assert found.lower.value == found.upper.value == pytest.approx(0.1)


def test_lungs_have_no_clinical_questions(work: Work) -> None:
    work.add("both", shift=1, targets=BOTH)
    (lung,) = (s for s in work.compare().sections if s.target == "lung")
    assert (lung.detection, lung.limits, lung.sizes) == ((), (), ())


def test_quarters_need_two_images_each(work: Work) -> None:
    assert work.compare().sections[0].sizes == ()
