"""The raw dataset: a few deterministic zip shards of verbatim files, and a manifest.

    data/raw/manifest.csv           one row per image: id (half/split/class/name), half, split, class, and
                                    the SHA-256 of each of its files, empty where it has none
    data/raw/infection-train.zip    one shard per half and split, members `COVID-19/images/covid_1.png`

Equal images give identical bytes, whatever their source and order. A member's name ends in .png also if the
file has another format: `tasks.common.pictures` reads formats by content.

NumPy, pandas and Pillow are imported where they are used. The schema of params.yaml needs only the names
defined here, and importing the libraries would cost it half a second.
"""

from __future__ import annotations

import errno
import hashlib
import io
import zipfile
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, BinaryIO, Literal, get_args

from tasks.support.cli import InputError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Half = Literal["infection", "lung"]
Split = Literal["Train", "Val", "Test"]
ImageClass = Literal["COVID-19", "Non-COVID", "Normal"]
Kind = Literal["image", "lung", "infection"]
SPLITS: tuple[Split, ...] = get_args(Split)
CLASSES: tuple[ImageClass, ...] = get_args(ImageClass)
#: The classes without infection.
CONTROLS: tuple[ImageClass, ...] = ("Non-COVID", "Normal")
#: Named sets of images over which scores are averaged, with their classes.
IMAGE_SETS: dict[str, tuple[ImageClass, ...]] = {
    "covid": ("COVID-19",),
    "non_covid": ("Non-COVID",),
    "normal": ("Normal",),
    "controls": CONTROLS,
    "all": CLASSES,
}
KIND_FOLDERS: dict[Kind, str] = {"image": "images", "lung": "lung masks", "infection": "infection masks"}
KIND_WORDS: dict[Kind, str] = {"image": "image", "lung": "lung mask", "infection": "infection mask"}
HALF_KINDS: dict[str, tuple[Kind, ...]] = {
    "infection": ("image", "lung", "infection"),
    "lung": ("image", "lung"),
}
HOW_TO_RENEW = "to create it again, run: dvc repro --force download"
MANIFEST = "manifest.csv"
#: How many groups, such as patients, an own layout names; no such file if it names none.
GROUPS = "groups.json"
#: The group of each image as a number, so that no name is stored; likewise only if the layout names groups.
GROUP_OF = "groups.csv"
MANIFEST_COLUMNS = ["id", "half", "split", "class", "image_sha256", "lung_sha256", "infection_sha256"]


def shard_name(half: str, split: str) -> str:
    return f"{half}-{split.lower()}.zip"


def member_name(image_class: str, kind: Kind, name: str) -> str:
    return f"{image_class}/{KIND_FOLDERS[kind]}/{name}.png"


def write_member(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Store a member so that the archive's bytes depend only on names and contents."""
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system = 3  # Unix, on every platform
    info.external_attr = 0o644 << 16
    archive.writestr(info, content)


def is_damage(error: Exception) -> bool:
    """Whether zipfile raised this because of what an archive holds, which causes many kinds of errors.

    Errors of a disk or a network are not. EINVAL is: it comes from an offset before the beginning.
    """
    if isinstance(error, OSError):
        return not isinstance(error, ConnectionError) and error.errno in (None, errno.EINVAL)
    return not isinstance(error, InputError | MemoryError)


def read_manifest(file: Path | BinaryIO) -> pd.DataFrame:
    """Read all columns as text, with an empty string where a file is missing."""
    import pandas as pd

    return pd.read_csv(file, dtype=str, keep_default_na=False)


def _checked_manifest(file: Path) -> pd.DataFrame:
    try:
        manifest = read_manifest(file)
        return manifest[MANIFEST_COLUMNS]
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{file}: this file is damaged ({' '.join(str(error).split())}); {HOW_TO_RENEW}"
        ) from None


class RawDataset:
    """Read access to `data/raw`; safe for several threads."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.manifest = _checked_manifest(root / MANIFEST)
        self._shards: dict[str, zipfile.ZipFile] = {}
        self._lock = Lock()
        self._files: dict[Kind, set[str]] = {
            kind: set(self.manifest["id"][self.manifest[f"{kind}_sha256"] != ""]) for kind in KIND_FOLDERS
        }

    def kinds(self, half: str) -> tuple[Kind, ...]:
        """The kinds of files of a half. An infection half in which no image has a lung mask has none."""
        ids = self.manifest["id"][self.manifest["half"] == half]
        has_lungs = not self._files["lung"].isdisjoint(ids)
        return tuple(k for k in HALF_KINDS[half] if k != "lung" or half == "lung" or has_lungs)

    def read_bytes(self, image_id: str, kind: Kind) -> bytes | None:
        """The file of an image or of one of its masks; None if the dataset has no such file.

        Raises:
            InputError: the shard with the file is damaged.
        """
        if image_id not in self._files[kind]:
            return None
        half, split, image_class, name = image_id.split("/")
        shard = shard_name(half, split)
        with self._lock:
            try:
                return self._shard(shard).read(member_name(image_class, kind, name))
            except Exception as error:
                if not is_damage(error):
                    raise
                raise InputError(
                    f"{self._root / shard}: this file is damaged ({error}); {HOW_TO_RENEW}"
                ) from None

    def is_empty_by_class(self, image_id: str, kind: Kind) -> bool:
        """Whether this is the infection mask of a control without such a file. It marks nothing."""
        is_control = image_id.split("/")[2] in CONTROLS
        return kind == "infection" and is_control and image_id not in self._files[kind]

    def read(self, image_id: str, kind: Kind) -> np.ndarray:
        """The pixels as uint8 (H, W); those of a mask that are not 0 are marked.

        Raises:
            InputError: the dataset has no such file, the shard with the file is damaged, or the file cannot
                be used, which `preprocess` has found out before.
        """
        import numpy as np

        from tasks.common.pictures import read_grey, read_mask
        from tasks.common.png import UnreadableError

        if self.is_empty_by_class(image_id, kind):
            return np.zeros_like(self.read(image_id, "image"))
        content = self.read_bytes(image_id, kind)
        if content is None:
            raise InputError(f"{self._root}: {image_id} has no {KIND_FOLDERS[kind]} file")
        try:
            return np.asarray(read_grey(content) if kind == "image" else read_mask(content))
        except UnreadableError as error:
            raise InputError(f"{self._root}: {image_id}: the {KIND_WORDS[kind]} {error}") from None

    def _shard(self, name: str) -> zipfile.ZipFile:
        if name not in self._shards:
            self._shards[name] = zipfile.ZipFile(self._root / name)
        return self._shards[name]


def sha256(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def encode_mask(mask: np.ndarray) -> bytes:
    """Encode a boolean mask (H, W) as a 1-bit PNG."""
    return encode_grey(mask)


def encode_grey(pixels: np.ndarray) -> bytes:
    """Encode a picture (H, W) as a PNG: grey values of type uint8, or a boolean mask."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
