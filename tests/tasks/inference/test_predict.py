from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tasks.common.raw import encode_mask
from tasks.inference.predict import predict_images
from tasks.packed.reader import PackedSplit
from tasks.support.cli import InputError
from tests.tasks.inference.conftest import COMPUTE, Darkness


class Small(nn.Module):
    """Predicts as `Darkness` does, but has memory for a few images only."""

    def __init__(self, fits: int, error: Exception) -> None:
        super().__init__()
        self._fits, self._error = fits, error
        self.asked: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(x))
        if len(x) > self._fits:
            raise self._error
        probabilities: torch.Tensor = Darkness()(x)
        return probabilities


@pytest.fixture
def many(val: PackedSplit, monkeypatch: pytest.MonkeyPatch) -> PackedSplit:
    """Images for two batches, the second one smaller."""
    assert len(val) >= 5
    monkeypatch.setattr("tasks.inference.predict.BATCH", min(32, len(val) - 1))
    return val


SHORT = (
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"),
)


@pytest.mark.parametrize("error", SHORT, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("flip_average", [False, True])
def test_prediction_uses_smaller_batches_while_memory_is_short(
    many: PackedSplit, capsys: pytest.CaptureFixture[str], error: Exception, flip_average: bool
) -> None:
    whole = predict_images([Darkness()], many, COMPUTE, flip_average, "")
    expected = torch.stack([of_one.averaged for of_one in whole])
    network = Small(1, error)
    predicted = predict_images([network], many, COMPUTE, flip_average, "Val batches")
    found = torch.stack([of_one.averaged for of_one in predicted])
    assert torch.equal(found, expected)
    first = len(many) - 1
    assert f"Val batches: not enough memory for {first} images at a time; using {first // 2}" in (
        capsys.readouterr().out
    )
    # Later batches begin with the size that fitted.
    attempts = [asked for asked in network.asked if asked > 1]
    assert attempts == sorted(set(attempts), reverse=True)
    assert network.asked[len(attempts) :] == [1] * (len(many) * (1 + flip_average))


def test_too_little_memory_for_one_image_is_an_error(many: PackedSplit) -> None:
    with pytest.raises(InputError, match="best Val batches: not enough memory for a single image; lower"):
        list(predict_images([Small(0, MemoryError())], many, COMPUTE, False, "best Val batches"))


def test_other_errors_of_a_network_are_raised(many: PackedSplit) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(predict_images([Small(0, RuntimeError("shapes differ"))], many, COMPUTE, False, ""))


def test_masks_survive_a_png_round_trip(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((13, 7)) > 0.5
    (tmp_path / "m.png").write_bytes(encode_mask(mask))
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "1"
        np.testing.assert_array_equal(np.asarray(image), mask)


def test_flip_average_is_symmetric(val: PackedSplit) -> None:
    found = list(predict_images([Darkness()], val, COMPUTE, True, ""))
    plain, averaged = (
        torch.stack([getattr(of_one, name) for of_one in found]) for name in ("plain", "averaged")
    )
    for alone in predict_images([Darkness()], val, COMPUTE, False, ""):
        assert alone.plain is alone.averaged
    images = val.images().float() / 255
    mirrored = torch.sigmoid(Darkness()(images.flip(-1))).flip(-1)
    torch.testing.assert_close(averaged, (plain + mirrored) / 2)
    torch.testing.assert_close(plain, torch.sigmoid(Darkness()(images)))
    assert not torch.allclose(averaged, plain)
