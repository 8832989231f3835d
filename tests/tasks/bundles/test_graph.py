from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from models.networks import NETWORKS
from models.patches import Patchwise
from tasks.bundles.engines import mirror_averaged, onnx_engine
from tasks.bundles.graph import write_graph
from tasks.support.cli import InputError


def with_statistics(network: nn.Module) -> nn.Module:
    """Normalisation layers of an untrained network would change nothing."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_gives_the_same_probabilities(name: str, patch: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = with_statistics(
        Patchwise(
            lambda **channels: NETWORKS[name](width=4, depth=2, **channels), 1, out_channels=2, patch=patch
        )
    )
    write_graph(network, 2, 32, tmp_path / "network.onnx")
    images = torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        expected = torch.sigmoid(network(images)).numpy()
    found = onnx_engine(tmp_path / "network.onnx")(images.numpy())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert found.std() > 0.001


def test_another_shape_than_expected_is_an_input_error(tmp_path: Path) -> None:
    file = tmp_path / "network.onnx"
    write_graph(NETWORKS["unet"](in_channels=1, out_channels=2, width=4, depth=2), 2, 16, file)
    onnx_engine(file, shape=(2, 16))
    for shape in ((1, 16), (2, 32)):
        with pytest.raises(
            InputError, match=r"the network's input and output are \[\[1, 16, 16\], \[2, 16, 16\]\]"
        ):
            onnx_engine(file, shape=shape)


def test_deep_supervision_leaves_only_the_last_head(tmp_path: Path) -> None:
    network = NETWORKS["unet_plus_plus"](
        in_channels=1, out_channels=1, width=4, depth=2, deep_supervision=True
    )
    write_graph(network, 1, 16, tmp_path / "network.onnx")
    assert onnx_engine(tmp_path / "network.onnx")(np.zeros((2, 1, 16, 16), np.float32)).shape == (
        2,
        1,
        16,
        16,
    )


def test_equal_networks_give_equal_bytes_without_a_path(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        torch.manual_seed(1)
        network = NETWORKS["residual_unet"](in_channels=1, out_channels=1, width=4, depth=1)
        write_graph(network, 1, 16, tmp_path / name)
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]
    assert str(Path(__file__).parent.parent.parent.parent).encode() not in files[0]
    assert [opset.version for opset in onnx.load(tmp_path / "a").opset_import] == [18]


def test_an_unknown_operation_is_named(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Softplus(), nn.Conv2d(1, 1, 1))
    with pytest.raises(InputError, match=r"operation .*Softplus|operation .*1.* has no translation to ONNX"):
        write_graph(network, 1, 16, tmp_path / "network.onnx")
    assert not (tmp_path / "network.onnx").exists()


def test_a_damaged_graph_is_an_input_error(tmp_path: Path) -> None:
    file = tmp_path / "network.onnx"
    for content in (b"", b"\x08\x0a" + b"x" * 100):
        file.write_bytes(content)
        with pytest.raises(InputError, match="ONNX Runtime cannot read this file"):
            onnx_engine(file)


def test_mirror_average_is_that_of_both_images() -> None:
    ramp = np.linspace(0, 1, 4, dtype=np.float32)

    def engine(images: np.ndarray) -> np.ndarray:
        return images * ramp

    images = np.random.default_rng(0).random((2, 1, 3, 4), dtype=np.float32)
    averaged = mirror_averaged(engine, images)
    np.testing.assert_allclose(averaged, images * (ramp + ramp[::-1]) / 2, rtol=1e-6)
