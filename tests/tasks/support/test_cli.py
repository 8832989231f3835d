import errno
from pathlib import Path

import pytest

from tasks.support.cli import TEMPORARY, InputError, stage_main, user_path, without_secrets


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("alpha: 2 is invalid"), 1, "error: alpha: 2 is invalid"),
        (OSError(errno.ENOSPC, "No space left on device", "out"), 1, "error: out: No space left on device"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset"), TEMPORARY, "error: Connection reset"),
        (TimeoutError("timed out"), TEMPORARY, "error: timed out"),
        (OSError(errno.ESTALE, "Stale file handle", "x.zip"), TEMPORARY, "error: x.zip: Stale file handle"),
    ],
)
def test_error_is_one_line_and_its_status_tells_whether_to_retry(
    error: Exception, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        stage_main(main)
    told = ended.value.code if isinstance(ended.value.code, str) else capsys.readouterr().err.strip()
    assert told == line
    assert (1 if isinstance(ended.value.code, str) else ended.value.code) == status


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("https://user:password@host:80/a.zip?signature=x#y", "https://host:80/a.zip?..."),
        ("a=s3://k:s@b/x, c=https://d/e?f", "a=s3://b/x, c=https://d/e?..."),
        ("kaggle://owner/name/versions/7", "kaggle://owner/name/versions/7"),
        ("phantom://9?size=64", "phantom://9?size=64"),
        ("data/a@b?c.zip", "data/a@b?c.zip"),
    ],
)
def test_secrets_are_removed_from_urls(source: str, said: str) -> None:
    assert without_secrets(source) == said


def test_a_file_may_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the files that Word makes do. No user is called $scan.png."""
    monkeypatch.setenv("HOME", "/home/me")
    assert user_path("~/x") == Path("/home/me/x")
    assert user_path("~$scan.png") == Path("~$scan.png")
    assert user_path("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
