import json
import zipfile
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest

from tasks.comparison.document import Document
from tasks.comparison.inputs import ExperimentResults, Inputs
from tasks.support.cli import InputError
from tests.helpers import made
from tests.results import IDS, Work


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """A comparison that no test changes."""
    work = Work(tmp_path_factory.mktemp("written"))
    work.compare()
    return work


def rows(work: Work, name: str, **wanted: Any) -> pd.DataFrame:
    table = pd.read_csv(work.comparison / f"{name}.csv")
    for column, value in wanted.items():
        table = table[table[column] == value]
    return table


def test_output_folder_contains_document_tables_and_pictures(written: Work) -> None:
    assert made(written.comparison).keys() == {
        "comparison.json",
        "detection.csv",
        "differences.csv",
        "pictures.zip",
        "reliability.csv",
        "scores.csv",
        "sizes.csv",
        "steps.csv",
    }


def test_scores_have_intervals(written: Work) -> None:
    place = {"half": "infection", "target": "infection", "split": "Test", "image_set": "covid"}
    iou = rows(written, "scores", **place, metric="iou").set_index("name")
    # the 24 x 24 square shifted by two and by six rows
    assert iou["value"].round(6).to_dict() == {
        "bce_iou": round(22 / 26, 6),
        "bce": round(18 / 30, 6),
        "all_background": 0,
        "all_foreground": round(24**2 / 64**2, 6),
        "whole_lung": 0.25,
    }
    assert (iou["images"] == 6).all() and (iou["low"] <= iou["value"] + 1e-6).all()
    ece = rows(written, "scores", **place, metric="ece", kind="experiment")
    assert len(ece) == 2 and ece["low"].isna().all()


def test_differences_name_their_winners(written: Work) -> None:
    found = rows(written, "differences", split="Test", image_set="covid", metric="iou")
    winners = found.set_index(["first", "second"])["winner"]
    assert len(winners) == 5 * 4 / 2
    assert winners["bce", "bce_iou"] == "bce_iou"
    assert winners["bce", "whole_lung"] == "bce"
    on_val = rows(written, "differences", split="Val")
    assert on_val["metric"].tolist() == ["balanced"] and not on_val["covers_training"].any()


def test_same_inputs_give_identical_bytes(work: Work) -> None:
    work.compare()
    first = made(work.comparison)
    work.compare()
    assert made(work.comparison) == first


def test_archive_contains_exactly_the_shown_pictures(work: Work) -> None:
    work.audit([(IDS["Normal (1)"], IDS["covid_6"], 1.0)])
    document = work.compare(work.params(shown=(4,)))
    with zipfile.ZipFile(work.comparison / "pictures.zip") as archive:
        names = set(archive.namelist())
    assert names == set(pictures_of(document))
    images = {name.removeprefix("images/") for name in names if name.startswith("images/")}
    ids = {shown.image_id for shown in document.shown_images()} | {IDS["Normal (1)"], IDS["covid_6"]}
    assert images == {f"{image_id}.png" for image_id in ids}
    assert f"predictions/bce/infection/{IDS['covid_4']}.png" in names


def pictures_of(document: Document) -> Iterator[str]:
    for pair in document.dataset.shown_pairs:
        yield from (f"images/{image_id}.png" for image_id in (pair.first, pair.second))
    for shown in document.shown_images():
        yield f"images/{shown.image_id}.png"
        yield from (f"references/{target}/{shown.image_id}.png" for target in shown.references)
        for p in shown.predictions:
            yield f"predictions/{p.experiment}/{p.target}/{shown.image_id}.png"


def test_failure_keeps_the_previous_output(work: Work) -> None:
    work.compare()
    before = made(work.comparison)
    zipfile.ZipFile(work.paths["evaluated"] / "bce-seed0" / "predictions.zip", "w").close()
    with pytest.raises(InputError, match="no prediction of infection for"):
        work.compare()
    assert made(work.comparison) == before
    assert not list(work.comparison.parent.glob(".*"))


def test_trivial_predictors_have_sections_for_targets_without_experiments(work: Work) -> None:
    work.experiments.clear()
    work.add("lung", shift=1, targets=("lung",))
    document = work.compare()
    assert [(section.target, section.experiments) for section in document.sections] == [
        ("lung", ("lung",)),
        ("infection", ()),
    ]
    assert [section.target for section in document.predicted] == ["lung"]
    work.run()
    metrics = json.loads(work.metrics.read_text())
    assert metrics["baselines"]["whole_lung"]["test"].keys() == {"infection"}
    assert metrics["lung"]["val"].keys() == metrics["lung"]["test"].keys() == {"lung"}


def drop_rows(work: Work, of: str, dropped: str) -> None:
    for path in work.paths[of].glob("*/images.csv"):
        table = pd.read_csv(path)
        table[~table["id"].str.contains(dropped, regex=False)].to_csv(path, index=False)


def test_val_images_that_the_audit_drops_count_for_no_predictor(work: Work) -> None:
    drop_rows(work, "evaluated", "Val/COVID-19/covid_1")
    section = work.compare().sections[0]
    assert section.choice and section.choice.images == 7
    assert {row.images for row in section.val[0].rows} == {5}
    assert {row.images for row in section.main.rows} == {6}


def test_val_may_lack_a_class(work: Work) -> None:
    for of in ("evaluated", "baselines"):
        drop_rows(work, of, "Val/Normal")
    section = work.compare().sections[0]
    assert [found.name for found in section.val] == ["covid", "non_covid", "all"]
    assert "normal" in [found.name for found in section.image_sets]


def experiment(name: str, half: str, *targets: str) -> ExperimentResults:
    anything: Any = None
    return ExperimentResults(
        name=name,
        plan={"half": half, "targets": targets},
        prediction={},
        networks={},
        history=anything,
        images=anything,
        steps=anything,
        calibration=anything,
        thresholds={},
        presence={},
        versions={},
        predictions=anything,
    )


def test_each_half_has_its_own_sections() -> None:
    trivial = {
        half: pd.DataFrame({"id": [f"{half}/Test/COVID-19/a"], "target": ["lung"], "predictor": "x"})
        for half in ("infection", "lung")
    }
    experiments = (
        experiment("a", "infection", "infection", "lung"),
        experiment("b", "lung", "lung"),
        experiment("c", "infection", "lung"),
    )
    anything: Any = None
    inputs = Inputs(
        experiments=experiments,
        groups={},
        trivial_images=trivial,
        trivial_calibration=trivial,
        table=anything,
        rejected=anything,
        audit=anything,
        fingerprint="",
        plans="",
        raw=anything,
        source="",
        phantoms=False,
        published=True,
        image_groups=None,
        external=(),
        ensembles=(),
    )
    found = inputs.scored()
    assert [(s.half, s.target, s.names) for s in found] == [
        ("infection", "infection", ["a"]),
        ("infection", "lung", ["a", "c"]),
        ("lung", "lung", ["b"]),
    ]
    of_lung = [s for s in found if s.target == "lung"]
    assert [s.trivial["id"].str.partition("/")[0].tolist() for s in of_lung] == [["infection"], ["lung"]]


def test_experiments_in_no_group_follow_the_groups(work: Work) -> None:
    work.add("third", shift=1)
    work.groups = {"The loss": ("bce_iou", "bce")}
    document = work.compare()
    assert document.groups == {"The loss": ("bce_iou", "bce"), "Other experiments": ("third",)}
    assert document.sections[0].experiments == ("bce_iou", "bce", "third")
