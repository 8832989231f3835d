"""Transfers by `tasks.sources.transfer` and `web`, against a server that fails."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.download import download
from tasks.settings.changes import parse_assignment, with_changes
from tasks.settings.layout import Layout
from tasks.sources.look import look
from tasks.sources.open import open_source
from tasks.sources.transfer import Transfer, UnavailableError, retrying
from tasks.support.cli import TEMPORARY, InputError
from tests.fileserver import FileServer, file_server
from tests.helpers import ROOT, zipped
from tests.own import TABLE, write_table

FIRST = "Infection Segmentation Data/Infection Segmentation Data/Train/COVID-19/images/covid_1.png"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as server:
        yield server


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.sources.transfer.PIECE", 4096)
    monkeypatch.setattr("tasks.sources.transfer.FIRST_WAIT", 0.001)


@pytest.fixture
def archive(kaggle_folder: Path, tmp_path: Path) -> Path:
    return zipped(kaggle_folder, tmp_path / "a.zip")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def downloaded(source: str, base: Path, name: str = "raw", sha256: str | None = None) -> dict[str, bytes]:
    download(open_source(source, base, sha256), base / name, source)
    return contents(base / name)


def staged(base: Path) -> list[Path]:
    return list((base / ".dvc/tmp/transfers").glob("*"))


def test_http_gives_identical_bytes_and_leaves_no_staged_files(
    server: FileServer, archive: Path, tmp_path: Path
) -> None:
    url = server.put("/a.zip", archive)
    assert downloaded(url, tmp_path) == downloaded(str(archive), tmp_path, "local")
    assert staged(tmp_path) == []
    # Directory and members are separate requests, so little is fetched twice.
    assert server.served < 1.1 * len(archive.read_bytes())


def test_unreliable_server_gives_identical_bytes(server: FileServer, archive: Path, tmp_path: Path) -> None:
    url = server.put("/a.zip", archive)
    server.busy, server.cut = 1 / 3, 1 / 10
    assert downloaded(url, tmp_path) == downloaded(str(archive), tmp_path, "local")


def test_listing_fetches_only_the_directory(server: FileServer, archive: Path, tmp_path: Path) -> None:
    source = open_source(server.put("/a.zip", archive), tmp_path)
    local = open_source(str(archive), tmp_path)
    assert source.stamps(source.names()) == local.stamps(local.names())
    assert server.served < 3 * 4096 < len(archive.read_bytes()) // 2
    assert staged(tmp_path) == []


def test_look_fetches_no_members(server: FileServer, archive: Path, tmp_path: Path) -> None:
    url = server.put("/a.zip", archive)
    downloaded(str(archive), tmp_path)
    news = look(url, tmp_path, tmp_path / "raw")
    assert news == look(str(archive), tmp_path, tmp_path / "raw")
    assert news.text == "unchanged: 27 files"
    assert server.served < 3 * 4096
    before = server.served
    download(open_source(url, tmp_path), tmp_path / "again", url, previous=tmp_path / "raw")
    assert server.served < before + 3 * 4096
    assert staged(tmp_path) == []


def test_images_of_ones_own_and_their_table_are_read_from_the_web(server: FileServer, tmp_path: Path) -> None:
    archive = zipped(write_table(tmp_path / "own"), tmp_path / "own.zip", prefix="own/")
    url, layout = server.put("/own.zip", archive), Layout.model_validate(TABLE)
    whole = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert look(url, tmp_path, None, layout) == look(str(archive), tmp_path, None, layout)
    assert staged(tmp_path) == []
    for name, source in (("web", url), ("local", str(archive))):
        opened = open_source(source, tmp_path, whole, own_layout=True)
        download(opened, tmp_path / name, "here", layout=layout)
    assert contents(tmp_path / "web") == contents(tmp_path / "local")
    assert staged(tmp_path) == []


def test_only_changed_members_of_a_zip_are_fetched(
    server: FileServer, kaggle_folder: Path, archive: Path, tmp_path: Path
) -> None:
    url = server.put("/a.zip", archive)
    downloaded(url, tmp_path, "earlier")
    (kaggle_folder / FIRST).write_bytes(random.Random(0).randbytes(1000))
    changed = zipped(kaggle_folder, tmp_path / "b.zip")
    server.put("/a.zip", changed)
    server.served = 0
    download(open_source(url, tmp_path), tmp_path / "raw", url, previous=tmp_path / "earlier")
    assert server.served < 5 * 4096 < len(changed.read_bytes()) // 2
    assert contents(tmp_path / "raw") == downloaded(str(changed), tmp_path, "local")


@pytest.mark.parametrize("validators", [True, False])
def test_server_without_ranges_sends_the_whole_file(
    server: FileServer, archive: Path, tmp_path: Path, validators: bool
) -> None:
    server.ranges, server.validators = False, validators
    server.cut = 0.5
    url = server.put("/a.zip", archive)
    assert downloaded(url, tmp_path) == downloaded(str(archive), tmp_path, "local")
    assert staged(tmp_path) == []


def test_unavailable_server_is_a_temporary_error(server: FileServer, archive: Path, tmp_path: Path) -> None:
    url = server.put("/a.zip", archive)
    server.busy = 1
    with pytest.raises(UnavailableError, match=r"/a\.zip: the server answered 503 Service Unavailable$"):
        open_source(url, tmp_path)
    assert server.requests == 8


def test_pieces_fetched_before_an_error_are_kept(
    server: FileServer, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server.put("/a.zip", archive)
    source = open_source(url, tmp_path)
    server.cut = 0.9
    with pytest.raises(UnavailableError, match="the connection broke"):
        download(source, tmp_path / "raw", url)
    assert not (tmp_path / "raw").exists()
    assert len(staged(tmp_path)) == 1
    server.cut = 0
    assert downloaded(url, tmp_path) == downloaded(str(archive), tmp_path, "local")
    assert f"{url}: resuming, " in capsys.readouterr().out
    assert staged(tmp_path) == []


def test_file_that_changes_during_the_download_is_an_error(
    server: FileServer, archive: Path, tmp_path: Path
) -> None:
    url = server.put("/a.zip", archive)
    source = open_source(url, tmp_path)
    server.files["/a.zip"] = server.files["/a.zip"][::-1]
    with pytest.raises(InputError, match=r"a\.zip: the file changed during the download; start again$"):
        download(source, tmp_path / "raw", url)
    assert not (tmp_path / "raw").exists()


def test_another_version_starts_over(server: FileServer, archive: Path, tmp_path: Path) -> None:
    url = server.put("/a.zip", archive)
    source = open_source(url, tmp_path)
    server.cut = 0.9
    with pytest.raises(UnavailableError):
        download(source, tmp_path / "raw", url)
    (before,) = staged(tmp_path)
    del source
    server.cut = 0
    other = zipped(archive.parent / "archive", tmp_path / "b.zip", "covidqu/")
    server.put("/a.zip", other)
    assert downloaded(url, tmp_path) == downloaded(str(other), tmp_path, "local")
    assert not before.exists()


def test_requested_waiting_time_is_honoured() -> None:
    asked: list[float] = []

    def work() -> str:
        asked.append(time.monotonic())
        if len(asked) == 1:
            raise UnavailableError("not yet", after=0.2)
        return "done"

    assert retrying(work) == "done"
    assert asked[1] - asked[0] >= 0.2


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (403, "the server refuses access: 403 Forbidden; if it needs a user name and password, .*netrc"),
        (404, "no such file: the server answered 404 Not Found"),
    ],
)
def test_refusal_does_not_reveal_the_signature(
    server: FileServer, archive: Path, tmp_path: Path, status: int, said: str
) -> None:
    url = server.put("/a.zip", archive)
    server.refusals["/a.zip"] = (status, {})
    with pytest.raises(InputError, match=rf"^{url}\?\.\.\.: {said}") as caught:
        open_source(f"{url}?signature=secret", tmp_path)
    assert "secret" not in str(caught.value)


def test_unreachable_server_error_does_not_reveal_the_signature(tmp_path: Path) -> None:
    with file_server() as server:
        url = f"{server.url}/a.zip"
    with pytest.raises(UnavailableError, match=r"a\.zip\?\.\.\.: Connection refused$"):
        open_source(f"{url}?signature=secret", tmp_path)


@pytest.mark.parametrize("target", ["http://example.org/a.zip", "ftp://example.org/a.zip", "file:///a.zip"])
def test_redirect_to_plain_http_is_an_error(server: FileServer, tmp_path: Path, target: str) -> None:
    server.redirects["/a.zip"] = target
    with pytest.raises(InputError, match="HTTP is not secure; use https://"):
        open_source(f"{server.url}/a.zip", tmp_path)


def test_redirect_is_followed(server: FileServer, archive: Path, tmp_path: Path) -> None:
    server.put("/b.zip", archive)
    server.redirects["/a.zip"] = "/b.zip?signature=secret"
    url = f"{server.url}/a.zip"
    assert downloaded(url, tmp_path) == downloaded(str(archive), tmp_path, "local")


def test_plain_http_to_another_machine_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"http://example\.org/a\.zip: .*; use https://$"):
        open_source("http://example.org/a.zip", tmp_path)


def test_sha256_is_checked_before_anything_is_read(server: FileServer, archive: Path, tmp_path: Path) -> None:
    url, found = server.put("/a.zip", archive), hashlib.sha256(archive.read_bytes()).hexdigest()
    for source in (url, str(archive)):
        with pytest.raises(InputError, match=rf"found {found}, pinned {64 * '0'}; .*data\.sha256={found}$"):
            downloaded(source, tmp_path, sha256=64 * "0")
        assert not (tmp_path / "raw").exists()
    server.served = 0
    assert downloaded(url, tmp_path, sha256=found) == downloaded(str(archive), tmp_path, "local", found)
    assert server.served < 3 * 4096, "the download is kept until it is accepted"
    assert staged(tmp_path) == []


def test_damaged_zip_is_deleted(server: FileServer, archive: Path, tmp_path: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.zip: member 'Infection.*png' cannot be read"):
        downloaded(server.put("/a.zip", archive), tmp_path)
    assert staged(tmp_path) == []


def test_concurrent_downloads_do_not_interfere(
    server: FileServer, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server.put("/a.zip", archive)
    server.delay = 0.02
    results: dict[str, dict[str, bytes]] = {}

    def work(name: str) -> None:
        results[name] = downloaded(url, tmp_path, name)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results["one"] == results["two"] == downloaded(str(archive), tmp_path, "local")
    assert "waiting for another process that is fetching it" in capsys.readouterr().out
    assert staged(tmp_path) == []


def test_damaged_staged_piece_is_fetched_again(tmp_path: Path) -> None:
    fetched: list[int] = []

    def fetch(index: int) -> Iterator[bytes]:
        fetched.append(index)
        yield 10 * bytes([index])

    def transfer() -> Transfer:
        return Transfer("here", [10, 10, 10], fetch, tmp_path / "a-b")

    first = transfer()
    first.bring([0, 1, 2])
    first.close()
    (tmp_path / "a-b/content").write_bytes(10 * b"\0" + b"rot" + 7 * b"\1" + 10 * b"\2")
    with (tmp_path / "a-b/journal").open("a") as journal:
        journal.write("2 20")  # the last line is truncated
    second = transfer()
    second.bring([0, 1, 2])
    assert sorted(fetched) == [0, 1, 1, 2]
    assert second.read(8, 14) == 2 * b"\0" + 10 * b"\1" + 2 * b"\2"
    second.discard()
    assert not (tmp_path / "a-b").exists()


def test_killed_download_is_resumed(server: FileServer, archive: Path, tmp_path: Path) -> None:
    """Killed at three random times, in a separate process."""
    url = server.put("/a.zip", archive)
    server.delay = 0.03
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    text = with_changes(text, {"test": parse_assignment(f"data.source={url}")})
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    small = "import tasks.sources.transfer as t; t.PIECE = 1024; import tasks.download as d; d.main()"
    command = [sys.executable, "-c", small, "params.yaml", "raw"]

    def start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})

    chance, size = random.Random(7), len(archive.read_bytes())
    for goal in sorted(chance.uniform(0.1, 0.8) for _ in range(3)):
        process = start()
        while server.served < goal * size and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL
        assert not (tmp_path / "raw").exists()
        assert len(staged(tmp_path)) <= 1
    assert start().wait(timeout=60) == 0
    # Each run resumed: only the directory and unfinished pieces were fetched more than once.
    assert server.served < 2 * size
    assert contents(tmp_path / "raw") == downloaded(str(archive), tmp_path, "local")
    assert staged(tmp_path) == []


def test_command_exits_with_the_status_of_a_temporary_error(tmp_path: Path) -> None:
    with file_server() as server:
        url = f"{server.url}/a.zip?signature=secret"
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    text = with_changes(text, {"test": parse_assignment(f"data.source={url}")})
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    quick = (
        "import tasks.sources.transfer; tasks.sources.transfer.FIRST_WAIT = 0; "
        "from tasks import download; from tasks.support import cli; cli.stage_main(download.main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", quick, "params.yaml", "raw"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == TEMPORARY
    assert done.stderr == f"error: {url.partition('?')[0]}?...: Connection refused\n"
