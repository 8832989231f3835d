"""Stage `convert`: writes a trained network as an ONNX file, and checks that it predicts the same."""

import argparse
import json
from pathlib import Path

from tasks.bundles.engines import onnx_engine, torch_engine
from tasks.bundles.files import GRAPH, PARITY
from tasks.bundles.graph import write_graph
from tasks.bundles.parity import Networks, compare_engines, require_parity
from tasks.common.files import replacing
from tasks.networks.device import set_up
from tasks.networks.network import load_network
from tasks.packed.reader import PackedSplit
from tasks.settings.experiments import Plan
from tasks.settings.prediction import Prediction
from tasks.support.cli import stage_main


def convert(
    plan: Plan, prediction: Prediction, trained: Path, images: Path, evaluated: Path, out: Path
) -> None:
    """Write the network in the folder `trained` as ONNX, if it predicts all Test images the same.

    `images` is the folder that the training read, `evaluated` the folder that the stage evaluate wrote.
    Writes under `out`:

        network.onnx   from images to probabilities
        parity.json    how much its predictions differ, see `tasks.bundles.parity.Parity`

    Raises:
        InputError: the network has an operation that cannot be translated, or predictions differ too much.
    """
    compute = set_up(plan.seed, plan.precision, plan.threads)
    split = PackedSplit(images, plan.half, "Test")
    with replacing(out) as partial:
        partial.mkdir()
        graph = partial / GRAPH
        network = load_network(trained, compute)
        write_graph(network.cpu(), len(plan.targets), plan.image_size, graph)
        plain = torch_engine(trained, "fp32", plan.threads, exact=True)
        setup = precision, device = compute.precision, compute.device.type
        exact = (precision, device) == ("fp32", "cpu")
        native = plain if exact else torch_engine(trained, precision, plan.threads)
        networks = Networks(onnx_engine(graph), plain, native)
        parity = compare_engines(networks, plan, prediction, split, evaluated, setup)
        require_parity(plan.name, parity)
        (partial / PARITY).write_text(json.dumps(parity._asdict(), indent=2) + "\n", encoding="utf-8")
    print(
        f"{plan.name}: {parity.images} Test images, probabilities differ by at most "
        f"{parity.probability:.2g}, masks in {parity.onnx_pixels} of {parity.pixels} pixels",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a trained network as an ONNX file.")
    parser.add_argument("plan", type=Path, help="artifacts/plans/TRAINING.json")
    parser.add_argument("prediction", type=Path, help="artifacts/plans/EXPERIMENT.prediction.json")
    parser.add_argument("trained", type=Path, help="artifacts/train/TRAINING/network")
    parser.add_argument("images", type=Path, help="data/packed/SIZE or data/lungs/EXPERIMENT, as in training")
    parser.add_argument("evaluated", type=Path, help="artifacts/evaluation/TRAINING")
    parser.add_argument("out", type=Path, help="folder to create")
    args = parser.parse_args()
    plan = Plan.from_json(args.plan.read_text(encoding="utf-8"))
    prediction = Prediction.from_json(args.prediction.read_text(encoding="utf-8"))
    convert(plan, prediction, args.trained, args.images, args.evaluated, args.out)


if __name__ == "__main__":
    stage_main(main)
