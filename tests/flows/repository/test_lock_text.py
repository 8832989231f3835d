"""Entries of dvc.lock, against what DVC itself reads and writes."""

from pathlib import Path

import pytest
from dvc.utils.serialize import load_yaml, modify_yaml

from flows.repository.lock_text import LOCK, read_entry, select_entries, write_entry

TEXT = """\
schema: '2.0'
stages:
  first@a-b_1:
    cmd: cp seed.txt first.txt
    outs:
    - path: first.txt
      md5: d41d8cd98f00b204e9800998ecf8427e
      size: 3
  second:
    cmd: python -m tasks.train artifacts/plans/a.json data/packed/128 artifacts/train/a-seed0
      --dropped artifacts/audit/dropped.csv
  third:
    cmd: |
      echo one

      echo two
"""

#: The same with a comment, and with a part that comes after the stages.
UNUSUAL = TEXT.replace("stages:", "# by hand\nstages:") + "datasets: []\n"

FORMS = pytest.mark.parametrize("text", [TEXT, UNUSUAL], ids=["usual", "unusual"])

NEW = {
    "cmd": "cp a b",
    "deps": [{"path": "a", "md5": "0" * 32, "size": 1}],
    "params": {"p.yaml": {"x": [1, "2"]}},
}


def put(folder: Path, text: str) -> Path:
    path = folder / LOCK
    path.write_text(text, encoding="utf-8")
    return path


@FORMS
def test_an_entry_is_what_dvc_reads(tmp_path: Path, text: str) -> None:
    stages = load_yaml(put(tmp_path, text))["stages"]
    assert list(stages) == ["first@a-b_1", "second", "third"]
    assert {name: read_entry(tmp_path, name) for name in stages} == stages
    assert read_entry(tmp_path, "fourth") == {}
    assert read_entry(tmp_path / "no folder", "first") == {}


@pytest.mark.parametrize("stage", ["first@a-b_1", "third", "new@x"])
def test_an_entry_is_written_as_dvc_writes_it(tmp_path: Path, stage: str) -> None:
    path = put(tmp_path, TEXT)
    with modify_yaml(path):
        pass
    as_dvc_writes = path.read_text(encoding="utf-8")
    with modify_yaml(path) as lock:
        lock["stages"][stage] = NEW
    wanted = path.read_text(encoding="utf-8")
    put(tmp_path, as_dvc_writes)
    write_entry(tmp_path, stage, NEW)
    assert path.read_text(encoding="utf-8") == wanted


@FORMS
def test_writing_one_entry_leaves_the_others(tmp_path: Path, text: str) -> None:
    before = load_yaml(put(tmp_path, text))
    write_entry(tmp_path, "second", NEW)
    after = load_yaml(tmp_path / LOCK)
    assert after == before | {"stages": before["stages"] | {"second": NEW}}
    assert list(tmp_path.iterdir()) == [tmp_path / LOCK]


def test_the_first_entry_makes_the_file(tmp_path: Path) -> None:
    write_entry(tmp_path, "new", NEW)
    assert load_yaml(tmp_path / LOCK) == {"schema": "2.0", "stages": {"new": NEW}}


@FORMS
def test_entries_are_selected_and_sorted(tmp_path: Path, text: str) -> None:
    path = put(tmp_path, text)
    before = load_yaml(path)["stages"]
    select_entries(tmp_path, ["third", "unknown", "first@a-b_1"])
    after = load_yaml(path)["stages"]
    assert list(after) == ["third", "first@a-b_1"]
    assert after == {name: before[name] for name in after}


def test_a_file_without_entries_is_removed(tmp_path: Path) -> None:
    put(tmp_path, TEXT)
    select_entries(tmp_path, ["unknown"])
    assert not (tmp_path / LOCK).exists()
    select_entries(tmp_path, ["unknown"])
