import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.common.files import replacing
from tests.helpers import ROOT


def test_file_is_replaced_atomically(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    for content in ("1", "2"):
        with replacing(path) as beside:
            beside.mkdir()
            (beside / content).write_text(content)
    assert [p.name for p in path.iterdir()] == ["2"]
    assert list(path.parent.iterdir()) == [path]


def test_failure_keeps_only_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(RuntimeError), replacing(path) as beside:
        beside.mkdir()
        raise RuntimeError
    assert [p.name for p in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_os_error_without_a_file_name_gets_one(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full") as error, replacing(tmp_path / "x"):
        raise OSError(28, "full")
    assert error.value.filename == str(tmp_path / "x")


def test_terminated_stage_leaves_no_partial_files(tmp_path: Path) -> None:
    code = (
        "import pathlib, time\n"
        "from tasks.support.cli import stage_main\n"
        "from tasks.common.files import replacing\n"
        "def main():\n"
        "    with replacing(pathlib.Path('out')) as beside:\n"
        "        beside.write_text('half')\n"
        "        print('writing', flush=True)\n"
        "        time.sleep(60)\n"
        "stage_main(main)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        assert list(tmp_path.iterdir())
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 143
    assert list(tmp_path.iterdir()) == []
