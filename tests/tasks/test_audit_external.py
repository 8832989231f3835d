"""Images of an external dataset that are also in the dataset of the trainings."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from tasks.audit_external import audit_external, find_overlap

NOISE = np.random.default_rng(0)
LEAST = 0.98


def thumbnails(count: int) -> np.ndarray:
    return NOISE.integers(0, 256, (count, 32, 32), dtype=np.uint8)


def near(thumbnail: np.ndarray, noise: float = 2.0) -> np.ndarray:
    """A brighter copy with less contrast; the correlation is about 0.998."""
    return (60 + thumbnail / 2 + NOISE.normal(0, noise, (32, 32))).astype(np.uint8)


def table(prefix: str, count: int) -> pd.DataFrame:
    names = [f"{prefix}{number}" for number in range(count)]
    return pd.DataFrame({"id": [f"infection/Test/Normal/{name}" for name in names], "sha256": names})


def test_identical_and_similar_images_are_found_with_the_most_similar_one() -> None:
    own, others = thumbnails(5), thumbnails(4)
    dataset, external = table("d", 5), table("e", 4)
    others[0] = own[3]  # another image with the same thumbnail
    others[1] = near(own[1])
    own[4] = near(own[1], noise=30.0)  # similar too, but less so
    external.loc[2, "sha256"] = "d2"  # the same pixels
    found = find_overlap(dataset, external, own, others, LEAST)
    assert list(found["id"]) == list(external["id"][:3])
    assert list(found["also"]) == [dataset["id"][row] for row in (3, 1, 2)]
    assert list(found["exact"]) == [False, False, True]
    assert found["correlation"].iloc[0] == found["correlation"].iloc[2] == 1.0
    assert LEAST <= found["correlation"].iloc[1] < 1.0


def test_the_same_pixels_count_before_the_correlation() -> None:
    own, others = thumbnails(2), thumbnails(1)
    others[0] = own[0]
    external = table("e", 1).assign(sha256="d1")
    found = find_overlap(table("d", 2), external, own, others, LEAST)
    assert found["also"].item() == "infection/Test/Normal/d1"


def test_different_images_do_not_overlap(tmp_path: Path) -> None:
    for name, count in (("own", 3), ("other", 4)):
        (tmp_path / name).mkdir()
        table(name, count).to_csv(tmp_path / name / "images.csv", index=False)
        np.save(tmp_path / name / "thumbnails.npy", thumbnails(count))
    rejected = pd.DataFrame({"id": ["infection/Test/Normal/x"], "reason": ["damaged"]})
    rejected.to_csv(tmp_path / "other" / "rejected.csv", index=False)
    audit_external(tmp_path / "own", tmp_path / "other", tmp_path / "out", LEAST)
    assert pd.read_csv(tmp_path / "out" / "overlap.csv").empty
    assert json.loads((tmp_path / "out" / "counts.json").read_text()) == {"images": 5, "unusable": 1}
