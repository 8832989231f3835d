import html
import json
import re
import shutil
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from tasks.comparison.document import COMPARISON_FILE, PICTURES_FILE
from tasks.report import report
from tasks.reporting.page import FIGURES, TEMPLATE, render_page
from tasks.support.cli import InputError
from tests.browser import CHROMIUM, browsing
from tests.results import IDS, Work


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """A report that no test changes."""
    work = Work(tmp_path_factory.mktemp("written"))
    work.run()
    return work


class Loads(HTMLParser):
    """Collects the URLs that a browser would fetch, and the tags that the page leaves open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "link", "br", "img", "wbr"}:
            self.open.append(tag)
        self.urls += [value or "" for key, value in attrs if key in {"src", "href", "srcset"} and tag != "a"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_shows_every_part(written: Work) -> None:
    page = written.page()
    for label in ("Figure 1: test image 1", "Figure 2: test image 2", "Figure 3: test image 4"):
        assert label in page
    assert "α · BCE + (1 − α) · (1 − soft IoU)" in page
    assert "102,168.546" in page
    assert "123,456" in page
    assert page.count("<h4>Loss</h4>") == 2
    assert "MedSegBench" in page
    assert '<a href="claim.md">' in page and (written.out / "claim.md").exists()
    assert "infection/Train/Normal/&lt;b&gt;" in page, "text from outside must be escaped"


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_page_fits_on_a_phone(work: Work) -> None:
    """Tables scroll in their own boxes, names break between words, and titles of groups stay visible."""
    work.add("report2_augmented", shift=1)
    work.groups = {
        "The loss of the first report, at its own settings": ("bce", "bce_iou"),
        "The second report and its next steps": ("report2_augmented",),
    }
    work.run()
    with browsing(width=390, height=800) as page:
        page.goto((work.out / "index.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        name = page.locator(".iou-bars th").get_by_text("report2_augmented")
        lines = name.evaluate(
            "cell => cell.getBoundingClientRect().height / parseFloat(getComputedStyle(cell).lineHeight)"
        )
        assert lines < 3, "one line break, after the underscore"
        table = page.locator("#scores ~ .scroll").first
        table.evaluate("box => { box.scrollLeft = 200 }")
        title = table.locator("tr.group span").first.bounding_box()
        assert title and title["x"] >= 0 and title["x"] + title["width"] <= 390


def test_contents_list_every_section_in_order(written: Work) -> None:
    page = written.page()
    contents = page.partition("<nav")[2].partition("</nav>")[0]
    headings = re.findall(r'<h2 id="([\w-]+)"', page)
    assert re.findall(r'href="#([\w-]+)"', contents) == headings
    assert len(headings) > 10


def test_figures_are_one_standalone_svg(written: Work) -> None:
    svg = ElementTree.parse(written.out / "figures.svg").getroot()
    space = {"": "http://www.w3.org/2000/svg"}
    texts = [text.text or "" for text in svg.iterfind("text", space)]
    assert sum(text.startswith("Figure ") for text in texts) == len(written.params().report.figures)
    assert {"X-ray", "Reference: infection", *written.experiments} <= set(texts)
    drawn = {use.get("href") for use in svg.iterfind("svg/use", space)}
    assert drawn == {f"#{image.get('id')}" for image in svg.iterfind("defs/image", space)}
    links = [image.get("href", "") for image in svg.iter("{http://www.w3.org/2000/svg}image")]
    assert links and all(link.startswith("data:image/png;base64,") for link in links)


@pytest.mark.parametrize("order", [["bce", "bce_iou", "a"], ["bce_iou", "a", "bce"]])
def test_experiments_follow_params_yaml(work: Work, order: list[str]) -> None:
    work.add("a", shift=1)
    work.experiments = {name: work.experiments[name] for name in order}
    page = work.run()
    assert re.findall(r"<h3>(a|bce|bce_iou)</h3>\s*<div class=\"charts\">", page) == order
    summary = (work.out / "summary.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (a|bce|bce_iou) \|", summary, re.MULTILINE) == order


def test_groups_are_compared_with_their_first_experiment(work: Work) -> None:
    work.add("a", shift=1)
    work.groups = {"The loss": ("bce", "bce_iou"), "Alone": ("a",)}
    page = work.run()
    said = section(page, "comparison")
    assert "The loss. Infection: IoU on 6 COVID-19 Test images. Compared with bce" in said
    assert "bce_iou bce_iou is better +0.246 +0.246 to +0.246" in said
    assert "Alone." not in said
    for title in ("The loss", "Alone"):
        assert f'<th scope="rowgroup" colspan="5">{title}</th>' in page
    assert "| **The loss** |" in (work.out / "summary.md").read_text(encoding="utf-8")


def test_lead_names_the_experiment_chosen_on_val(work: Work) -> None:
    work.add("chosen", shift=8, val_shift=0)
    page = text_of(work.run())
    assert (
        "For infection, use chosen. Its balanced score on 8 Val images, 1.000 (95% CI 1.000–1.000), is the "
        "highest; it beats bce_iou and bce."
    ) in page
    # 24 rows shifted by 8: 16 of 32
    assert "On 6 COVID-19 Test images it reaches IoU 0.500 (95% CI 0.500–0.500) and Dice 0.667" in page
    assert "It marks something on 0.0% (95% CI 0.0%–65.8%) of 2 control images." in page
    assert "In IoU on 6 COVID-19 Test images, chosen is beaten by bce and bce_iou." in page
    assert "Of the control images, these 2 experiments mark 0.0% falsely, chosen 0.0%." in page


def test_covid_19_does_not_wrap(written: Work) -> None:
    page = written.page()
    assert "6 COVID‑19 Test images" in page and "COVID-19 " not in page
    assert "<code>infection/Test/COVID-19/covid_1</code>" in page, "ids keep their plain hyphen"
    assert 'aria-label="X-ray infection/Test/COVID-19/covid_1"' in page
    for path in (written.out / "summary.md", written.metrics):
        assert "‑" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, None),
        (1, "Preprocessing excluded 1 image of this class and split; the positions do not count it."),
        (3, "Preprocessing excluded 3 images of this class and split; the positions do not count them."),
    ],
)
def test_page_explains_how_figure_positions_are_counted(work: Work, count: int, said: str | None) -> None:
    others = ["infection/Train/COVID-19/x", "infection/Test/Normal/x", "lung/Test/COVID-19/x"]
    ids = [f"infection/Test/COVID-19/covid_{90 + number}" for number in range(count)]
    rejected = pd.DataFrame({"id": others + ids, "reason": "not a PNG"})
    rejected.to_csv(work.paths["packed"] / "rejected.csv", index=False)
    page = work.run()
    assert "Test images 1, 2, 4, counted from 1 in file-name order over the COVID‑19 Test images" in page
    assert said in page if said else "of this class and split" not in page


def test_page_is_well_formed_and_loads_nothing(written: Work) -> None:
    page = written.page()
    loads = Loads(page)
    assert loads.open == []
    assert {url.partition(",")[0] for url in loads.urls if not url.startswith("#")} == {
        "data:",
        "data:image/png;base64",
    }
    assert "<script" not in page and "@import" not in page and "url(" not in page
    keys = set(re.findall(r'<image id="([^"]+)"', page))
    assert {url[1:] for url in loads.urls if url.startswith("#")} == keys, "each X-ray is embedded once"


def numbers(value: Any) -> int:
    return sum(map(numbers, value.values())) if isinstance(value, dict) else 1


def test_metrics_are_nested_by_experiment_split_target_and_image_set(work: Work) -> None:
    work.add("both", shift=1, targets=BOTH)
    work.run()
    metrics = json.loads(work.metrics.read_text())
    assert list(metrics) == ["baselines", "bce", "bce_iou", "both", "dataset"]
    assert metrics["dataset"]["unusable"] == 1
    # the 24 x 24 square moved by two rows: 22 of 24 rows overlap, 26 rows are in either
    for split in ("val", "test"):
        assert metrics["bce_iou"][split]["infection"]["covid"]["iou"] == round(22 / 26, 6)
    assert metrics["bce_iou"]["test"]["infection"]["all"]["balanced"] == round((22 / 24 + 1) / 2, 6)
    assert metrics["baselines"].keys() == {"all_background", "all_foreground", "whole_lung"}
    assert metrics["baselines"]["all_background"]["test"]["infection"]["covid"]["dice"] == 0
    assert numbers(metrics["both"]) <= 60


def test_scores_that_do_not_exist_are_left_out_or_dashes(work: Work) -> None:
    work.add("dead", shift=0, dead=True)
    page = work.run()
    found = json.loads(work.metrics.read_text())
    assert "hd95" in found["bce"]["test"]["infection"]["covid"]
    assert "hd95" not in found["dead"]["test"]["infection"]["covid"]
    row = page[page.index('id="caption-more-infection-covid"') :]
    cells = re.search(r'<th scope="row">dead.*?</tr>', row, re.DOTALL)
    assert cells and "–</td>" in cells[0]


def test_same_inputs_give_the_same_bytes(work: Work) -> None:
    def written() -> list[bytes]:
        work.run()
        return [path.read_bytes() for path in (work.metrics, *sorted(work.out.iterdir()))]

    assert written() == written()


def test_summary_repeats_the_sentences_of_the_page(written: Work) -> None:
    page = written.page()
    summary = (written.out / "summary.md").read_text(encoding="utf-8")
    sentence = (
        "bce and bce_iou beat “all background”, “all foreground” and “the whole lung” on IoU, Dice and MAE."
    )
    assert f"- On the COVID-19 Test images, {sentence}" in summary and sentence in page
    assert "| bce_iou | 0.958 | 0.846 (0.846–0.846) | 0.917 (0.917–0.917) | 0.0% (" in summary
    assert "| Report 1, BCE (as printed) | – | 0.138 | – | – | – | – | – |" in summary
    for text in (page, summary, (written.out / "figures.svg").read_text(encoding="utf-8")):
        assert "Research use only; not a medical device." in text


def test_page_warns_about_phantoms(work: Work) -> None:
    page = work.run(work.params(source="phantom://"))
    assert "Synthetic phantoms: these scores say nothing about patients." in page
    assert "MedSegBench" not in page
    assert "COVID-QU-Ex" not in page
    assert "report 1, both losses" not in page and '<tr class="printed' not in page
    assert "(as printed)" not in (work.out / "summary.md").read_text(encoding="utf-8")


def test_another_target_gets_its_own_tables(work: Work) -> None:
    work.add("both", shift=1, targets=("infection", "lung"))
    page = work.run()
    assert "Infection and lung segmentation" in page
    assert page.count('id="caption-lung-covid"') == 1
    lung = json.loads(work.metrics.read_text())["both"]["test"]["lung"]
    assert lung["covid"]["iou"] == round(47 / 49, 6)


@pytest.mark.parametrize("count", [1, 12])
def test_any_number_of_experiments(work: Work, count: int) -> None:
    del work.experiments["bce_iou"]
    for index in range(1, count):
        work.add(f"more_{index}", shift=index)
    page = work.run(work.params(shown=()))
    assert page.count("<h4>Loss</h4>") == count
    assert "Figures 1 to" not in page


def test_diverged_training_is_drawn_with_a_gap(work: Work) -> None:
    path = work.paths["trained"] / "bce-seed0" / "history.csv"
    pd.read_csv(path).assign(val_loss=[0.5, np.nan, np.inf], train_loss=np.nan).to_csv(path, index=False)
    page = work.run()
    assert not re.search(r'points="[^"]*(nan|inf)', page)


def test_dead_experiment_is_flagged_wherever_its_scores_appear(work: Work) -> None:
    work.add("dead", shift=0, dead=True)
    page = work.run()
    said = (
        "Epochs 1 to 3, including the kept epoch 1, mark no Val pixel, "
        "so the scores say nothing about the network or the loss."
    )
    assert re.findall(r'<p><a href="#curves">(\w+)</a>: ([^.]*\.)', page) == [("dead", said)]
    assert re.findall(r'<h3>(\w+)</h3>\s*<p class="symptom small bad">([^.]*\.)', page) == [("dead", said)]
    fault = r'<th scope="row">([^<]*)<small class="bad">marks no pixel</small>'
    assert set(re.findall(fault, page)) == {"dead"}
    assert len(re.findall(fault, page)) == 1 + 2 * 5  # a bar, and two tables for each of five image sets
    dead_row = re.search(r'<tr class="ours">\s*<th scope="row">dead.*?</tr>', page, re.DOTALL)
    assert dead_row and "best" not in dead_row[0]
    summary = (work.out / "summary.md").read_text(encoding="utf-8")
    assert f"\n- **dead:** {said}" in summary
    assert "\n| dead (marks no pixel) | 0.500 | 0.000" in summary


def test_masks_that_are_empty_at_a_half_but_not_at_the_chosen_threshold_count(work: Work) -> None:
    path = work.paths["trained"] / "bce-seed0" / "history.csv"
    pd.read_csv(path).assign(val_marked=0.0).to_csv(path, index=False)
    page = work.run()
    assert re.findall(r'class="symptom small">([^.]*\.[^.]*\.)', page) == [
        "At a threshold of 0.5, the kept epoch, 2, marks no Val pixel."
    ]
    assert "symptom small bad" not in page and "say nothing about the network" not in page


def diverge(work: Work, epoch: int) -> None:
    """End the training of bce in this epoch with a loss of NaN. The epoch before is kept."""
    folder = work.paths["trained"] / "bce-seed0"
    history = pd.read_csv(folder / "history.csv")[:epoch]
    history.loc[epoch - 1, history.columns.difference(["epoch", "seed"])] = np.nan
    history.to_csv(folder / "history.csv", index=False)
    path = folder / "network" / "network.json"
    network = json.loads(path.read_text()) | {"diverged": True, "best_epoch": epoch - 1}
    path.write_text(json.dumps(network))


def test_diverged_experiment_is_a_row_that_says_so(work: Work) -> None:
    diverge(work, epoch=2)
    page = work.run()
    fault = r'<th scope="row">([^<]*)<small class="bad">loss diverged</small>'
    assert set(re.findall(fault, page)) == {"bce"}
    assert "The loss became NaN or infinite in epoch 2, which ended training; epoch 1 is kept." in page
    assert not re.search(r'points="[^"]*(nan|inf)', page)


def test_training_that_diverged_in_its_first_epoch_does_not_block_the_report(work: Work) -> None:
    diverge(work, epoch=1)
    page = text_of(work.run())
    assert "bce : The loss became NaN or infinite in epoch 1" in page
    assert "no epoch had ended before, so the scores are those of an untrained network" in page


def test_dead_seed_is_named(work: Work) -> None:
    work.add("half", shift=0, seeds=2, dead=True)
    said = text_of(work.run())
    assert "half : Seed 1: Epochs 1 to 3, including the kept epoch 1, mark no Val pixel" in said
    assert "half marks no pixel in 1 of 2 seeds" in said


def test_harmless_symptom_is_shown_only_beside_its_curves(work: Work) -> None:
    path = work.paths["trained"] / "bce-seed0" / "history.csv"
    epochs = pd.concat([pd.read_csv(path)] * 2).assign(epoch=range(1, 7))
    epochs.assign(train_loss=[0.3, 0.2, 0.9, 0.8, 0.7, 0.6]).to_csv(path, index=False)
    page = work.run()
    said = (
        "The training loss diverged: it was 0.2 in epoch 2, then up to 0.9 in epochs 3 to 6, "
        "and did not recover."
    )
    assert re.findall(r'<h3>(\w+)</h3>\s*<p class="symptom small">([^<]*)', page) == [
        ("bce", f"{said} Try a lower learning_rate.")
    ]
    assert said in (work.out / "summary.md").read_text(encoding="utf-8")
    assert 'class="warning"' not in page and '<small class="bad">marks' not in page


def test_healthy_trainings_show_no_symptom(written: Work) -> None:
    assert 'class="symptom' not in written.page()
    assert "- **" not in (written.out / "summary.md").read_text(encoding="utf-8")


def test_figure_positions_out_of_range_are_named(work: Work) -> None:
    said = section(work.run(work.params(shown=(1, 181))), "figures")
    assert "There are 6, so 181 of report.figures does not exist." in said
    assert "Figure 1: test image 1 " in said and "Figure 2" not in said


def test_a_report_needs_no_figure(work: Work) -> None:
    assert 'id="figures"' not in work.run(work.params(shown=(181, 182, 184)))


def test_failed_report_keeps_the_previous_files(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    before = work.run()
    kept = work.metrics.read_bytes()
    work.groups = {"Another title": ("bce",)}
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
    assert sorted(path.name for path in work.out.iterdir()) == [
        "claim.md",
        "figures.svg",
        "index.html",
        "summary.md",
    ]


def test_missing_prediction_and_missing_plan_are_errors(work: Work) -> None:
    with zipfile.ZipFile(work.paths["evaluated"] / "bce-seed0" / "predictions.zip", "w"):
        pass
    with pytest.raises(InputError, match="no prediction of infection for infection/Test/COVID-19/covid_1"):
        work.run()
    for plan in work.paths["plans"].iterdir():
        plan.unlink()
    with pytest.raises(
        InputError, match=r"bce-seed0\.json: no such file; the stage plan writes it for bce of params\.yaml"
    ):
        work.run()


BOTH = ("lung", "infection")


def text_of(page: str) -> str:
    """The visible text: tags removed and white space collapsed."""
    words = re.sub(r"<[^>]*>", " ", page.replace("<wbr>", ""))
    return " ".join(html.unescape(words).replace("‑", "-").split())


def section(page: str, name: str) -> str:
    """The visible text of the section with this id."""
    return text_of(page.partition(f'<h2 id="{name}">')[2].partition("<h2 ")[0])


def test_better_requires_an_interval_that_excludes_zero(work: Work) -> None:
    work.add("same", shift=2)
    said = section(work.run(), "comparison")
    assert "bce bce_iou is better −0.246 −0.246 to −0.246" in said
    assert "same no significant difference +0.000 +0.000 to +0.000" in said
    assert "bce_iou beats bce and is not significantly different from same." in said
    assert "they do not include the variation between trainings" in said


def test_seeds_widen_the_intervals(work: Work) -> None:
    """The seeds of one experiment differ by as much as the experiments do."""
    work.add("twice", shift=1, seeds=2)
    said = section(work.run(), "comparison")
    assert "They include the variation between trainings" in said
    assert not re.search(r"(bce|bce_iou|twice) is better", said)


def test_seeds_are_averaged_with_their_standard_deviation(work: Work) -> None:
    work.add("twice", shift=0, seeds=2)
    page = work.run()
    # shifted by 0 and by 1 of 24 rows: IoU 1 and 23 / 25
    said = section(page, "scores")
    assert re.search(r"twice 2 seeds 0\.960 \d\.\d+–1\.000 SD 0\.057 ", said)
    assert "1 seed" not in said
    assert "| twice (2 seeds) |" in (work.out / "summary.md").read_text(encoding="utf-8")


def test_both_rules_for_empty_masks_are_shown_where_they_differ(written: Work) -> None:
    """In the table of all images, without the columns that repeat the table of the COVID-19 images."""
    said = section(written.page(), "scores")
    covid, every = said.split("Infection on 8 Test images, controls included.")
    assert "IoU Dice Missed Average precision Sensitivity Precision bce " in covid
    # Two of eight images are controls, which score 1: (6 * 0.846 + 2) / 8
    assert "bce_iou 0.846 0.846–0.846 0.917 0.917–0.917 0.0%" in covid
    assert "The scores on images with a reference mask are those of the table above." in every
    assert "Balanced score IoU Dice Falsely marked, 2 images bce " in every
    assert "bce_iou 0.958 0.958–0.958 0.885 0.885–0.885 0.938 0.938–0.938 0.0%" in every


def test_printed_pairs_are_checked_and_own_pairs_are_possible(written: Work) -> None:
    said = section(written.page(), "consistency")
    assert "Report 2, lung 0.9344 0.5767 Dice 0.5767 is below the IoU" in said
    assert "No other pairing of the 4 scores is possible either" in said
    assert "Tahir et al. 2021, lung 0.9611 0.9799 possible" in said
    # 5 rows for infection and 2 for the lung, on Val and Test, per image and pooled. Infection: on COVID-19
    # images, and on all images also without empty references. Lung: on five image sets.
    pairs = 2 * (5 * (2 + 3) + 2 * (2 * 5))
    assert f"Of the {pairs} pairs of IoU and Dice that this report computes, on Val and Test, none" in said


def test_impossible_own_pair_is_reported(work: Work) -> None:
    path = work.paths["evaluated"] / "bce-seed0" / "images.csv"
    rows = pd.read_csv(path)
    rows.loc[(rows["split"] == "Test") & (rows["class"] == "COVID-19"), "dice"] = 0.999
    rows.to_csv(path, index=False)
    said = section(work.run(), "consistency")
    assert "bce, infection, Test, COVID-19, mean per image: Dice 0.999000 is above" in said


def test_report_2_table_shows_experiments_that_predict_lung_and_infection(work: Work) -> None:
    for name, shift in (("report2", 4), ("other", 3), ("another", 2), ("leading", 1)):
        work.add(name, shift=shift, targets=BOTH)
    page = work.run()
    said = section(page, "report-2")
    # the last epoch is from the history of the first seed
    assert "leading 0.9792 0.9592 0.9688 0.9400 0.3000 0.4000 0.6000 0.5000" in said
    assert "Report 2, as printed 0.5767 0.9344 0.8692 0.3421 0.2947 – 0.6785 0.6473" in said
    for image in ("COVID-19/covid_1", "Non-COVID/non_COVID (1)", "Normal/Normal (1)"):
        infection = "infection" if "COVID-19/" in image else "infection nothing to mark"
        assert f"infection/Test/{image} X-ray Reference: lung Reference: {infection} leading: lung" in said
    assert "leading: infection nothing marked" in said
    assert "report2: lung" in said and "other: lung" not in said
    assert 'href="#report-2"' in page


def test_report_2_section_needs_an_experiment_with_both_targets(written: Work) -> None:
    assert "report-2" not in written.page()


def test_postprocessing_is_compared_with_plain_masks(work: Work) -> None:
    work.add("chosen", shift=1, seeds=2, prediction={"threshold": "val", "min_area": 0.0005})
    page = work.run()
    said = section(page, "postprocessing")
    assert "no post-processing: bce, bce_iou" in said
    assert "IoU, Val, COVID-19 Balanced score, Val, all IoU, Test, COVID-19 Balanced score, Test, all" in said
    assert "threshold 0.43, chosen on Val −0.020 −0.020 to −0.020" in said
    assert "all enabled steps +0.010" in said
    assert "threshold chosen on Val; components below 0.05% of the image removed" in section(page, "trained")


def test_calibration_and_clinical_questions(work: Work) -> None:
    work.add("both", shift=1, targets=BOTH)
    page = work.run()
    assert page.count('aria-label="Reliability of both, infection: ECE 0.0400"') == 1
    said = section(page, "clinical")
    assert "Sensitivity Specificity, Non-COVID Specificity, Normal AUC, against Non-COVID" in said
    assert "both +0.100 +0.100 to +0.100 +0.100" in said  # predicted 0.5, reference 0.4
    assert 'class="dots" d="M' in page
    assert "ROC curves of both; areas: Non-COVID 1.000, Normal 1.000" in page


def test_worst_cases_of_each_class_are_shown(work: Work) -> None:
    path = work.paths["evaluated"] / "bce_iou-seed0" / "images.csv"
    rows = pd.read_csv(path)
    rows.loc[rows["id"] == IDS["Normal (1)"], ["fp", "iou", "dice"]] = (30, 0.0, 0.0)
    rows.to_csv(path, index=False)
    said = section(work.run(), "cases")
    assert "bce_iou, COVID-19: lowest IoU infection/Test/COVID-19/covid_1" in said
    assert "bce_iou, Normal: largest falsely marked area infection/Test/Normal/Normal (1)" in said
    assert "of the image falsely marked" in said
    assert "bce_iou, Non-COVID" not in said


def test_limitations_follow_from_the_run(work: Work) -> None:
    work.audit([(IDS["covid_1"], IDS["covid_2"], 1.0)])
    said = section(work.run(), "limitations")
    assert "1 pair of identical or nearly identical images across splits" in said
    assert "mirrored images" in said  # augment.flip is 0.5
    assert "In two steps" not in said
    work.add("inside", shift=1, images="lungs/lungs")
    assert "In two steps" in section(work.run(), "limitations")
    page = work.run(work.params(source="phantom://"))
    assert "All images are synthetic." in section(page, "limitations")


def test_page_says_what_its_scores_rest_on(written: Work) -> None:
    said = section(written.page(), "run")
    assert "SHA-256 of the plans" in said
    assert "Trained on cpu" in said
    assert "python 3.11.9, torch 2.13.0" in said


def test_report_on_the_lung_half(work: Work) -> None:
    for name in ("bce-seed0", "bce_iou-seed0"):
        shutil.rmtree(work.paths["evaluated"] / name)
        shutil.rmtree(work.paths["trained"] / name)
    work.experiments = {}
    work.add("lung", shift=1, targets=("lung",))
    page = work.run()
    assert "Lung segmentation in chest X-rays" in page
    assert "Figure 1: test image 1" in page and "report 1, both losses" not in page


def test_single_image_has_no_interval(work: Work) -> None:
    for path in (
        *work.paths["evaluated"].glob("*/images.csv"),
        work.paths["baselines"] / "infection" / "images.csv",
    ):
        rows = pd.read_csv(path)
        rows[rows["id"].str.endswith(("covid_1", "Normal (1)"))].to_csv(path, index=False)
    page = work.run(work.params(shown=()))
    assert "no significant difference" in section(page, "comparison")
    assert "nan" not in page.replace("nance", "")


def test_dataset_audit(written: Work) -> None:
    said = section(written.page(), "dataset")
    assert "No duplicate or near-duplicate images in different splits (correlation of 0.98 or more" in said
    assert "2 duplicate or near-duplicate pairs within a split" in said
    assert "1 duplicate or near-duplicate pair across the two halves. They are no leak: each network" in said
    assert "dropped" not in said
    assert "Class Train Val Test Total Published" in said
    assert "COVID-19 2 of 3 found 9 published 3 9 published 3 9 published 3 9 published 9" in said
    assert "infection/Train/Normal/<b> excluded: mask & image differ" in said


def test_faults_of_images_and_masks_are_counted(work: Work) -> None:
    sound = (
        "The masks agree with the classes: all COVID-19 images and no controls have infection. No lung mask "
        "is empty, and at most 1% of any infection lies outside the lungs."
    )
    said = section(work.run(), "dataset")
    assert sound in said and "Images to look at" not in said
    work.audit(
        controls_with_infection=2,
        empty_lung_masks=1,
        infection_outside_lung=1,
        bright_lungs=1,
        unusual_lung_areas=1200,
    )
    said = section(work.run(), "dataset")
    assert sound not in said
    assert (
        "Masks that contradict the classes or each other: 2 controls with infection, 1 empty lung mask, "
        "1 image with more than 1% of its infection outside the lungs."
    ) in said
    assert (
        "Images to look at: 1 X-ray with lungs brighter than the rest of the chest, "
        "1,200 lung masks of unusual area."
    ) in said
    assert json.loads(work.metrics.read_text())["dataset"]["unusual_lung_areas"] == 1200


def test_duplicates_across_splits_are_shown(work: Work) -> None:
    # The audit does not check splits here, so Test images can serve for all of them.
    pairs = [(IDS["covid_1"], IDS["covid_2"], 1.0), (IDS["covid_3"], IDS["covid_4"], 0.98765)]
    work.audit(pairs, duplicates="drop")
    page = work.run()
    said = section(page, "dataset")
    assert "different splits: 1 identical pixel for pixel, 1 with a correlation of 0.98 or more" in said
    assert "2 pairs of duplicate or near-duplicate images in" in said
    assert "They include 2 Test images. " in said
    assert "2 images dropped from training and validation: audit.duplicates is drop." in said
    assert "Test and Test identical, pixel for pixel covid_1 Test, COVID-19 covid_2" in said
    assert "correlation 0.9877 covid_3" in said
    assert Loads(page).open == []


def test_most_similar_of_many_pairs_are_shown(work: Work) -> None:
    work.audit([(IDS["covid_1"], IDS["covid_2"], 1 - number / 2000) for number in range(23)])
    said = section(work.run(), "dataset")
    assert "They include 1 Test image, which may score better than new images would." in said
    assert "No image is dropped from training for this reason: audit.duplicates is report, not drop." in said
    assert said.count("Test and Test") == 20
    assert "The 20 most similar pairs are shown; 3 more are in artifacts/audit/pairs.csv." in said


def test_with_two_halves_each_is_named(work: Work) -> None:
    work.audit([(IDS["covid_1"], IDS["covid_2"], 1.0)])
    path = work.paths["audit"] / "counts.csv"
    counts = pd.read_csv(path)
    pd.concat([counts, counts.assign(half="lung", published=np.nan)]).to_csv(path, index=False)
    said = section(work.run(), "dataset")
    assert "COVID-19, infection half 2 of 3 found" in said and "All, lung half 2 of 3 found 3 3 3 –" in said
    assert "covid_1 Test, COVID-19, infection half" in said
    assert "1 pair of duplicate or near-duplicate images in different splits of one half: 1 identical" in said


def test_counts_without_published_values(work: Work) -> None:
    work.audit(published=None)
    said = section(work.run(work.params(source="phantom://")), "dataset")
    assert "Class Train Val Test Total COVID-19 2 of 3 found 3 3 3 Non-COVID" in said


def test_report_needs_only_the_saved_document(work: Work, tmp_path: Path) -> None:
    work.add("both", shift=1, targets=BOTH)
    work.audit([(IDS["covid_1"], IDS["covid_2"], 1.0)])
    before = work.run()
    metrics = work.metrics.read_bytes()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in (COMPARISON_FILE, PICTURES_FILE):
        (work.comparison / name).rename(elsewhere / name)
    for folder in (*work.paths.values(), work.comparison, work.out):
        shutil.rmtree(folder)
    work.metrics.unlink()
    report(elsewhere, work.out, work.metrics)
    assert work.page() == before
    assert work.metrics.read_bytes() == metrics


def test_document_of_another_schema_version_is_an_error(work: Work) -> None:
    work.compare()
    path = work.comparison / COMPARISON_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    with pytest.raises(InputError, match="schema version 99, but this code reads version 3"):
        report(work.comparison, work.out, work.metrics)
    assert not work.out.exists() and not work.metrics.exists()


def test_two_halves_have_separate_sections(work: Work) -> None:
    work.add("both", shift=1, targets=BOTH)
    document = work.compare()
    others = tuple(section.model_copy(update={"half": "lung"}) for section in document.sections)
    both = document.model_copy(update={"sections": (*document.sections, *others)})
    page = render_page(both, work.comparison / PICTURES_FILE)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(set(ids)) == len(ids)
    said = text_of(page)
    for half in ("infection", "lung"):
        assert f"Infection, {half} half on 6 COVID-19 Test images" in said
        assert f"Lung, {half} half: which experiments beat the trivial predictors" in said
        assert f"Infection, {half} half: which experiments beat the trivial predictors" in said
    assert "Figure 6: test image 4" in said


def test_templates_are_installed_beside_the_code() -> None:
    assert TEMPLATE.is_file() and FIGURES.is_file()
