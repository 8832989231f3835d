import io
import json
import re
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tasks.cli import InputError
from tasks.params import Params
from tasks.raw import KIND_FOLDERS, MANIFEST_COLUMNS, member_name, shard_name, write_member
from tasks.report import (
    TEMPLATE,
    figure_ids,
    report,
)
from tasks.tables import leaks

SIZE = 64
NAMES = [f"covid_{number}" for number in range(1, 7)] + ["Normal (1)", "Normal (2)"]
CLASS_OF = {name: "COVID-19" if name.startswith("covid") else "Normal" for name in NAMES}
IDS = {name: f"infection/Test/{CLASS_OF[name]}/{name}" for name in NAMES}


def square(start: int, stop: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[start:stop, start:stop] = True
    return mask


LUNG = square(8, 56)
TRUTH = {name: square(16, 40) if CLASS_OF[name] == "COVID-19" else square(0, 0) for name in NAMES}


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def scores(truth: np.ndarray, guess: np.ndarray) -> dict[str, float]:
    tp, fp, fn = (int(part.sum()) for part in (truth & guess, guess & ~truth, truth & ~guess))
    union = tp + fp + fn
    return {
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "tn": truth.size - union,
        "iou": tp / union if union else 1.0,
        "dice": 2 * tp / (2 * tp + fp + fn) if union else 1.0,
        "mae": (fp + fn) / truth.size,
    }


def results(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    def of(rows: pd.DataFrame) -> dict[str, float]:
        pooled = rows["tp"].sum() / max(1, rows[["tp", "fp", "fn"]].to_numpy().sum())
        means = {metric: float(rows[metric].mean()) for metric in ("iou", "dice", "mae")}
        pools = {"iou_pooled": float(pooled), "dice_pooled": float(2 * pooled / (1 + pooled))}
        return {"images": len(rows), **means, **pools, "mae_255": 255 * means["mae"]}

    return {"covid": of(table[table["class"] == "COVID-19"]), "all": of(table)}


class Work:
    """A folder with what the earlier stages leave, of two experiments on eight Test images."""

    def __init__(self, root: Path) -> None:
        self.paths = {
            "plans": root / "plans",
            "trained": root / "train",
            "evaluated": root / "evaluation",
            "baselines": root / "baselines",
            "packed": root / "packed",
            "raw": root / "raw",
        }
        self.out, self.metrics = root / "reports", root / "metrics.json"
        self.experiments: list[str] = []  # in the order of params.yaml
        for name in ("plans", "packed", "raw", "baselines"):
            self.paths[name].mkdir()
        self._raw()
        self._packed()
        self._baselines()
        self.add("bce", shift=6)
        self.add("bce_iou", shift=2, alpha=0.25)

    def params(self, source: str = "data/covidqu.zip", shown: tuple[int, ...] = (1, 2, 4)) -> Params:
        return cast(
            Params,
            SimpleNamespace(
                data=SimpleNamespace(source=source),
                experiments=dict.fromkeys(self.experiments),
                report=SimpleNamespace(figures=shown),
            ),
        )

    def run(self, params: Params | None = None) -> str:
        report(params or self.params(), **self.paths, out=self.out, metrics=self.metrics)
        return self.page()

    def page(self) -> str:
        return (self.out / "index.html").read_text(encoding="utf-8")

    def add(self, name: str, *, shift: int, targets: tuple[str, ...] = ("infection",), **more: Any) -> None:
        """An experiment whose predictions are the truth moved down by `shift` pixels."""
        plan = {
            "name": name, "network": "residual_unet", "loss": name, "epochs": 3, "width": 8,
            "depth": 4, "image_size": 64, "batch_size": 4, "optimiser": "adam", "learning_rate": 0.01,
            "schedule": "constant", "seed": 0, "precision": "auto", "half": "infection", "flip": True,
            "targets": list(targets), "train_classes": ["COVID-19"], **more,
        }  # fmt: skip
        self.experiments.append(name)
        (self.paths["plans"] / f"{name}.json").write_text(json.dumps(plan))
        self._train(name, plan)
        self._evaluate(name, shift, targets)

    def _train(self, name: str, plan: dict[str, Any]) -> None:
        folder = self.paths["trained"] / name
        folder.mkdir(parents=True)
        history = pd.DataFrame(
            {"epoch": [1, 2, 3], "train_loss": [0.9, 0.5, 0.3], "val_loss": [0.8, 0.6, 0.4]}
        )
        history = history.assign(
            val_dice=[0.1, 0.7, 0.6], val_iou=0.5, learning_rate=0.01, images_per_second=9.0
        )
        history.to_csv(folder / "history.csv", index=False)
        model = {
            "plan": plan, "precision": "fp32", "parameters": 123456, "train_images": 20, "val_images": 6,
            "best_epoch": 2, "val_dice": 0.7, "torch": "2.13.0",
        }  # fmt: skip
        (folder / "model.json").write_text(json.dumps(model))

    def _evaluate(self, name: str, shift: int, targets: tuple[str, ...]) -> None:
        folder = self.paths["evaluated"] / name
        folder.mkdir(parents=True)
        rows = []
        with zipfile.ZipFile(folder / "predictions.zip", "w") as archive:
            for target in targets:
                for image in NAMES:
                    truth = TRUTH[image] if target == "infection" else LUNG
                    guess = np.roll(truth, shift, axis=0)
                    archive.writestr(f"{target}/{IDS[image]}.png", png(guess))
                    row = {"target": target, "id": IDS[image], "class": CLASS_OF[image]}
                    rows.append({**row, **scores(truth, guess)})
        table = pd.DataFrame(rows)
        table.to_csv(folder / "images.csv", index=False)
        found = {target: results(table[table["target"] == target]) for target in targets}
        (folder / "metrics.json").write_text(json.dumps(found))

    def _raw(self) -> None:
        rows = [[IDS[name], "infection", "Test", CLASS_OF[name], "a", "b", "c"] for name in NAMES]
        pd.DataFrame(rows, columns=MANIFEST_COLUMNS).to_csv(self.paths["raw"] / "manifest.csv", index=False)
        grey = np.tile(np.arange(SIZE, dtype=np.uint8) * 4, (SIZE, 1))
        with zipfile.ZipFile(self.paths["raw"] / shard_name("infection", "Test"), "w") as shard:
            for name in NAMES:
                files = {
                    "image": grey,
                    "lung": LUNG * np.uint8(255),
                    "infection": TRUTH[name] * np.uint8(255),
                }
                for kind in KIND_FOLDERS:
                    write_member(shard, member_name(CLASS_OF[name], kind, name), png(files[kind]))

    def _packed(self) -> None:
        table = pd.DataFrame({"id": IDS.values(), "class": CLASS_OF.values(), "sha256": NAMES})
        table = table.assign(half="infection", split="Test", row=0, height=SIZE, width=SIZE)
        table.to_csv(self.paths["packed"] / "images.csv", index=False)
        rejected = pd.DataFrame({"id": ["infection/Train/Normal/<b>"], "reason": ["mask & image differ"]})
        rejected.to_csv(self.paths["packed"] / "rejected.csv", index=False)

    def _baselines(self) -> None:
        guesses = {"all_background": square(0, 0), "all_foreground": ~square(0, 0), "whole_lung": LUNG}
        entries: dict[str, dict[str, Any]] = {}
        for predictor, guess in guesses.items():
            rows = [{"class": CLASS_OF[name], **scores(TRUTH[name], guess)} for name in NAMES]
            entries[predictor] = {"infection": results(pd.DataFrame(rows))}
        (self.paths["baselines"] / "metrics.json").write_text(json.dumps(entries))


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


class Loads(HTMLParser):
    """Collects what a browser would fetch, and the tags that a page left open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "link", "br", "img"}:
            self.open.append(tag)
        self.urls += [value or "" for key, value in attrs if key in {"src", "href", "srcset"} and tag != "a"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_shows_every_part(work: Work) -> None:
    page = work.run()
    for label in ("Figure 1: test image 1", "Figure 2: test image 2", "Figure 3: test image 4"):
        assert label in page
    assert "α · BCE + (1 − α) · (1 − soft IoU)" in page
    assert "102,168.546" in page
    assert "123,456" in page
    assert page.count("<h4>Loss</h4>") == 2
    assert "MedSegBench" in page
    assert "infection/Train/Normal/&lt;b&gt;" in page, "what comes from outside is escaped"
    assert "images_per_second" not in page


def test_the_figures_stand_alone_as_one_svg(work: Work) -> None:
    work.run()
    svg = ElementTree.parse(work.out / "figures.svg").getroot()
    space = {"": "http://www.w3.org/2000/svg"}
    texts = [text.text or "" for text in svg.iterfind("text", space)]
    assert sum(text.startswith("Figure ") for text in texts) == len(work.params().report.figures)
    assert {"X-ray", "Truth: infection", *work.experiments} <= set(texts)
    drawn = {use.get("href") for use in svg.iterfind("svg/use", space)}
    assert drawn == {f"#{image.get('id')}" for image in svg.iterfind("defs/image", space)}
    links = [image.get("href", "") for image in svg.iter("{http://www.w3.org/2000/svg}image")]
    assert links and all(link.startswith("data:image/png;base64,") for link in links)


@pytest.mark.parametrize("order", [["bce", "bce_iou", "a"], ["bce_iou", "a", "bce"]])
def test_experiments_stand_in_the_order_of_params_yaml(work: Work, order: list[str]) -> None:
    work.add("a", shift=1)
    work.experiments = order
    page = work.run()
    assert re.findall(r"<h3>(a|bce|bce_iou)</h3>\s*<div class=\"charts\">", page) == order
    summary = (work.out / "summary.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (a|bce|bce_iou) \| COVID-19 Test images", summary, re.MULTILINE) == order


def test_no_line_breaks_within_covid_19(work: Work) -> None:
    page = work.run()
    assert "6 COVID‑19 Test images" in page and "COVID-19 " not in page
    assert "<code>infection/Test/COVID-19/covid_1</code>" in page, "an id stays as it is"
    assert 'aria-label="X-ray infection/Test/COVID-19/covid_1"' in page
    for path in (work.out / "summary.md", work.metrics):
        assert "‑" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, None),
        (1, "Preprocessing set 1 image of that class and split aside; the positions do not count it."),
        (3, "Preprocessing set 3 images of that class and split aside; the positions do not count them."),
    ],
)
def test_page_tells_which_images_the_figure_positions_count(work: Work, count: int, said: str | None) -> None:
    others = ["infection/Train/COVID-19/x", "infection/Test/Normal/x", "lung/Test/COVID-19/x"]
    ids = [f"infection/Test/COVID-19/covid_{90 + number}" for number in range(count)]
    rejected = pd.DataFrame({"id": others + ids, "reason": "not a PNG"})
    rejected.to_csv(work.paths["packed"] / "rejected.csv", index=False)
    page = work.run()
    assert "Test images 1, 2, 4 of the COVID‑19 Test images that passed preprocessing, in the order" in page
    assert said in page if said else "of that class and split" not in page


def test_page_is_well_formed_and_loads_nothing(work: Work) -> None:
    page = work.run()
    loads = Loads(page)
    assert loads.open == []
    assert {url.partition(",")[0] for url in loads.urls if not url.startswith("#")} == {
        "data:",
        "data:image/png;base64",
    }
    assert "<script" not in page and "@import" not in page and "url(" not in page
    keys = set(re.findall(r'<image id="([^"]+)"', page))
    assert {url[1:] for url in loads.urls if url.startswith("#")} == keys, (
        "each X-ray shown is embedded, once"
    )


def test_metrics_are_nested_by_experiment_target_and_image_set(work: Work) -> None:
    work.run()
    metrics = json.loads(work.metrics.read_text())
    assert list(metrics) == ["all_background", "all_foreground", "bce", "bce_iou", "whole_lung"]
    # the 24 x 24 square moved by two rows: 22 of 24 rows overlap, 26 rows are in either
    assert metrics["bce_iou"]["infection"]["covid"]["iou"] == round(22 / 26, 6)
    assert metrics["bce_iou"]["infection"]["all"]["images"] == 8
    assert metrics["all_background"]["infection"]["covid"]["dice"] == 0


def test_undefined_scores_become_null_and_dashes(work: Work) -> None:
    path = work.paths["evaluated"] / "bce" / "metrics.json"
    found = json.loads(path.read_text())
    found["infection"]["all"]["dice"] = float("nan")
    path.write_text(json.dumps(found))
    work.run()
    assert json.loads(work.metrics.read_text())["bce"]["infection"]["all"]["dice"] is None


def test_same_inputs_give_the_same_bytes(work: Work) -> None:
    def written() -> list[bytes]:
        work.run()
        return [path.read_bytes() for path in (work.metrics, *sorted(work.out.iterdir()))]

    assert written() == written()


def test_summary_holds_the_sentences_of_the_page(work: Work) -> None:
    page = work.run()
    summary = (work.out / "summary.md").read_text(encoding="utf-8")
    sentence = "bce and bce_iou beat all background, all foreground and the whole lung on IoU, Dice and MAE."
    assert f"- {sentence}" in summary and sentence in page
    assert "| bce_iou | COVID-19 Test images | 0.846 |" in summary


def test_phantoms_are_said_to_be_phantoms(work: Work) -> None:
    page = work.run(work.params(source="phantom://"))
    assert "Synthetic phantoms: figures say nothing about patients." in page
    assert "MedSegBench" not in page
    assert "COVID-QU-Ex" not in page


def test_another_target_gets_its_own_tables_and_figures(work: Work) -> None:
    work.add("both", shift=1, targets=("infection", "lung"))
    page = work.run()
    assert "Figure 1: test image 1, lung" in page
    assert "Infection and lung segmentation" in page
    assert page.count('id="caption-lung-covid"') == 1
    assert json.loads(work.metrics.read_text())["both"]["lung"]["covid"]["iou"] == round(47 / 49, 6)


@pytest.mark.parametrize("count", [1, 12])
def test_any_number_of_experiments(work: Work, count: int) -> None:
    work.experiments.remove("bce_iou")
    for index in range(1, count):
        work.add(f"more_{index}", shift=index)
    page = work.run(work.params(shown=()))
    assert page.count("<h4>Loss</h4>") == count
    assert "Figures 1 to" not in page


def test_diverged_training_is_drawn_with_a_gap(work: Work) -> None:
    path = work.paths["trained"] / "bce" / "history.csv"
    pd.read_csv(path).assign(val_loss=[0.5, np.nan, np.inf], train_loss=np.nan).to_csv(path, index=False)
    page = work.run()
    assert not re.search(r'points="[^"]*(nan|inf)', page)


def test_figure_beyond_the_images_is_refused(work: Work) -> None:
    with pytest.raises(InputError, match="there is no image 181 among 6 COVID-19 Test images"):
        work.run(work.params(shown=(1, 181)))
    assert not work.out.exists() and not work.metrics.exists()


def test_failure_leaves_what_was_there(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    before = work.run()
    kept = work.metrics.read_bytes()
    (work.paths["baselines"] / "metrics.json").write_text("{}")
    write_text = Path.write_text

    def full_disk(path: Path, text: str, **options: Any) -> int:
        if "index" in path.name:
            write_text(path, text[:100], **options)
            raise OSError(28, "No space left on device")
        return write_text(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        work.run()
    assert work.page() == before
    assert work.metrics.read_bytes() == kept
    assert sorted(path.name for path in work.out.iterdir()) == ["figures.svg", "index.html", "summary.md"]


def test_missing_prediction_and_missing_plans_are_told(work: Work) -> None:
    with zipfile.ZipFile(work.paths["evaluated"] / "bce" / "predictions.zip", "w"):
        pass
    with pytest.raises(InputError, match="no prediction of infection for infection/Test/COVID-19/covid_1"):
        work.run()
    for plan in work.paths["plans"].iterdir():
        plan.unlink()
    with pytest.raises(InputError, match=r"no plan of bce, which params\.yaml names"):
        work.run()


def test_experiment_named_like_a_trivial_predictor_is_refused(work: Work) -> None:
    work.add("whole_lung", shift=0)
    with pytest.raises(InputError, match=r"experiments\.whole_lung"):
        work.run()


def test_figure_positions_follow_file_names_of_the_right_images() -> None:
    rows = [("infection", "Test", "COVID-19", name) for name in ("covid_9", "covid_10", "covid_2")]
    rows += [("infection", "Test", "Normal", "a"), ("infection", "Val", "COVID-19", "b")]
    rows += [("lung", "Test", "COVID-19", "c")]
    table = pd.DataFrame(rows, columns=["half", "split", "class", "id"])
    assert figure_ids(table, "infection", (1, 3)) == {1: "covid_10", 3: "covid_9"}


def test_twins_across_splits_are_found() -> None:
    table = pd.DataFrame(
        {"id": ["a", "b", "c"], "split": ["Train", "Test", "Test"], "sha256": ["x", "x", "y"]}
    )
    assert leaks(table) == ["b"]


def test_template_stands_beside_the_code() -> None:
    assert TEMPLATE.is_file()
