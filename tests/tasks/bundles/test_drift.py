from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from tasks.bundles.drift import COMPARED, FEWEST_VAL, SIZES, Reference, distance, reference_of, take_reference
from tasks.bundles.fingerprint import Fingerprint, take_fingerprint
from tasks.support.cli import InputError
from tests.bundles import Pipeline
from tests.drifting import (
    NEW,
    VAL,
    Pixels,
    chests,
    darker,
    inverted,
    make_fingerprint,
    other_scanner,
    thumbnails,
)

Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def fingerprint() -> Fingerprint:
    return make_fingerprint()


@pytest.fixture(scope="module")
def new() -> list[Pixels]:
    return list(chests(NEW, 500))


@pytest.fixture(scope="module")
def of_val(fingerprint: Fingerprint) -> Floats:
    return fingerprint.measure(thumbnails(chests(VAL, 200)))


@pytest.fixture(scope="module")
def measured(fingerprint: Fingerprint, new: list[Pixels]) -> Floats:
    return fingerprint.measure(thumbnails(iter(new)))


def share_of_alarms(reference: Reference, measured: Floats, size: int, batches: int = 400) -> float:
    rng = np.random.default_rng(1)
    drawn = (measured[rng.choice(len(measured), size, replace=False)] for _ in range(batches))
    return float(np.mean([any(row.drifted for row in reference.compare(one)) for one in drawn]))


def test_at_most_one_of_twenty_undrifted_batches_raises_an_alarm(of_val: Floats, measured: Floats) -> None:
    """On average also with a small Val. A single one may represent its source badly."""
    whole, *parts = (reference_of(part) for part in (of_val, *np.split(of_val, 5)))
    for size in (10, 35, 100):
        assert share_of_alarms(whole, measured, size) <= 0.05
        assert np.mean([share_of_alarms(part, measured, size, 100) for part in parts]) <= 0.05


@pytest.mark.parametrize("change", [darker, inverted, other_scanner])
def test_drifted_batches_raise_an_alarm(
    fingerprint: Fingerprint, of_val: Floats, new: list[Pixels], change: Callable[[Pixels], Pixels]
) -> None:
    reference = reference_of(of_val)
    drifted = fingerprint.measure(thumbnails(change(image) for image in new[:200]))
    assert share_of_alarms(reference, drifted, 20, 100) >= 0.95
    assert share_of_alarms(reference, drifted, 50, 100) == 1


def test_the_distance_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    for sizes in ((1, 1), (5, 7), (100, 30)):
        one, other = (rng.integers(0, 12, size).astype(float) for size in sizes)
        assert distance(one, other) == pytest.approx(ks_2samp(one, other).statistic)


def test_the_table_names_what_has_drifted(measured: Floats) -> None:
    reference = reference_of(measured[:300])
    brighter = measured[300:400] + np.array([0, 0, 80, 0])
    rows = reference.compare(brighter)
    assert [row.measure for row in rows] == list(COMPARED)
    assert [row.measure for row in rows if row.drifted] == ["brightness"]
    assert rows[2].last_median == pytest.approx(rows[2].val_median + 80, abs=15)


def test_larger_batches_have_lower_thresholds(measured: Floats) -> None:
    reference = reference_of(measured[:300])
    found = [reference.threshold(size) for size in (5, *SIZES, 10_000)]
    assert found == sorted(found, reverse=True)
    assert found[0] == found[1]
    assert found[-1] == found[-2]
    assert reference.threshold(100) < reference.threshold(75) < reference.threshold(50)


def test_a_reference_is_in_the_file_of_the_fingerprint(
    fingerprint: Fingerprint, measured: Floats, tmp_path: Path
) -> None:
    reference, file = reference_of(measured[:50]), tmp_path / "fingerprint.npz"
    file.write_bytes(fingerprint.to_bytes(reference.arrays()))
    found = Reference.read(file)
    assert found
    for one, other in zip(found, reference, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    np.testing.assert_allclose(Fingerprint.read(file).mean, fingerprint.mean, rtol=1e-6)
    file.write_bytes(fingerprint.to_bytes())
    assert Reference.read(file) is None
    file.write_bytes(b"noise")
    with pytest.raises(InputError, match="not a fingerprint"):
        Reference.read(file)


def test_a_reference_is_taken_from_val_images(pipeline: Pipeline) -> None:
    """The tiny dataset has too few of them for a reference."""
    classes = ("COVID-19", "Non-COVID", "Normal")
    fingerprint = take_fingerprint(pipeline.packed, "infection", classes)
    assert take_reference(pipeline.packed, "infection", classes, fingerprint) is None
    assert FEWEST_VAL == 30
