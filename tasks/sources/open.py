"""Opens the source of the dataset that `data.source` names.

To add a kind of source, write a class like `tasks.sources.folder.FolderSource` and add a case to
`open_source`. `tasks.sources.transfer` fetches remote files.
"""

from pathlib import Path

from tasks.sources.archives import RemoteZip, ZipSource
from tasks.sources.folder import FolderSource
from tasks.sources.kaggle import open_kaggle
from tasks.sources.phantom import PhantomSource
from tasks.sources.source import Source
from tasks.sources.web import WebFile, refuse_unsafe
from tasks.support.cli import InputError, user_path, without_secrets

HOW_TO_GET_IT = (
    "put Kaggle's COVID-QU-Ex (kaggle.com/datasets/anasmohammedtahir/covidqu) there as a zip or a folder, "
    "or set data.source in params.yaml to its location, or to phantom:// for synthetic images"
)
HOW_TO_NAME_IT = "set {section}.source in params.yaml to the location of its images"
KINDS = "expected a path, kaggle://, s3://, https:// or phantom://"


def open_source(
    source: str,
    relative_to: Path,
    sha256: str | None = None,
    own_layout: bool = False,
    section: str = "data",
) -> Source:
    """Open the source that `data.source` names.

    Args:
        source: a path or URL.
        relative_to: the folder to which a relative path refers; remote files are staged in its `.dvc/tmp`.
        sha256: digest of a whole zip, checked before any of its files is read.
        own_layout: whether `data.layout` describes the files, which may then be anywhere in a folder.
        section: the section of params.yaml that names the source.

    Raises:
        InputError: the source does not exist, or is neither a folder nor a complete and safe zip.
        UnavailableError: a remote source cannot be reached.
    """
    scheme, separator, rest = source.partition("://")
    if not separator:
        return _open_path(source, relative_to / user_path(source), sha256, own_layout, section)
    where = without_secrets(source)
    match scheme:
        case "phantom":
            try:
                return PhantomSource(source)
            except ValueError as error:
                raise InputError(f"{section}.source: {error}") from None
        case "http" | "https":
            refuse_unsafe(source)
            return RemoteZip(WebFile(lambda: source, where), source, relative_to, sha256)
        case "kaggle":
            return RemoteZip(open_kaggle(source), source, relative_to, sha256)
        case "s3" if rest.strip("/"):
            return _open_bucket(source, relative_to, sha256, section)
    raise InputError(f"{section}.source: {where}: unknown kind of source; {KINDS}")


def _open_path(source: str, path: Path, sha256: str | None, own_layout: bool, section: str) -> Source:
    if path.is_dir():
        _refuse_pin(source, sha256, section)
        return FolderSource(path, lambda _: True) if own_layout else FolderSource(path)
    if path.is_file():
        return ZipSource(path, sha256=sha256)
    remedy = HOW_TO_GET_IT if section == "data" else HOW_TO_NAME_IT.format(section=section)
    raise InputError(f"{section}.source: {source}: does not exist; {remedy}")


def _open_bucket(source: str, base: Path, sha256: str | None, section: str) -> Source:
    # Its dependencies take a second to import, and most runs do not need them.
    from tasks.sources.bucket import BucketFile, BucketFolder

    if source.endswith(".zip"):
        return RemoteZip(BucketFile(source), source, base, sha256)
    _refuse_pin(source, sha256, section)
    return BucketFolder(source, base)


def _refuse_pin(source: str, sha256: str | None, section: str) -> None:
    if sha256:
        raise InputError(
            f"{section}.source: {source}: {section}.sha256 pins a zip, but this is a folder; "
            f"run cxr params --set {section}.sha256=null, or pin it with {section}.fingerprint"
        )


def section_of(external: str | None) -> str:
    """The section of params.yaml that describes the dataset."""
    return f"external.{external}" if external else "data"


def how_to_accept(found: str, section: str = "data") -> str:
    """The command that pins the files that the source has now."""
    return f"cxr params --set {section}.fingerprint={found}"
