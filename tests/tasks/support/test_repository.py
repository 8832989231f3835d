"""From where relative paths count, in a repository and in its copies."""

from pathlib import Path

import pytest

from tasks.support.checkpoints import FOLDER_VARIABLE, Checkpoint
from tasks.support.repository import VARIABLE, user_repository


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (VARIABLE, FOLDER_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ["tmp1234", "standalone/tmp1234"])
def test_a_copy_of_dvc_leads_to_the_repository(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / ".dvc" / "tmp" / "exps" / name
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert user_repository() == tmp_path
    assert Checkpoint("any", "key").path == tmp_path / ".dvc" / "tmp" / "checkpoints" / "any-key.pt"
    monkeypatch.setenv(VARIABLE, "/elsewhere")
    assert user_repository() == Path("/elsewhere")


@pytest.mark.parametrize("folder", [".", ".dvc/tmp", "tmp/exps/x"])
def test_any_other_folder_is_the_repository(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / folder)
    assert user_repository().resolve() == Path.cwd()
