"""S3 as a source, against a real server."""

import hashlib
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tasks.download import download
from tasks.settings.layout import Layout
from tasks.sources.bucket import Bucket
from tasks.sources.layout import LeftOut
from tasks.sources.listing import find_images, fingerprint, list_files
from tasks.sources.look import look
from tasks.sources.open import open_source
from tasks.sources.transfer import UnavailableError
from tasks.support.cli import InputError
from tests.fileserver import serving_requests
from tests.helpers import zipped
from tests.own import TABLE, write_table
from tests.s3 import S3Server

DATA = "Infection Segmentation Data/Infection Segmentation Data"
FIRST = f"{DATA}/Train/COVID-19/images/covid_1.png"


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.sources.transfer.PIECE", 4096)
    monkeypatch.setattr("tasks.sources.transfer.FIRST_WAIT", 0.001)


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A new bucket, with the environment set for it."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return s3.make_bucket()


@pytest.fixture
def folder(bucket: str, s3: S3Server, kaggle_folder: Path) -> str:
    """The nine phantoms below a prefix."""
    s3.files().put(f"{kaggle_folder}/", f"{bucket}/some/covidqu/", recursive=True)
    return f"s3://{bucket}/some/covidqu"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the requested objects."""
    names: list[str] = []
    read = Bucket.read

    def noting(self: Bucket, name: str, etag: str, start: int = 0, size: int | None = None) -> bytes:
        names.append(name)
        return read(self, name, etag, start, size)

    monkeypatch.setattr(Bucket, "read", noting)
    return names


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def downloaded(source: str, base: Path, name: str = "raw", previous: Path | None = None) -> dict[str, bytes]:
    download(open_source(source, base), base / name, source, previous=previous)
    return contents(base / name)


def staged(base: Path) -> list[Path]:
    return list((base / ".dvc/tmp/transfers").glob("*"))


def test_prefix_gives_identical_bytes(folder: str, kaggle_folder: Path, tmp_path: Path) -> None:
    assert downloaded(folder, tmp_path) == downloaded(str(kaggle_folder), tmp_path, "local")
    assert staged(tmp_path) == []


def test_zip_gives_identical_bytes_and_fingerprint(
    bucket: str, s3: S3Server, kaggle_folder: Path, tmp_path: Path
) -> None:
    archive = zipped(kaggle_folder, tmp_path / "a.zip")
    s3.files().put(str(archive), f"{bucket}/a.zip")
    source = f"s3://{bucket}/a.zip"
    assert downloaded(source, tmp_path) == downloaded(str(archive), tmp_path, "local")
    assert staged(tmp_path) == []
    assert look(source, tmp_path, None).fingerprint == look(str(archive), tmp_path, None).fingerprint
    whole = hashlib.sha256(archive.read_bytes()).hexdigest()
    download(open_source(source, tmp_path, whole), tmp_path / "checked", source)
    assert contents(tmp_path / "checked") == contents(tmp_path / "local")


def test_images_of_ones_own_and_their_table_are_read_from_a_prefix(
    bucket: str, s3: S3Server, tmp_path: Path
) -> None:
    own, layout = write_table(tmp_path / "own"), Layout.model_validate(TABLE)
    s3.files().put(f"{own}/", f"{bucket}/own/", recursive=True)
    source = f"s3://{bucket}/own"
    assert look(source, tmp_path, None, layout).counts == look(str(own), tmp_path, None, layout).counts
    for name, each in (("s3", source), ("local", str(own))):
        download(open_source(each, tmp_path, own_layout=True), tmp_path / name, "here", layout=layout)
    assert contents(tmp_path / "s3") == contents(tmp_path / "local")
    assert look(source, tmp_path, tmp_path / "s3", layout).text == "unchanged: 60 files"


def test_only_changed_objects_are_fetched(
    folder: str, s3: S3Server, kaggle_folder: Path, tmp_path: Path, fetched: list[str]
) -> None:
    # The earlier dataset may come from another source.
    downloaded(str(kaggle_folder), tmp_path, "earlier")
    news = look(folder, tmp_path, tmp_path / "earlier")
    assert (news.text, fetched) == ("unchanged: 27 files", [])
    (kaggle_folder / FIRST).write_bytes(b"another image")
    s3.files().put(str(kaggle_folder / FIRST), f"{folder.removeprefix('s3://')}/{FIRST}")
    s3.files().rm(f"{folder.removeprefix('s3://')}/{DATA}/Val/Normal/lung masks/Normal (2).png")
    (kaggle_folder / DATA / "Val/Normal/lung masks/Normal (2).png").unlink()
    changed = look(folder, tmp_path, tmp_path / "earlier")
    assert changed.text == "0 new, 1 changed and 1 removed of 26 files"
    assert changed.fingerprint != news.fingerprint
    raw = downloaded(folder, tmp_path, previous=tmp_path / "earlier")
    assert raw == downloaded(str(kaggle_folder), tmp_path, "local")
    assert [Path(name).name for name in fetched] == ["covid_1.png"]


def test_etag_that_is_not_an_md5_counts_as_changed(
    bucket: str, s3: S3Server, kaggle_folder: Path, tmp_path: Path, fetched: list[str]
) -> None:
    files = s3.files()
    for path in kaggle_folder.rglob("*.png"):
        name = path.relative_to(kaggle_folder).as_posix()
        if path.name == "covid_1.png" and path.parent.name == "images":
            key = f"x/{name}"
            upload = files.call_s3("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"]
            part = files.call_s3(
                "upload_part", Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=path.read_bytes()
            )
            parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
            files.call_s3(
                "complete_multipart_upload", Bucket=bucket, Key=key, UploadId=upload, MultipartUpload=parts
            )
        else:
            files.pipe_file(f"{bucket}/x/{name}", path.read_bytes())
    expected = downloaded(str(kaggle_folder), tmp_path, "earlier")
    assert downloaded(f"s3://{bucket}/x", tmp_path, previous=tmp_path / "earlier") == expected
    assert [Path(name).name for name in fetched] == ["covid_1.png"]


def test_object_that_changes_during_the_download_is_an_error(
    folder: str, s3: S3Server, tmp_path: Path
) -> None:
    source = open_source(folder, tmp_path)
    s3.files().pipe_file(f"{folder.removeprefix('s3://')}/{FIRST}", b"another image")
    with pytest.raises(InputError, match=r"^s3://.*: a file changed during the download; start again$"):
        download(source, tmp_path / "raw", folder)
    assert not (tmp_path / "raw").exists()


def test_matching_fingerprint_is_accepted(folder: str, tmp_path: Path) -> None:
    source = open_source(folder, tmp_path)
    listing = list_files(source, find_images(source, folder))
    assert listing
    download(source, tmp_path / "raw", folder, pinned=fingerprint(listing))


def test_interrupted_download_is_resumed(
    folder: str, kaggle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetched: list[str]
) -> None:
    read, left = Bucket.read, iter(range(10))

    def breaking(self: Bucket, name: str, etag: str, start: int = 0, size: int | None = None) -> bytes:
        if next(left, None) is None:
            raise UnavailableError("broken")
        return read(self, name, etag, start, size)

    with monkeypatch.context() as context:
        context.setattr(Bucket, "read", breaking)
        with pytest.raises(UnavailableError, match="broken"):
            downloaded(folder, tmp_path)
    fetched.clear()
    assert downloaded(folder, tmp_path) == downloaded(str(kaggle_folder), tmp_path, "local")
    assert len(fetched) == 17


def test_errors_are_one_line(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def said(source: str) -> str:
        with pytest.raises(InputError) as caught:
            open_source(source, tmp_path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    gone = "s3://no-such-bucket-anywhere/x"
    assert said(gone) == f"{gone}: no such bucket; check AWS_ENDPOINT_URL"
    assert said(f"s3://{bucket}/nothing") == f"s3://{bucket}/nothing: there are no objects below this prefix"
    assert said(f"s3://{bucket}/a.zip") == f"s3://{bucket}/a.zip: no such object"
    assert "unknown kind of source" in said("s3://")
    with pytest.raises(InputError, match=r"data\.sha256 pins a zip, but this is a folder"):
        open_source(f"s3://{bucket}/x", tmp_path, 64 * "0")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert "the credentials are wrong (SignatureDoesNotMatch); set AWS_ACCESS_KEY_ID" in said(
        f"s3://{bucket}/x"
    )
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    assert "the credentials are wrong (InvalidAccessKeyId)" in said(f"s3://{bucket}/x")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no anonymous access (AccessDenied); set AWS_ACCESS_KEY_ID" in said(f"s3://{bucket}/x")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "The config profile (nobody) could not be found" in said(f"s3://{bucket}/x")


class Archive(BaseHTTPRequestHandler):
    """An S3 server whose only object is archived: it has a size, but cannot be read."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.send_header("ETag", '"0123456789abcdef0123456789abcdef"')
        self.end_headers()

    def do_GET(self) -> None:
        answer = b"<Error><Code>InvalidObjectState</Code><Message>Archived</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


def test_archived_object_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_requests(ThreadingHTTPServer(("127.0.0.1", 0), Archive)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        with pytest.raises(InputError) as refused:
            open_source("s3://bucket/a.zip", tmp_path)
    assert str(refused.value) == (
        "s3://bucket/a.zip: an object is archived, so it cannot be read; restore it first"
    )


def test_public_bucket_needs_no_credentials(
    folder: str, s3: S3Server, kaggle_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files, name = s3.files(), folder.removeprefix("s3://").partition("/")[0]
    files.call_s3("put_bucket_acl", Bucket=name, ACL="public-read")
    for path in files.find(name):
        files.call_s3("put_object_acl", Bucket=name, Key=path.partition("/")[2], ACL="public-read")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert downloaded(folder, tmp_path) == downloaded(str(kaggle_folder), tmp_path, "local")


def test_unreachable_server_is_a_temporary_error(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    for source in ("s3://bucket/x", "s3://bucket/a.zip"):
        with pytest.raises(UnavailableError, match=f"^{source}: Could not connect to the endpoint URL"):
            open_source(source, tmp_path)


def test_what_is_left_out_is_counted_and_named(
    folder: str, bucket: str, s3: S3Server, kaggle_folder: Path, tmp_path: Path
) -> None:
    for name in (f"{FIRST.removesuffix('1.png')}8.jpg", "__MACOSX/a.png", "empty folder/"):
        s3.files().call_s3("put_object", Bucket=bucket, Key=f"some/covidqu/{name}", Body=b"")
    news = look(folder, tmp_path, None)
    assert news.left_out == [
        LeftOut("hidden, or made by a system", 1, 1, "__MACOSX/"),
        LeftOut("not named .png", 1, 0, f"{DATA}/Train/COVID-19/images/covid_8.jpg"),
    ]
    assert downloaded(folder, tmp_path) == downloaded(str(kaggle_folder), tmp_path, "local")
