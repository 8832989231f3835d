"""Kaggle as a source: kagglehub's own client with a local server."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kagglesdk import kaggle_env

from tasks.download import download
from tasks.sources.open import open_source
from tasks.sources.transfer import UnavailableError
from tasks.support.cli import InputError
from tests.fileserver import FileServer, file_server
from tests.helpers import zipped

SEVEN = "kaggle://owner/data-set/versions/7"


@pytest.fixture
def kaggle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FileServer]:
    # kagglehub has no environment variable for another server.
    for name in [name for name in os.environ if name.startswith("KAGGLE")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("tasks.sources.transfer.FIRST_WAIT", 0.001)
    # The client inspects the source of all its callers, which is slow under pytest.
    monkeypatch.setattr("kagglehub.clients.search_lib_in_call_stack", lambda _: None)
    with file_server() as server:
        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, server.url)
        yield server


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("source", "version"), [(SEVEN, 7), ("kaggle://owner/data-set", 0)])
@pytest.mark.parametrize("account", [True, False])
def test_kaggle_zip_gives_identical_bytes(
    kaggle: FileServer,
    kaggle_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    version: int,
    account: bool,
) -> None:
    if account:
        monkeypatch.setenv("KAGGLE_USERNAME", "somebody")
        monkeypatch.setenv("KAGGLE_KEY", "secret")
    archive = zipped(kaggle_folder, tmp_path / "a.zip")
    kaggle.put("/signed", archive)
    kaggle.redirects[f"/owner/data-set/{version}"] = f"{kaggle.url}/signed?signature=secret"
    download(open_source(source, tmp_path), tmp_path / "raw", source)
    download(open_source(str(archive), tmp_path), tmp_path / "local", source)
    assert contents(tmp_path / "raw") == contents(tmp_path / "local")
    assert (kaggle.authorised > 0) == account


def test_expired_signed_url_is_renewed(kaggle: FileServer, kaggle_folder: Path, tmp_path: Path) -> None:
    archive = zipped(kaggle_folder, tmp_path / "a.zip")
    for path in ("/first", "/second"):
        kaggle.put(path, archive)
    kaggle.redirects["/owner/data-set/7"] = f"{kaggle.url}/first"
    source = open_source(SEVEN, tmp_path)
    kaggle.refusals["/first"] = (403, {})
    kaggle.redirects["/owner/data-set/7"] = f"{kaggle.url}/second"
    download(source, tmp_path / "raw", SEVEN)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (
            401,
            r"Kaggle refused access \(401 Unauthorized\); "
            "create a token at kaggle.com/settings and put it",
        ),
        (403, r"Kaggle refused access \(403 Forbidden\); create a token .* set data.source to its path$"),
        (404, r"Kaggle has no such dataset or version, or it is private; create a token"),
    ],
)
def test_refusal_says_what_to_do(kaggle: FileServer, tmp_path: Path, status: int, said: str) -> None:
    kaggle.refusals["/owner/data-set/7"] = (status, {})
    with pytest.raises(InputError, match=f"^{SEVEN}: {said}"):
        open_source(SEVEN, tmp_path)


def test_too_many_requests_are_retried_then_reported(kaggle: FileServer, tmp_path: Path) -> None:
    kaggle.refusals["/owner/data-set/7"] = (429, {})
    with pytest.raises(UnavailableError, match=r"Kaggle is too busy \(429 Too Many Requests\); try later"):
        open_source(SEVEN, tmp_path)


def test_redirect_to_plain_http_is_an_error(kaggle: FileServer, tmp_path: Path) -> None:
    kaggle.files["/a.zip"] = b""
    # Reaches this machine too, but is not a loopback address.
    kaggle.redirects["/owner/data-set/7"] = f"http://0.0.0.0:{kaggle.server_port}/a.zip"
    with pytest.raises(InputError, match="HTTP is not secure; use https://"):
        open_source(SEVEN, tmp_path)


def test_invalid_kaggle_json_is_an_error(
    kaggle: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kaggle.json").write_text("{")
    monkeypatch.setattr("kagglehub.config.DEFAULT_KAGGLE_CREDENTIALS_FOLDER", str(tmp_path))
    with pytest.raises(InputError, match=r"Invalid Kaggle credentials file at .*kaggle\.json"):
        open_source(SEVEN, tmp_path)


def test_failed_connection_is_a_temporary_error(
    kaggle: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with file_server() as gone:
        url = gone.url
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, url)
    with pytest.raises(UnavailableError, match=r"Kaggle cannot be reached: Connection refused$"):
        open_source(SEVEN, tmp_path)


@pytest.mark.parametrize(
    "source", ["kaggle://owner", "kaggle://owner/x/versions/new", "kaggle://o/x/y", "kaggle://o/../x"]
)
def test_malformed_kaggle_url_is_an_error(source: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected kaggle://OWNER/NAME or kaggle://OWNER/NAME/versions/7"):
        open_source(source, tmp_path)
