from tests.results import Work


def test_baselines_that_are_not_beaten_are_listed(work: Work) -> None:
    work.add("dead", shift=0, dead=True)
    (section,) = (s for s in work.compare().sections if s.target == "infection")
    found = {of_one.experiments: of_one.not_beaten for of_one in section.main.against_baselines}
    assert found["bce", "bce_iou"] == {"all_background": (), "all_foreground": (), "whole_lung": ()}
    assert found[("dead",)]["all_background"] == ("iou", "dice", "mae")  # the same masks
    assert "mae" not in found[("dead",)]["all_foreground"]
    assert section.main.best_baselines == {
        "iou": "whole_lung",
        "dice": "whole_lung",
        "mae": "all_background",
    }
