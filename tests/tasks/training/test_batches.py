from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.networks.device import set_up
from tasks.packed.reader import PackedSplit
from tasks.training.batches import Batches


@pytest.fixture
def split(tiny_packed: Path) -> PackedSplit:
    return PackedSplit(tiny_packed, "infection", "Train", ("infection", "lung"), ("COVID-19", "Normal"))


@pytest.mark.parametrize("resident", [False, True])
def test_batches_contain_the_requested_images(split: PackedSplit, resident: bool) -> None:
    batches = Batches(split, set_up(0, "fp32", 1), resident)
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(3))
    images, masks = split.images().numpy() / np.float32(255), split.masks().numpy() / np.float32(255)
    places = torch.split(order, 8)
    assert len(places) == 3 and len(places[-1]) < 8
    for _ in range(2):
        loaded = list(batches(places))
        assert len(loaded) == len(places)
        for at, (x, y) in zip(places, loaded, strict=True):
            np.testing.assert_array_equal(x, images[at])
            np.testing.assert_array_equal(y, masks[at])
            assert x.dtype == y.dtype == torch.float32
    assert len(batches) == len(split)
    assert list(batches(())) == []


def test_waiting_time_is_counted(split: PackedSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = Batches(split, set_up(0, "fp32", 1))
    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    list(batches(torch.split(torch.arange(20), 8)))
    assert batches.waited == 4  # three batches and the end


@pytest.mark.skipif(not torch.cuda.is_available(), reason="requires a GPU")
def test_split_larger_than_gpu_memory_is_read_ahead(split: PackedSplit) -> None:
    compute = set_up(0, "fp32", 1)
    places = torch.split(torch.arange(len(split)), 4)
    kept, read = (list(Batches(split, compute, resident)(places)) for resident in (True, False))
    for (x, y), (u, v) in zip(kept, read, strict=True):
        assert x.is_cuda
        assert torch.equal(x, u)
        assert torch.equal(y, v)
