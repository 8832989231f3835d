import os
import tempfile
import zipfile
from pathlib import Path

import pytest

from tasks.prediction.inputs import PROGRESS, find_items, list_inbox
from tasks.support.cli import InputError
from tests.helpers import as_nobody
from tests.s3 import S3Server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a/one.PNG", "a/two", "a/scan.dcm", "notes.txt", ".hidden.png", "a/DICOMDIR"):
        (tmp_path / "x rays" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x rays" / name).write_bytes(name.encode())
    return tmp_path / "x rays"


def test_folders_files_patterns_and_archives_are_searched(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("inner/c.png", b"c")
        archive.writestr("__MACOSX/inner/._c.png", b"")
        archive.writestr("read me.txt", b"")
    found = find_items([str(folder), str(folder / "*.png"), str(tmp_path / "more.zip")])
    assert {item.name: item.read() for item in found} == {
        "a/one": b"a/one.PNG",
        "a/scan": b"a/scan.dcm",
        "a/two": b"a/two",
        "b": b"b.png",
        "inner/c": b"c",
    }
    assert found[-1].source == f"{tmp_path / 'more.zip'}/inner/c.png"


def test_each_file_counts_once_and_equal_names_are_numbered(folder: Path) -> None:
    (folder / "B.dcm").write_bytes(b"other")
    files = [str(folder / name) for name in ("b.png", "B.dcm", "b.png")]
    assert [item.name for item in find_items(files)] == ["b", "B-2"]


def test_names_of_outputs_are_safe(tmp_path: Path) -> None:
    names = ("..png", "a:b?.png", "con\ncrete.png", "ü ñ (1).png", "..", "x" * 200 + ".png")
    for name in names:
        if name != "..":
            (tmp_path / name).write_bytes(b"")
    found = {item.name for item in find_items([str(tmp_path)])}
    assert "a_b_" in found
    assert "con_crete" in found
    assert "ü ñ (1)" in found
    assert all(len(name) <= 120 and not name.startswith(".") for name in found)


def test_no_name_is_too_long_for_the_output_files(tmp_path: Path) -> None:
    """A mask is written as `.NAME.png.partial` first. File systems allow names of 255 bytes."""
    with zipfile.ZipFile(tmp_path / "long.zip", "w") as archive:
        for member in (
            "肺" * 250 + ".png",
            "x/" + "肺" * 84 + ".png",
            "deep/" * 500 + "b.png",
            "deeper/" * 500 + "b.png",
        ):
            archive.writestr(member, b"")
    names = [item.name for item in find_items([str(tmp_path / "long.zip")])]
    assert len(set(names)) == 4
    for name in names:
        assert len(name.encode()) <= 1000
        assert all(len(f".{part}-9999.png.partial".encode()) <= 255 for part in name.split("/"))
    assert sorted(name.rpartition("/")[2] for name in names) == ["b", "b", "肺" * 66, "肺" * 66]


def test_a_folder_has_not_the_name_of_an_output_file(tmp_path: Path) -> None:
    """The mask of `a` is `a.png`, where the folder `a.png` would be in its place."""
    for name in ("a.dcm", "a.png/b.dcm", "c.JPG/d.dcm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [item.name for item in find_items([str(tmp_path)])] == ["a", "a.png_/b", "c.JPG_/d"]


def test_sources_are_printable_utf8(tmp_path: Path) -> None:
    for name in ("x\ny\x1b[2J.png", os.fsdecode(b"M\xfcller.png"), "\u202egnp.png", "é 肺\u3000.png"):
        (tmp_path / name).write_bytes(b"")
    found = [item.source.removeprefix(f"{tmp_path}/") for item in find_items([str(tmp_path)])]
    assert sorted(found) == sorted(
        ["x\\ny\\x1b[2J.png", "M\\udcfcller.png", "\\u202egnp.png", "é 肺\u3000.png"]
    )


def test_results_of_a_prediction_are_no_inputs(folder: Path) -> None:
    before = [item.name for item in find_items([str(folder)])]
    for name in (PROGRESS, "masks/lung/b.png", "overlays/b.jpg"):
        (folder / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "out" / name).write_bytes(b"")
    for inputs in ([str(folder)], [str(folder), str(folder / "**" / "*.png")]):
        assert [item.name for item in find_items(inputs)] == before
    assert sorted(arrival.item.name for arrival in list_inbox(str(folder))) == before
    assert len(find_items([str(folder / "out" / "masks")])) == 1


def test_what_a_link_hides_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c.png").write_bytes(b"c")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "file.png").symlink_to(tmp_path / "elsewhere" / "c.png")
    (folder / "broken.png").symlink_to(tmp_path / "nowhere.png")
    found = {item.name: item for item in find_items([str(folder)])}
    assert sorted(found) == ["a/one", "a/scan", "a/two", "b", "broken", "file"]
    assert found["file"].read() == b"c"
    with pytest.raises(FileNotFoundError):
        found["broken"].read()
    assert capsys.readouterr().err == (
        f"left out: {folder / 'linked'}: linked folders are not followed; name the folder itself too\n"
    )


def test_a_folder_that_cannot_be_read_is_an_error() -> None:
    """pytest's own folders belong to root alone."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)
        (folder / "a.png").write_bytes(b"")
        (folder / "closed").mkdir(mode=0)
        with as_nobody():
            for search in (lambda: find_items([temporary]), lambda: list_inbox(temporary)):
                with pytest.raises(PermissionError) as refused:
                    search()
                assert refused.value.filename == str(folder / "closed")


@pytest.mark.parametrize("member", ["../out.png", "/etc/x.png", "a/../../b.png"])
def test_archives_that_lead_outside_are_refused(member: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(member, b"")
    with pytest.raises(InputError, match="leads outside the archive"):
        find_items([str(tmp_path / "bad.zip")])


def test_a_missing_or_empty_input_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such file or folder"):
        find_items([str(tmp_path / "nowhere")])
    with pytest.raises(InputError, match=r"INPUT is an empty word; \. is the current folder"):
        find_items([""])
    with pytest.raises(InputError, match=r"no image found"):
        find_items([str(tmp_path)])
    with pytest.raises(InputError, match=r"no image found"):
        find_items([str(tmp_path / "*.png")])


def test_a_file_larger_than_any_x_ray_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    os.truncate(tmp_path / "a.png", 65 << 20)
    (item,) = find_items([str(tmp_path)])
    with pytest.raises(InputError, match="more than the limit"):
        item.read()


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    return s3.make_bucket()


def test_a_prefix_on_s3_is_searched_like_a_folder(folder: Path, bucket: str, s3: S3Server) -> None:
    s3.files().put(f"{folder}/", f"{bucket}/some/x rays/", recursive=True)
    here, there = (find_items([where]) for where in (str(folder), f"s3://{bucket}/some/x rays"))
    assert [item.name for item in there] == [item.name for item in here]
    assert [item.read() for item in there] == [item.read() for item in here]
    assert there[-1].source == f"s3://{bucket}/some/x rays/b.png"
    (single,) = find_items([f"s3://{bucket}/some/x rays/a/scan.dcm"])
    assert (single.name, single.read()) == ("scan", b"a/scan.dcm")


def test_faults_of_s3_are_one_line(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=rf"^s3://{bucket}/none: there are no objects below this prefix$"):
        find_items([f"s3://{bucket}/none"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(InputError, match="the credentials are wrong"):
        find_items([f"s3://{bucket}/none"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("tasks.sources.transfer.TRIES", 2)
    with pytest.raises(InputError, match=rf"^s3://{bucket}/none: .*127.0.0.1:9"):
        find_items([f"s3://{bucket}/none"])
