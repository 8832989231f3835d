"""Where the dataset comes from, as `data.source` says.

A new kind of source is one more class, as in `tasks.sources.archives`, and one more line in `open_source`.
What is far away is brought by `tasks.sources.transfer`.
"""

from pathlib import Path

from tasks.sources.archives import FarZip, FolderSource, ZipSource
from tasks.sources.kaggle import open_kaggle
from tasks.sources.phantom import PhantomSource
from tasks.sources.source import Source
from tasks.sources.web import WebFile, refuse_unsafe
from tasks.support.cli import InputError, without_secrets

HOW_TO_GET_IT = (
    "put Kaggle's COVID-QU-Ex (kaggle.com/datasets/anasmohammedtahir/covidqu) there as a zip or a folder, "
    "or set data.source in params.yaml to where it is, or to phantom:// for synthetic images"
)
KINDS = "a path, kaggle://, s3://, https:// or phantom:// would do"


def open_source(source: str, relative_to: Path, sha256: str | None = None) -> Source:
    """The source that `data.source` names; a relative path counts from `relative_to`.

    Args:
        source: a path or URL.
        relative_to: also holds, below `.dvc/tmp`, what comes from afar until it is put to use.
        sha256: of a zip as a whole; it is checked before a file of it is read.

    Raises:
        InputError: there is nothing there, or it is neither a folder nor a whole and harmless zip.
        UnavailableError: it is far away and can't be reached.
    """
    scheme, far, rest = source.partition("://")
    if not far:
        return _open_path(source, relative_to / Path(source).expanduser(), sha256)
    where = without_secrets(source)
    match scheme:
        case "phantom":
            try:
                return PhantomSource(source)
            except ValueError as error:
                raise InputError(f"data.source: {error}") from None
        case "http" | "https":
            refuse_unsafe(source)
            return FarZip(WebFile(lambda: source, where), source, relative_to, sha256)
        case "kaggle":
            return FarZip(open_kaggle(source), source, relative_to, sha256)
        case "s3" if rest.strip("/"):
            return _open_bucket(source, relative_to, sha256)
    raise InputError(f"data.source: {where}: no such kind of source; {KINDS}")


def _open_path(source: str, path: Path, sha256: str | None) -> Source:
    if path.is_dir():
        _refuse_pin(source, sha256)
        return FolderSource(path)
    if path.is_file():
        return ZipSource(path, sha256=sha256)
    raise InputError(f"data.source: {source}: nothing is there; {HOW_TO_GET_IT}")


def _open_bucket(source: str, base: Path, sha256: str | None) -> Source:
    # What it stands on takes a second to import, and few need it.
    from tasks.sources.bucket import BucketFile, BucketFolder

    if source.endswith(".zip"):
        return FarZip(BucketFile(source), source, base, sha256)
    _refuse_pin(source, sha256)
    return BucketFolder(source, base)


def _refuse_pin(source: str, sha256: str | None) -> None:
    if sha256:
        raise InputError(
            f"data.source: {source}: a folder, but data.sha256 pins a zip; "
            "cxr params --set data.sha256=null, or pin it by data.fingerprint"
        )
