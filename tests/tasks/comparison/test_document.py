import json
import math
from pathlib import Path
from typing import Any

import pytest

from tasks.comparison.document import COMPARISON_FILE, SCHEMA_VERSION, Curves, Document, Score
from tasks.support.cli import InputError
from tests.results import Work


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """A document with every kind of content; no test changes it."""
    work = Work(tmp_path_factory.mktemp("written"))
    work.add("both", shift=1, targets=("infection", "lung"))
    work.add("chosen", shift=3, seeds=2, prediction={"threshold": "val", "min_area": 0.0005})
    work.add("dead", shift=0, dead=True)
    work.compare()
    return work


def test_document_survives_a_round_trip(written: Work, tmp_path: Path) -> None:
    path = written.comparison / COMPARISON_FILE
    document = Document.read(path)
    assert document.to_json() == path.read_text(encoding="utf-8")
    copy = tmp_path / "copy.json"
    copy.write_text(document.to_json(), encoding="utf-8")
    assert repr(Document.read(copy)) == repr(document)  # NaN is not equal to itself, but its text is


@pytest.mark.parametrize("value", [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 22 / 26, 1.0])
def test_floats_survive_a_round_trip_exactly(value: float) -> None:
    score = Score(value=value)
    assert Score.model_validate(json.loads(score.model_dump_json())).value.hex() == value.hex()


def test_nan_and_infinity_survive_in_valid_json() -> None:
    values = (0.5, math.nan, math.inf, -math.inf)
    curves = Curves(epoch=(1, 2, 3, 4), train_loss=values, val_loss=values, val_score=values)
    text = curves.model_dump_json()

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads(text, parse_constant=refuse)
    assert content["train_loss"] == [0.5, "NaN", "Infinity", "-Infinity"]
    read = Curves.model_validate(content)
    assert str(read.train_loss) == str(values)


def changed(work: Work, tmp_path: Path, **fields: Any) -> Path:
    content = json.loads((work.comparison / COMPARISON_FILE).read_text(encoding="utf-8"))
    path = tmp_path / COMPARISON_FILE
    path.write_text(json.dumps(content | fields), encoding="utf-8")
    return path


@pytest.mark.parametrize("version", [0, 1, "2", None])
def test_other_schema_version_is_a_one_line_error(written: Work, tmp_path: Path, version: Any) -> None:
    path = changed(written, tmp_path, schema_version=version)
    with pytest.raises(InputError) as refused:
        Document.read(path)
    assert str(refused.value) == (
        f"{path}: schema version {version}, but this code reads version {SCHEMA_VERSION}; "
        "`dvc repro compare` writes it again"
    )


def test_invalid_document_is_a_one_line_error(written: Work, tmp_path: Path) -> None:
    path = changed(written, tmp_path, more=1)
    with pytest.raises(InputError, match=r": more: Extra inputs are not permitted; `dvc repro compare`"):
        Document.read(path)
    path.write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        Document.read(path)
    path.write_text("[]")
    with pytest.raises(InputError, match="schema version None"):
        Document.read(path)
    path.unlink()
    with pytest.raises(InputError, match=r"comparison\.json: no such file"):
        Document.read(path)


def test_sections_are_halves_and_targets(written: Work) -> None:
    document = Document.read(written.comparison / COMPARISON_FILE)
    infection, lung = document.sections
    assert (infection.half, infection.target) == ("infection", "infection")
    assert (lung.half, lung.target) == ("infection", "lung")
    assert infection.experiments == ("bce", "bce_iou", "both", "chosen", "dead")
    assert lung.experiments == ("both",)
    for image_sets in (infection.val, infection.image_sets):
        assert [found.name for found in image_sets] == ["covid", "non_covid", "normal", "controls", "all"]
    assert document.groups == {"Other experiments": infection.experiments}
    assert infection.figures and [shown.position for shown in infection.figures.shown] == [1, 2, 4]
    assert lung.figures is None
    assert infection.markings.keys() == {"dead"}
    assert {shown.why for shown in document.shown_images()} == {"figure", "class", "best", "median", "worst"}
    assert [found.image_class for found in infection.worst] == ["COVID-19"]
