from pathlib import Path

import pytest

from tasks.download import download
from tasks.settings.changes import parse_assignment, with_changes
from tasks.sources.look import News, describe, look
from tasks.sources.open import open_source
from tasks.support.cli import InputError
from tests.helpers import ROOT, zipped

DATA = "Infection Segmentation Data/Infection Segmentation Data"


@pytest.fixture
def raw(kaggle_folder: Path, tmp_path: Path) -> Path:
    download(open_source(str(kaggle_folder), Path()), tmp_path / "raw", "here")
    return tmp_path / "raw"


def change_one(kaggle_folder: Path) -> None:
    (kaggle_folder / DATA / "Train/COVID-19/images/covid_1.png").write_bytes(b"another image")


def test_unchanged_files_are_recognised_in_a_zip_or_folder(
    kaggle_folder: Path, tmp_path: Path, raw: Path
) -> None:
    zipped(kaggle_folder, tmp_path / "a.zip")
    news = look("a.zip", tmp_path, raw)
    assert look("archive", tmp_path, raw) == news
    assert (news.differs, news.known, news.text) == (False, True, "unchanged: 27 files")


def test_changed_file_is_counted_and_changes_the_fingerprint(kaggle_folder: Path, raw: Path) -> None:
    before = look(str(kaggle_folder), Path(), raw)
    change_one(kaggle_folder)
    after = look(str(kaggle_folder), Path(), raw)
    assert (after.differs, after.text) == (True, "0 new, 1 changed and 0 removed of 27 files")
    assert before.fingerprint != after.fingerprint


def test_new_changed_and_removed_files_are_counted(kaggle_folder: Path, raw: Path) -> None:
    change_one(kaggle_folder)
    for name in ("covid_7.png", "covid_8.png"):
        (kaggle_folder / DATA / "Val/COVID-19/images" / name).write_bytes(b"new")
    for path in (kaggle_folder / DATA / "Test/Normal").rglob("*.png"):
        path.unlink()
    news = look(str(kaggle_folder), Path(), raw)
    assert (news.new, news.changed, news.gone, news.total) == (2, 1, 3, 26)
    assert news.text == "2 new, 1 changed and 3 removed of 26 files"


@pytest.mark.parametrize("there", ["none", "missing", "damaged"])
def test_without_an_earlier_dataset_all_files_are_new(kaggle_folder: Path, raw: Path, there: str) -> None:
    (raw / "infection-val.zip").unlink()
    earlier = {"none": None, "missing": raw / "missing", "damaged": raw}[there]
    news = look(str(kaggle_folder), Path(), earlier)
    assert (news.differs, news.known, news.new, news.gone) == (True, False, 27, 0)
    assert news.text == "27 files; there is no earlier dataset to compare with"


def test_phantoms_never_change(raw: Path) -> None:
    news = look("phantom://45?size=64", Path(), raw)
    assert news == News(None, total=135, new=0, changed=0, gone=0, known=True, left_out=[])
    assert (news.differs, news.text) == (False, "never changes: 135 files")


def test_missing_source_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data\.source: a\.zip: does not exist"):
        look("a.zip", tmp_path, None)


def test_command_prints_differences_and_how_to_accept_them(
    kaggle_folder: Path, tmp_path: Path, raw: Path
) -> None:
    def run(*assignments: str) -> list[str]:
        changes = {a: parse_assignment(a) for a in assignments}
        text = with_changes((ROOT / "params.yaml").read_text(encoding="utf-8"), changes)
        (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
        return list(describe(tmp_path / "params.yaml", raw))

    change_one(kaggle_folder)
    found = look("archive", tmp_path, None).fingerprint
    accept = f"to accept the current files, run: cxr params --set data.fingerprint={found}"
    changed = "archive: 0 new, 1 changed and 0 removed of 27 files"
    assert run("data.source=archive") == [
        changed,
        f"fingerprint {found}, data.fingerprint is not set; {accept}",
    ]
    pin = "data.fingerprint=f" + 31 * "0"
    assert run("data.source=archive", pin)[1] == (
        f"fingerprint {found}, data.fingerprint pins {pin.partition('=')[2]}; {accept}"
    )
    assert run("data.source=archive", f"data.fingerprint={found}")[1] == (
        f"fingerprint {found}, as pinned by data.fingerprint"
    )
    assert run("data.source=phantom://9") == ["phantom://9: never changes: 27 files"]


def test_command_names_what_is_not_in_the_layout(kaggle_folder: Path, tmp_path: Path, raw: Path) -> None:
    (kaggle_folder / DATA / "Train/COVID-19/images/covid_1.png").rename(kaggle_folder / "covid_1.jpg")
    (kaggle_folder / DATA / "Val/Normal").rename(kaggle_folder / DATA / "Val/Normals")
    changes = {"data.source=archive": parse_assignment("data.source=archive")}
    text = with_changes((ROOT / "params.yaml").read_text(encoding="utf-8"), changes)
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    said, *left_out, fingerprint = describe(tmp_path / "params.yaml", raw)
    assert said == "archive: 0 new, 0 changed and 4 removed of 23 files"
    assert left_out == [
        f"3 files below archive are not in the layout, the first: '{DATA}/Val/Normals/images/Normal (2).png' "
        "('Normals' is none of the classes COVID-19, Non-COVID, Normal)",
        "1 file below archive is not in the layout: 'covid_1.jpg' "
        "(in neither 'Infection Segmentation Data' nor 'Lung Segmentation Data')",
    ]
    assert fingerprint.startswith("fingerprint f")
