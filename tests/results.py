"""Handmade outputs of the stages before compare: small, with known scores."""

import io
import itertools
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
from PIL import Image

from tasks.common.raw import (
    CLASSES,
    IMAGE_SETS,
    KIND_FOLDERS,
    MANIFEST_COLUMNS,
    SPLITS,
    member_name,
    shard_name,
    write_member,
)
from tasks.compare import compare
from tasks.comparison.document import COMPARISON_FILE, Document
from tasks.report import report
from tasks.scoring.images import score_masks
from tasks.settings.data import DataSource, External
from tasks.settings.params import Params
from tasks.settings.stages import ENSEMBLES

SIZE = 64
CLASS_OF = {f"covid_{number}": "COVID-19" for number in range(1, 7)}
CLASS_OF |= {"Normal (1)": "Normal", "non_COVID (1)": "Non-COVID"}
NAMES = list(CLASS_OF)
IDS = {name: f"infection/Test/{CLASS_OF[name]}/{name}" for name in NAMES}


def square(start: int, stop: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[start:stop, start:stop] = True
    return mask


LUNG = square(8, 56)
REFERENCE = {name: square(16, 40) if CLASS_OF[name] == "COVID-19" else square(0, 0) for name in NAMES}


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def scores(reference: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    error = float((predicted != reference).mean())
    return score_masks(predicted, predicted.astype(np.float32), reference, error)


SETS = tuple(IMAGE_SETS)
SHARES = ("true_share", "predicted_share")
VERSIONS = {"python": "3.11.9", "torch": "2.13.0"}


PLAIN = {
    "threshold": 0.5,
    "presence": 0.0,
    "flip_average": False,
    "within_lungs": False,
    "min_area": 0.0,
    "fill_holes": False,
}


class Work:
    """A folder with the outputs of the earlier stages: two experiments on eight Test images."""

    def __init__(self, root: Path) -> None:
        self.paths = {
            "plans": root / "plans",
            "trained": root / "train",
            "evaluated": root / "evaluation",
            "baselines": root / "baselines",
            "audit": root / "audit",
            "packed": root / "packed",
            "raw": root / "raw",
        }
        self.comparison = root / "comparison"
        self.out, self.metrics = root / "reports", root / "metrics.json"
        self.experiments: dict[str, int] = {}  # number of seeds, in the order of params.yaml
        self.groups: dict[str, tuple[str, ...]] = {}
        self.external: dict[str, list[str]] = {}  # external dataset -> trainings that are scored on it
        self.ensembles: list[str] = []
        for name in ("plans", "packed", "raw", "baselines", "audit"):
            self.paths[name].mkdir()
        self._raw()
        self._packed()
        self.audit()
        self._baselines()
        self.add("bce", shift=6)
        self.add("bce_iou", shift=2, loss_options={"alpha": 0.25})

    def params(self, source: str = "data/covidqu.zip", shown: tuple[int, ...] = (1, 2, 4)) -> Params:
        return cast(
            Params,
            SimpleNamespace(
                data=DataSource(source=source),
                external={name: External(source=f"data/{name}.zip") for name in self.external},
                scored_on=self.external.__getitem__,
                experiments={
                    name: SimpleNamespace(is_ensemble=name in self.ensembles) for name in self.experiments
                },
                plans={
                    f"{name}-seed{seed}": SimpleNamespace(experiment=name, seed=seed)
                    for name, seeds in self.experiments.items()
                    for seed in range(seeds)
                },
                report=SimpleNamespace(figures=shown, groups=self.groups),
            ),
        )

    def compare(self, params: Params | None = None) -> Document:
        compare(params or self.params(), **self.paths, out=self.comparison)
        return Document.read(self.comparison / COMPARISON_FILE)

    def run(self, params: Params | None = None) -> str:
        """Run compare and report; return the page."""
        self.compare(params)
        report(self.comparison, self.out, self.metrics)
        return self.page()

    def page(self) -> str:
        return (self.out / "index.html").read_text(encoding="utf-8")

    def add(
        self,
        name: str,
        *,
        shift: int,
        targets: tuple[str, ...] = ("infection",),
        seeds: int = 1,
        prediction: dict[str, Any] | None = None,
        dead: bool = False,
        val_shift: int | None = None,
        **more: Any,
    ) -> None:
        """Add an experiment whose predictions are the reference masks, shifted down.

        They are shifted by `shift` pixels for the first seed and one more for each further seed; on the Val
        images by `val_shift`. The last seed of a `dead` experiment predicts nothing.
        """
        on_val = shift if val_shift is None else val_shift
        plan = {
            "experiment": name, "network": "residual_unet", "loss": name, "epochs": 3, "width": 8, "patch": 1,
            "depth": 4, "image_size": 64, "batch_size": 4, "optimiser": "adam", "learning_rate": 0.01,
            "schedule": "constant", "precision": "auto", "half": "infection",
            "augment": {"flip": 0.5, "rotation": 0.0}, "images": "whole", "ema": 0.0, "loss_options": {},
            "targets": [t for t in targets if t in ("infection", "lung")], "train_classes": ["COVID-19"],
            "deep_supervision": False, **more,
        }  # fmt: skip
        self.experiments[name] = seeds
        for seed in range(seeds):
            training, dies = f"{name}-seed{seed}", dead and seed == seeds - 1
            of_seed = plan | {"name": training, "seed": seed}
            (self.paths["plans"] / f"{training}.json").write_text(json.dumps(of_seed))
            self._train(self.paths["trained"] / training, of_seed, dies)
            shifts = {"Val": on_val + seed, "Test": shift + seed}
            self._evaluate(
                self.paths["evaluated"] / training, shifts, targets, seed, PLAIN | (prediction or {}), dies
            )

    def add_external(
        self, dataset: str, target: str, shifts: dict[str, int], images: int = 6, overlap: int = 0
    ) -> None:
        """Add an external dataset of COVID-19 images and a control.

        Training, or ensembles/EXPERIMENT -> pixels by which its predictions are the reference masks shifted
        down. The first `overlap` images are also in the dataset; on these, every prediction is perfect.
        """
        folder = self.paths["evaluated"] / "external" / dataset
        self.external[dataset] = [name for name in shifts if not name.startswith(ENSEMBLES)]
        ids = [f"infection/Test/COVID-19/{number}" for number in range(images)]
        for training, shift in shifts.items():
            rows = []
            for number, image_id in enumerate([*ids, "infection/Test/Normal/0"]):
                reference = REFERENCE["covid_1"] & (number < images)
                predicted = np.roll(reference, 0 if number < overlap else shift, axis=0)
                seed = 0 if training.startswith(ENSEMBLES) else int(training[-1])
                place = {"seed": seed, "split": "Test", "target": target, "id": image_id}
                rows.append({**place, "class": image_id.split("/")[2], **scores(reference, predicted)})
            (folder / training).mkdir(parents=True)
            pd.DataFrame(rows).to_csv(folder / training / "images.csv", index=False)
        (folder / "audit").mkdir()
        also = pd.DataFrame({"id": ids[:overlap], "also": IDS["covid_1"], "correlation": 1.0, "exact": True})
        also.to_csv(folder / "audit" / "overlap.csv", index=False)
        (folder / "audit" / "counts.json").write_text(json.dumps({"images": images + 2, "unusable": 1}))

    def add_ensemble(self, experiment: str, shift: int, disagreement: dict[str, float] | None = None) -> None:
        """Add the ensemble of an experiment, whose predictions of infection are shifted by `shift` pixels.

        `disagreement` is that about Test images, by name; 0.5 about all others.
        """
        self.ensembles.append(experiment)
        folder = self.paths["evaluated"] / "ensembles" / experiment
        self._evaluate(folder, {"Val": shift, "Test": shift}, ("infection",), 0, PLAIN, dead=False)
        table = pd.read_csv(folder / "images.csv")
        apart = {IDS[name]: value for name, value in (disagreement or {}).items()}
        table["disagreement"] = table["id"].map(apart).fillna(0.5)
        table.to_csv(folder / "images.csv", index=False)
        with zipfile.ZipFile(folder / "spread.zip", "w") as archive:
            for name in NAMES[:2]:
                archive.writestr(f"infection/{IDS[name]}.png", png(np.full((SIZE, SIZE), 64, np.uint8)))

    def _train(self, folder: Path, plan: dict[str, Any], dead: bool) -> None:
        (folder / "network").mkdir(parents=True)
        epochs = pd.DataFrame(
            {"epoch": [1, 2, 3], "train_loss": [0.9, 0.5, 0.3], "val_loss": [0.8, 0.6, 0.4]}
        )
        epochs = epochs.assign(val_score=[0.1, 0.7, 0.6], val_dice=0.6, val_iou=0.5, val_marked=0.1)
        history = epochs.assign(seed=plan["seed"], learning_rate=0.01)
        if dead:
            history[["val_score", "val_dice", "val_marked"]] = 0.0
        history.to_csv(folder / "history.csv", index=False)
        network = {
            "plan": plan, "precision": "fp32", "parameters": 123456, "train_images": 20, "val_images": 6,
            "best_epoch": 2, "val_score": 0.7, "diverged": False, "device": "cpu", "versions": VERSIONS,
        }  # fmt: skip
        (folder / "network" / "network.json").write_text(json.dumps(network))

    def _evaluate(
        self,
        folder: Path,
        shifts: dict[str, int],
        targets: tuple[str, ...],
        seed: int,
        prediction: dict[str, Any],
        dead: bool,
    ) -> None:
        folder.mkdir(parents=True)
        rows = []
        with zipfile.ZipFile(folder / "predictions.zip", "w") as archive:
            for split, target, image in itertools.product(shifts, targets, NAMES):
                reference = LUNG if target == "lung" else REFERENCE[image]
                predicted = np.roll(reference, shifts[split], axis=0) & (not dead)
                image_id = IDS[image].replace("/Test/", f"/{split}/")
                if split == "Test":
                    archive.writestr(f"{target}/{image_id}.png", png(predicted))
                row = {"seed": seed, "split": split, "target": target, "id": image_id}
                known = target == "infection" and "lung" in targets
                shares = dict(zip(SHARES, (0.4, 0.5), strict=True)) if known else {}
                rows.append({**row, "class": CLASS_OF[image], **scores(reference, predicted), **shares})
        table = pd.DataFrame(rows)
        table.to_csv(folder / "images.csv", index=False)
        self._details(folder, table, seed, prediction)

    def _details(self, folder: Path, table: pd.DataFrame, seed: int, prediction: dict[str, Any]) -> None:
        """Write post-processing steps and calibration; all chosen steps together gain 0.01 IoU per image."""
        names = ["plain", "threshold", "chosen"] if prediction["threshold"] == "val" else []
        gain = {"plain": 0.0, "threshold": -0.02, "chosen": 0.01}
        columns = table[["seed", "split", "target", "id", "class", "iou", "dice"]]
        steps = [
            columns.assign(step=step, iou=columns["iou"] + gain[step], dice=columns["dice"]) for step in names
        ]
        pd.concat([columns.assign(step="")[:0], *steps]).to_csv(folder / "steps.csv", index=False)
        bins = pd.DataFrame({"bin": [0, 14], "pixels": 100, "mean_probability": [0.01, 0.97]})
        places = itertools.product(table["target"].unique(), SETS)
        calibration = [
            bins.assign(seed=seed, target=target, image_set=image_set, true_share=[0.02, 0.9])
            for target, image_set in places
        ]
        pd.concat(calibration).to_csv(folder / "calibration.csv", index=False)
        thresholds = dict.fromkeys(table["target"].unique(), 0.43)
        presence = dict.fromkeys(thresholds, 0.0)
        chosen = {
            "thresholds": thresholds,
            "presence": presence,
            "prediction": prediction,
            "versions": VERSIONS,
        }
        (folder / "settings.json").write_text(json.dumps(chosen))

    def _raw(self) -> None:
        rows = [[IDS[name], "infection", "Test", CLASS_OF[name], "a", "b", "c"] for name in NAMES]
        pd.DataFrame(rows, columns=MANIFEST_COLUMNS).to_csv(self.paths["raw"] / "manifest.csv", index=False)
        grey = np.tile(np.arange(SIZE, dtype=np.uint8) * 4, (SIZE, 1))
        with zipfile.ZipFile(self.paths["raw"] / shard_name("infection", "Test"), "w") as shard:
            for name in NAMES:
                files = {
                    "image": grey,
                    "lung": LUNG * np.uint8(255),
                    "infection": REFERENCE[name] * np.uint8(255),
                }
                for kind in KIND_FOLDERS:
                    write_member(shard, member_name(CLASS_OF[name], kind, name), png(files[kind]))

    def _packed(self) -> None:
        table = pd.DataFrame({"id": IDS.values(), "class": CLASS_OF.values(), "sha256": NAMES})
        table = table.assign(half="infection", split="Test", row=0, height=SIZE, width=SIZE)
        table.to_csv(self.paths["packed"] / "images.csv", index=False)
        rejected = pd.DataFrame({"id": ["infection/Train/Normal/<b>"], "reason": ["mask & image differ"]})
        rejected.to_csv(self.paths["packed"] / "rejected.csv", index=False)

    def audit(
        self,
        pairs: Sequence[tuple[str, str, float]] = (),
        duplicates: str = "report",
        published: int | None = 9,
        **faults: int,
    ) -> None:
        """Write an audit with one excluded image and the given pairs; a correlation of 1 means identical."""
        folder = self.paths["audit"]
        rows = [
            ("infection", split, image_class, 3, 3 - (split == "Train"), published)
            for split in (*SPLITS, "all")
            for image_class in (*CLASSES, "all")
        ]
        columns = ["half", "split", "class", "images", "usable", "published"]
        pd.DataFrame(rows, columns=columns).to_csv(folder / "counts.csv", index=False)
        problem = {"id": ["infection/Train/Normal/<b>"], "problem": ["excluded: mask & image differ"]}
        pd.DataFrame(problem).to_csv(folder / "problems.csv", index=False)
        table = pd.DataFrame(pairs, columns=["first", "second", "correlation"])
        table.assign(exact=table["correlation"] == 1, across=True).to_csv(folder / "pairs.csv", index=False)
        dropped = table[["first"]].set_axis(["id"], axis=1)[: len(pairs) if duplicates == "drop" else 0]
        dropped.assign(reason="identical").to_csv(folder / "dropped.csv", index=False)
        figures = {
            "images": 9, "unusable": 1, "dropped": len(dropped),
            "controls_with_infection": 0, "covid_without_infection": 0, "empty_lung_masks": 0,
            "infection_outside_lung": 0, "unusual_lung_areas": 0, "bright_lungs": 0,
            "exact_pairs_across_splits": int((table["correlation"] == 1).sum()),
            "near_pairs_across_splits": int((table["correlation"] < 1).sum()),
            "test_images_touched": table["second"].nunique(),
            "pairs_within_splits": 2, "pairs_across_halves": 1, **faults,
        }  # fmt: skip
        found = {"params": {"correlation": 0.98, "duplicates": duplicates}, "figures": figures}
        (folder / "audit.json").write_text(json.dumps(found))

    def _baselines(self) -> None:
        (self.paths["baselines"] / "infection").mkdir()
        masks = {"all_background": square(0, 0), "all_foreground": ~square(0, 0), "whole_lung": LUNG}
        rows = [
            {"predictor": predictor, "split": split, "target": target}
            | {"id": IDS[name].replace("/Test/", f"/{split}/"), "class": CLASS_OF[name]}
            | scores(LUNG if target == "lung" else REFERENCE[name], predicted)
            for predictor, predicted in masks.items()
            for split in ("Val", "Test")
            for target in ("infection", "lung")
            for name in NAMES
            if (predictor, target) != ("whole_lung", "lung")
        ]
        folder = self.paths["baselines"] / "infection"
        pd.DataFrame(rows).to_csv(folder / "images.csv", index=False)
        bins = {"bin": 0, "pixels": 100, "mean_probability": 0.1, "true_share": 0.2}
        calibration = [
            {"predictor": predictor, "target": target, "image_set": image_set, **bins}
            for predictor in masks
            for target in ("infection", "lung")
            for image_set in SETS
        ]
        pd.DataFrame(calibration).to_csv(folder / "calibration.csv", index=False)
