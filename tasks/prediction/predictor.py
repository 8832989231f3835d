"""From images to masks with the networks of a bundle, by the same steps as the stage evaluate."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from tasks.bundles.engines import Engine, mirror_averaged, onnx_engine, torch_engine
from tasks.bundles.files import GRAPH
from tasks.bundles.schema import Bundle, NetworkRecord, Step, network_folder
from tasks.inference.masks import Floats, Mask, OperatingPoints, resized, to_masks
from tasks.settings.training import Target

EngineName = Literal["onnx", "torch"]


class Prediction(NamedTuple):
    """What the networks predict for one picture, all arrays (H, W) at its own size."""

    masks: dict[Target, Mask]
    probabilities: dict[Target, Floats]
    lungs: Mask | None
    """The predicted lungs, of either step; None if no network predicts them."""
    spread: dict[Target, Floats]
    """Standard deviation of the probabilities over the networks; empty if there is only one."""


class Raw(NamedTuple):
    """What the networks give for one picture."""

    found: list[Floats]
    """Probabilities (C, S, S) of each network."""
    region: Mask | None
    """The lungs (S, S) that the networks could see; None if they saw everything."""


class Predictor:
    """The networks of a bundle.

    Args:
        folder: the bundle.
        engine: what runs the networks.
        ensemble: whether networks of further seeds are run too, to measure their spread. If the bundle is an
            ensemble, they always are.
        threads: how many compute one call of an ONNX network.
    """

    def __init__(
        self, folder: Path, bundle: Bundle, engine: EngineName, ensemble: bool, threads: int = 0
    ) -> None:
        def load(network: NetworkRecord, step: Step) -> Engine:
            where = network_folder(folder, network)
            if engine == "onnx":
                return onnx_engine(where / GRAPH, threads, (len(step.targets), bundle.input.image_size))
            return torch_engine(where, network.precision)

        self._bundle = bundle
        every = ensemble or bundle.main.ensemble is not None
        of_main = bundle.main.networks if every else bundle.main.networks[:1]
        self._main = [load(network, bundle.main) for network in of_main]
        self._lungs = load(bundle.lungs.networks[0], bundle.lungs) if bundle.lungs else None

    def forward(self, images: Floats) -> list[Raw]:
        """Pass images (N, 1, S, S) through the networks together; S is the bundle's image size.

        Several threads may call it at a time with the engine onnx.
        """
        regions = self._regions(images)
        if regions is not None:
            images = np.where(regions[:, None], images, np.float32(0))
        found = [_probabilities(engine, images, self._bundle.main) for engine in self._main]
        return [
            Raw([of_one[index] for of_one in found], None if regions is None else regions[index])
            for index in range(len(images))
        ]

    def _regions(self, images: Floats) -> Mask | None:
        """The predicted lungs (N, S, S) outside which the main networks see nothing."""
        step = self._bundle.lungs
        if not step or not self._lungs:
            return None
        found = _probabilities(self._lungs, images, step)[:, step.targets.index("lung")]
        points: OperatingPoints = {"lung": step.networks[0].operating_points["lung"]}
        return np.stack([to_masks({"lung": one}, points, step.prediction)["lung"] for one in found])

    def finish(self, raw: Raw, shape: tuple[int, int]) -> Prediction:
        """The prediction for a picture of height and width `shape`. Can run in any thread."""
        found, region = raw
        step = self._bundle.main
        visible = None if region is None else resized(region.astype(np.float32), shape) >= 0.5

        def own_size(one: Floats) -> dict[Target, Floats]:
            sized = zip(step.targets, (resized(p, shape) for p in one), strict=True)
            return {target: p if visible is None else p * visible for target, p in sized}

        own = [own_size(one) for one in found]
        shown = own[0] if step.ensemble is None else own_size(np.mean(found, axis=0))
        masks = to_masks(shown, step.operating_points, step.prediction)
        spread = {target: np.std([one[target] for one in own], axis=0) for target in shown}
        lungs = masks.get("lung") if visible is None else visible
        return Prediction(masks, shown, lungs, spread if len(own) > 1 else {})


def _probabilities(engine: Engine, images: Floats, step: Step) -> Floats:
    return mirror_averaged(engine, images) if step.prediction.flip_average else engine(images)
