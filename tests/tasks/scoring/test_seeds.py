from tasks.scoring.seeds import mean_metrics


def test_seeds_are_averaged() -> None:
    one = {"infection": {"covid": {"images": 2, "iou": 0.5, "share_correlation": 0.1}}}
    other = {"infection": {"covid": {"images": 2, "iou": 0.6}}}
    assert mean_metrics([one, other]) == {"infection": {"covid": {"images": 2, "iou": 0.55}}}
    assert mean_metrics([one]) == one
