"""Compare the speed of models/augmentation.py with kornia, in alternating rounds.

    python benchmarks/augmentation.py [--rounds 10]

Both augment batches of 16 grey images of 256x256 with two masks each, with separate random draws per image:
flip, rotation, scale, translation, with and without elastic displacement, then gamma, contrast, brightness
and noise. Runs on the CPU with one thread, and on CUDA if available. Prints images/s (median, minimum and
maximum of the rounds) and the ratio of the medians.

kornia interpolates an image once for the affine changes and once more for the elastic ones. Its flip copies
the image. Ours interpolates once for all changes. kornia smooths noise at every pixel, by default with a
kernel of 63x63. Ours interpolates 5x5 nodes.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
from models.augmentation import Augmentation, Strength

try:
    import kornia.augmentation as theirs
    from kornia.constants import DataKey
except ImportError:
    sys.exit("this benchmark needs kornia, which is not a dependency of the project: pip install kornia")

COUNT, CHANNELS, SIDE = 16, 2, 256
ALL = Strength(
    flip=0.5,
    rotation=15.0,
    scale=0.15,
    translation=0.06,
    elastic=0.02,
    brightness=0.1,
    contrast=0.25,
    gamma=0.4,
    noise=0.05,
)
CASES = {"all changes": ALL, "without elastic": ALL._replace(elastic=0.0)}

Augment = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    devices = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
    for device in devices:
        images = torch.rand(COUNT, 1, SIDE, SIDE, device=device)
        masks = (torch.rand(COUNT, CHANNELS, SIDE, SIDE, device=device) < 0.3).float()
        for case, strength in CASES.items():
            contestants = {"ours": Augmentation(strength, 0, device), "kornia": kornia_augmentation(strength)}
            speeds = race(contestants, images, masks, rounds)
            for name, row in speeds.items():
                print(
                    f"{device.type}, {case}, {name:7} {statistics.median(row):8.1f} images/s"
                    f"    {min(row):.1f} to {max(row):.1f}"
                )
            ours, kornia = (statistics.median(speeds[name]) for name in ("ours", "kornia"))
            print(f"{device.type}, {case}: ours / kornia = {ours / kornia:.2f}", flush=True)


def kornia_augmentation(s: Strength) -> Augment:
    """Return kornia's augmentation with the same kinds and sizes of changes."""
    geometric = [
        theirs.RandomHorizontalFlip(p=s.flip),
        theirs.RandomAffine(
            s.rotation, (s.translation, s.translation), (1 / (1 + s.scale), 1 + s.scale), p=1.0
        ),
    ]
    if s.elastic:  # noise smoothed like this has a standard deviation of about 0.01, and the grid spans 2
        strength = 2 * s.elastic / 0.01
        geometric.append(theirs.RandomElasticTransform(alpha=(strength, strength), p=1.0))
    changes = theirs.AugmentationSequential(
        *geometric,
        theirs.RandomGamma((1 / (1 + s.gamma), 1 + s.gamma), p=1.0),
        theirs.RandomContrast((1 / (1 + s.contrast), 1 + s.contrast), p=1.0),
        theirs.RandomBrightness((1 - s.brightness, 1 + s.brightness), p=1.0),
        theirs.RandomGaussianNoise(std=s.noise / 2, p=1.0),
        data_keys=["image", "mask"],
        extra_args={DataKey.MASK: {"resample": "bilinear", "align_corners": False}},
        same_on_batch=False,
        transformation_matrix_mode="skip",
    )

    @torch.no_grad()
    def augment(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        images, masks = changes(images, masks)
        return images.clamp(0, 1), masks

    return augment


def race(
    contestants: dict[str, Augment], images: Tensor, masks: Tensor, rounds: int
) -> dict[str, list[float]]:
    """Return images/s of each contestant, one value per round. They take turns to go first."""
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name in sorted(contestants, reverse=number % 2 == 1):
            changed = seconds(lambda name=name: contestants[name](images, masks), images.device)
            if number:  # the first round is a warm-up
                speeds[name].append(COUNT / changed)
    return speeds


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Return the mean seconds of several calls of `work`."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronise(device)
    return (time.perf_counter() - start) / repeats


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
