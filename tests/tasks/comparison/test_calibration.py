import pandas as pd
import pytest

from tasks.comparison.calibration import pooled_bins


def test_bins_of_several_seeds_are_weighted_by_pixels() -> None:
    table = pd.DataFrame(
        [
            (0, "lung", "all", 14, 300, 0.96, 0.9),
            (1, "lung", "all", 14, 100, 0.92, 0.5),
            (1, "lung", "all", 0, 50, 0.01, 0.0),
            (0, "lung", "covid", 14, 10, 0.99, 1.0),
            (0, "infection", "all", 14, 10, 0.99, 1.0),
        ],
        columns=["seed", "target", "image_set", "bin", "pixels", "mean_probability", "true_share"],
    )
    found = pooled_bins(table, "lung", "all")
    assert found.index.tolist() == [0, 14]
    assert found.loc[14].tolist() == pytest.approx([0.95, 0.8])
