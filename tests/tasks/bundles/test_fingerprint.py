from pathlib import Path

import numpy as np
import pytest

from tasks.bundles.fingerprint import Fingerprint, fingerprint_of
from tasks.support.cli import InputError


def chests(count: int, seed: int) -> np.ndarray:
    """Bright rectangles with two dark ones inside, uint8 (N, 32, 32)."""
    rng = np.random.default_rng(seed)
    noise = rng.uniform(1, 12, (count, 1, 1))
    images = rng.normal(60, noise, (count, 32, 32))
    for image in images:
        top, left = rng.integers(2, 7, 2)
        image[top : top + 24, left : left + 22] += 120
        for side in (left + 3, left + 12):
            image[top + 5 : top + 19, side : side + 7] -= 90
    return images.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def fingerprint() -> Fingerprint:
    return fingerprint_of(chests(1000, 0).astype(float), np.linspace(0.15, 0.35, 1000))


def share_of_warnings(fingerprint: Fingerprint, images: np.ndarray) -> float:
    return float(np.mean([bool(fingerprint.unusual(image.astype(np.uint8), 0.25)) for image in images]))


def test_new_images_of_the_same_kind_are_usual(fingerprint: Fingerprint) -> None:
    assert share_of_warnings(fingerprint, chests(500, 1)) < 0.03


def test_images_of_another_kind_are_not(fingerprint: Fingerprint) -> None:
    images = chests(100, 1)
    noise = np.random.default_rng(0).integers(0, 256, (100, 32, 32))
    for others in (255 - images, np.rot90(images, axes=(1, 2)), noise, np.full((1, 32, 32), 100)):
        assert share_of_warnings(fingerprint, others) > 0.95


def test_what_is_unusual_is_named(fingerprint: Fingerprint) -> None:
    image = chests(1, 2)[0]
    assert fingerprint.unusual(image, 0.25) == fingerprint.unusual(image, None) == []
    assert fingerprint.unusual(image, 0.9) == ["lung_area"]
    assert "brightness" in fingerprint.unusual(image // 8, 0.25)
    assert "likeness" in fingerprint.unusual(255 - image, 0.25)


def test_a_fingerprint_survives_a_round_trip(fingerprint: Fingerprint, tmp_path: Path) -> None:
    (tmp_path / "f.npz").write_bytes(fingerprint.to_bytes())
    found = Fingerprint.read(tmp_path / "f.npz")
    for one, other in zip(found, fingerprint, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert found.to_bytes() == fingerprint.to_bytes()


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY", b"noise" * 100])
def test_another_file_is_an_input_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "f.npz").write_bytes(content)
    with pytest.raises(InputError, match="not a fingerprint"):
        Fingerprint.read(tmp_path / "f.npz")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("mean", np.zeros(5)),
        ("mean", np.full(1024, np.nan)),
        ("components", np.zeros((16, 5))),
        ("low", np.zeros(2)),
        ("high", np.full(5, np.nan)),
    ],
)
def test_arrays_that_do_not_fit_are_an_input_error(
    name: str, values: np.ndarray, fingerprint: Fingerprint, tmp_path: Path
) -> None:
    (tmp_path / "f.npz").write_bytes(fingerprint._replace(**{name: values}).to_bytes())
    with pytest.raises(InputError, match="not a fingerprint"):
        Fingerprint.read(tmp_path / "f.npz")
