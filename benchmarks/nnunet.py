"""nnU-Net v2 as a contestant of benchmarks/time_to_dice.py.

Isensee et al. 2021, doi 10.1038/s41592-020-01008-z. It runs in a Python that can import nnunetv2 and this
project's packages. Tried with nnunetv2 2.8.1:

    python3 -m venv nnunet-venv
    echo PROJECT/.venv/lib/python3.11/site-packages > nnunet-venv/lib/python3.11/site-packages/project.pth
    nnunet-venv/bin/pip install torch==2.13.0 numpy==2.4.6 nnunetv2

nnU-Net gets the images and binary masks as PNG files at the network's size, plans and preprocesses them with
its defaults, and trains with its trainer: stochastic gradient descent from 0.01, Dice + cross-entropy with
deep supervision, its augmentation in processes of its own, float32 on a CPU. Its masks are those of its
predictor, without averaging over mirror images, returned to the size of the PNG files. Its processes also
augment the next batches, at most six, while the clock stands still for a validation.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

if TYPE_CHECKING:
    from contestants import Setting

DATASET = "Dataset001_Infection"


class NnUnet:
    """nnU-Net's own trainer, interrupted after each step."""

    def __init__(self, setting: Setting, seed: int) -> None:
        folder = setting.packed.with_name(f"nnunet-{setting.packed.name}")
        self._results = tempfile.TemporaryDirectory()
        places = {
            "raw": folder / "raw",
            "preprocessed": folder / "preprocessed",
            "results": self._results.name,
        }
        # nnU-Net reads them when it is imported. By default, it augments in up to 12 processes, one per core.
        names = {f"nnUNet_{name}": str(place) for name, place in places.items()}
        os.environ |= names | {"nnUNet_n_proc_DA": str(setting.threads)}
        if not (places["preprocessed"] / DATASET / "splits_final.json").exists():  # type: ignore[operator]
            prepare(setting, folder)
        torch.manual_seed(seed)
        np.random.seed(seed)
        torch.set_num_threads(setting.threads)
        from nnunetv2.run.run_training import get_trainer_from_args

        self._trainer: Any = get_trainer_from_args(DATASET, "2d", 0, device=torch.device("cpu"))
        self._trainer.on_train_start()  # network, optimiser, and the processes that augment
        self._val = self._trainer.get_tr_and_val_datasets()[1]
        self._predictor = self._make_predictor()
        self.facts = self._facts()

    def _facts(self) -> dict[str, Any]:
        trainer = self._trainer
        chosen = trainer.configuration_manager.network_arch_init_kwargs
        features = chosen["features_per_stage"]
        kind = type(trainer.network).__name__
        return {
            "network": f"{kind}, features {features[0]} to {features[-1]}, {len(features)} stages",
            "parameters": sum(p.numel() for p in trainer.network.parameters()),
            "precision": "fp32",
            "loss": "Dice + cross-entropy, deep supervision",
            "optimiser": f"SGD, {trainer.initial_lr}, batches of {trainer.batch_size}",
            "batch_size": trainer.batch_size,
        }

    def _make_predictor(self) -> Any:
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        trainer = self._trainer
        predictor = nnUNetPredictor(use_mirroring=False, device=trainer.device, allow_tqdm=False)
        plans = (trainer.plans_manager, trainer.configuration_manager)
        predictor.manual_initialization(
            trainer.network, *plans, None, trainer.dataset_json, type(trainer).__name__, None
        )
        return predictor

    @property
    def network(self) -> nn.Module:
        network: nn.Module = self._trainer.network
        return network

    def train(self, after_step: Callable[[], None]) -> None:
        """Run the trainer's epochs without its validation, until `after_step` raises an exception."""
        trainer = self._trainer
        for epoch in count():
            trainer.current_epoch = epoch
            trainer.on_train_epoch_start()
            for _ in range(trainer.num_iterations_per_epoch):
                trainer.train_step(next(trainer.dataloader_train))
                after_step()

    def marked(self, rows: slice) -> Tensor:
        """Predicted masks of some Val images, bool (n, 1, S, S)."""
        self._trainer.set_deep_supervision_enabled(False)
        masks = [self._marked(case_name("val", row)) for row in range(rows.start, rows.stop)]
        self._trainer.set_deep_supervision_enabled(True)
        return torch.from_numpy(np.stack(masks))

    def _marked(self, case: str) -> np.ndarray[Any, Any]:
        from nnunetv2.inference.export_prediction import (
            convert_predicted_logits_to_segmentation_with_correct_shape as converted,
        )

        trainer = self._trainer
        data, _, _, properties = self._val.load_case(case)
        logits = self._predictor.predict_sliding_window_return_logits(torch.from_numpy(data[:]))
        plans = (trainer.plans_manager, trainer.configuration_manager, trainer.label_manager)
        threads = torch.get_num_threads()
        found: np.ndarray[Any, Any] = converted(logits, *plans, properties, num_threads_torch=threads)
        return found == 1

    def close(self) -> None:
        """End the processes that augment."""
        for loader in (self._trainer.dataloader_train, self._trainer.dataloader_val):
            if hasattr(loader, "_finish"):
                loader._finish()
        self._results.cleanup()


def case_name(split: str, row: int) -> str:
    return f"{split}_{row:05}"


def prepare(setting: Setting, folder: Path) -> None:
    """Write the images as nnU-Net expects them, plan, and preprocess. Its last file marks the end."""
    shutil.rmtree(folder, ignore_errors=True)
    names = {
        split.lower(): write_pngs(setting, split, folder / "raw" / DATASET) for split in ("Train", "Val")
    }
    described = {
        "channel_names": {"0": "X-ray"},
        "labels": {"background": 0, "infection": 1},
        "numTraining": sum(map(len, names.values())),
        "file_ending": ".png",
    }
    (folder / "raw" / DATASET / "dataset.json").write_text(json.dumps(described), encoding="utf-8")
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )

    extract_fingerprints([1], num_processes=setting.threads)
    plan_experiments([1])
    preprocess([1], configurations=["2d"], num_processes=[setting.threads])
    splits = folder / "preprocessed" / DATASET / "splits_final.json"
    splits.write_text(json.dumps([names]), encoding="utf-8")


def write_pngs(setting: Setting, split: str, folder: Path) -> list[str]:
    """Write images and masks 0 and 1 as PNG files. Returns the names of the cases."""
    packed = setting.split(split)
    images, masks = packed.images()[:, 0].numpy(), (packed.masks()[:, 0] >= 128).byte().numpy()
    names = [case_name(split.lower(), row) for row in range(len(packed))]
    for kind, pictures, ending in (("imagesTr", images, "_0000"), ("labelsTr", masks, "")):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for name, picture in zip(names, pictures, strict=True):
            Image.fromarray(picture).save(folder / kind / f"{name}{ending}.png")
    return names
