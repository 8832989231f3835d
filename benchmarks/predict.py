"""Images per second from PNG files to mask files, by `cxr predict` and by the loop that a user would write.

    python benchmarks/predict.py XRAYS --model artifacts/bundles/combined

Contestants, each in a process of its own, take turns on the same images:

    onnx, torch     cxr predict with that engine: masks, overlays, table and page
    plain loop      decodes, resizes, predicts and writes one image after another, with torch
    onnx network, torch network    the network alone, on images that are in memory, 16 at a time

Prints the median over the rounds, with the lowest and the highest in brackets, and for `cxr predict` how much
faster it is than the plain loop and which share of its network's own rate it reaches. The plain loop writes
masks only.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from apart import Apart
from output import ratios, show, spread_of
from PIL import Image

from tasks.bundles.engines import Engine, mirror_averaged, onnx_engine, torch_engine
from tasks.bundles.files import GRAPH
from tasks.bundles.schema import Bundle, network_folder, open_bundle
from tasks.inference.masks import Floats, to_masks
from tasks.prediction.inputs import find_items
from tasks.prediction.predictor import EngineName
from tasks.prediction.run import BATCH, Options, predict

ENGINES = ("onnx", "torch")


class Setting(NamedTuple):
    name: str
    model: Path
    files: tuple[Path, ...]


class Contestant:
    """Predicts the files of a setting, and says how long it took."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.bundle = setting, open_bundle(setting.model)
        if self.bundle.lungs or len(self.bundle.main.networks) > 1:
            raise SystemExit(f"error: {setting.model}: expected a bundle of one network on whole images")

    def work(self, files: Sequence[Path]) -> None:
        raise NotImplementedError

    def warm_up(self) -> None:
        self.work(self.setting.files[:BATCH])

    def run(self) -> float:
        """Return images per second."""
        start = time.perf_counter()
        self.work(self.setting.files)
        return len(self.setting.files) / (time.perf_counter() - start)

    def engine(self, name: str) -> Engine:
        network = self.bundle.main.networks[0]
        folder = network_folder(self.setting.model, network)
        return onnx_engine(folder / GRAPH) if name == "onnx" else torch_engine(folder, network.precision)


class Predict(Contestant):
    def work(self, files: Sequence[Path]) -> None:
        names = [str(file) for file in files]
        with tempfile.TemporaryDirectory() as out:
            predict(names, self.setting.model, Path(out), Options(engine=self.engine_name()))

    def engine_name(self) -> EngineName:
        return "onnx" if self.setting.name == "onnx" else "torch"


class Loop(Contestant):
    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.network = self.engine("torch")

    def work(self, files: Sequence[Path]) -> None:
        with tempfile.TemporaryDirectory() as out:
            for number, file in enumerate(files):
                for target, mask in self._masks(file).items():
                    Image.fromarray(mask).save(Path(out) / f"{number}-{target}.png")

    def _masks(self, file: Path) -> dict[str, np.ndarray]:
        step, size = self.bundle.main, self.bundle.input.image_size
        with Image.open(file) as picture:
            grey = picture.convert("L")
        small = np.asarray(grey.resize((size, size), Image.Resampling.BILINEAR), np.float32) / 255
        found = _probabilities(self.network, small[None, None], self.bundle)[0]
        own = {
            target: np.asarray(Image.fromarray(one).resize(grey.size, Image.Resampling.BILINEAR))
            for target, one in zip(step.targets, found, strict=True)
        }
        return dict(to_masks(own, step.operating_points, step.prediction))


class Network(Contestant):
    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.network = self.engine(setting.name.partition(" ")[0])
        size = self.bundle.input.image_size
        images = []
        for file in setting.files:
            with Image.open(file) as picture:
                images.append(np.asarray(picture.convert("L").resize((size, size)), np.float32) / 255)
        self.images = np.stack(images)[:, None]

    def work(self, files: Sequence[Path]) -> None:
        for start in range(0, len(files), BATCH):
            _probabilities(self.network, self.images[start : start + BATCH], self.bundle)


def _probabilities(network: Engine, images: Floats, bundle: Bundle) -> Floats:
    return mirror_averaged(network, images) if bundle.main.prediction.flip_average else network(images)


MAKERS: dict[str, Callable[[Setting], Contestant]] = {
    **dict.fromkeys(ENGINES, Predict),
    "plain loop": Loop,
    **{f"{engine} network": Network for engine in ENGINES},
}


def copies(xrays: Sequence[str], images: int, folder: Path) -> tuple[Path, ...]:
    """Copy this many of the files to a folder, without subfolders."""
    files = []
    for number, item in enumerate(find_items(xrays)[:images]):
        file = folder / f"{number:05}.png"
        file.write_bytes(item.read())
        files.append(file)
    return tuple(files)


def table(rates: dict[str, list[float]]) -> list[list[str]]:
    """A row for each contestant."""
    rows = [["", "images/s", "times the plain loop", "share of its network's rate"]]
    for name, found in rates.items():
        faster = spread_of(ratios(found, rates["plain loop"]), ".2f")
        share = spread_of(ratios(found, rates[f"{name} network"]), ".2f") if name in ENGINES else ""
        rows.append([name, spread_of(found), faster, share])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("xrays", nargs="+", help="PNG files, or folders with them")
    parser.add_argument("--model", type=Path, required=True, help="a bundle of one network on whole images")
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        files = copies(args.xrays, args.images, Path(folder))
        running = {
            name: stack.enter_context(Apart(make, Setting(name, args.model, files)))
            for name, make in MAKERS.items()
        }
        for each in running.values():
            each.call("warm_up")
        rates: dict[str, list[float]] = {name: [] for name in running}
        for number in range(args.rounds):
            for name, each in running.items():
                rates[name].append(each.call("run"))
            print(f"round {number + 1} of {args.rounds}", flush=True)
        print(f"\n{len(files)} images, {os.cpu_count()} cores\n")
        show(table(rates))


if __name__ == "__main__":
    main()
