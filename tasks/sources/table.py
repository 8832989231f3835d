"""The table of a dataset of one's own: what it says of each image, by the image's name."""

import csv
import io
import unicodedata
from pathlib import PurePosixPath
from typing import NamedTuple

from tasks.settings.layout import Table
from tasks.support.cli import InputError

#: What can separate the columns: the one that is most frequent in the header.
SEPARATORS = ",;\t"
#: Endings that the table may add to the name of an image.
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

FIELDS = ("split", "class", "group")


class Row(NamedTuple):
    line: int
    values: dict[str, str]
    """Split, class and group, as far as the table has them."""


def read_table(content: bytes, table: Table, where: str) -> dict[str, Row]:
    """The rows of the table by the names of their images, without folder and ending.

    Raises:
        InputError: the table is not CSV in UTF-8, lacks a column or a value, or contradicts itself.
    """
    place = f"{where}: {table.file}"
    columns = {field: column for field in FIELDS if (column := table.column(field))}
    reader = _reader(content, place)
    for column in (table.name, *columns.values()):
        if column not in (reader.fieldnames or ()):
            there = ", ".join(reader.fieldnames or ())
            raise InputError(f"{place}: there is no column {column!r}; the columns are {there}")
    rows: dict[str, Row] = {}
    try:
        for found in reader:
            name = image_name((found[table.name] or "").strip())
            values = {field: (found[column] or "").strip() for field, column in columns.items()}
            if not name:
                raise InputError(f"{place}: line {reader.line_num}: the column {table.name} is empty")
            earlier = rows.setdefault(name, Row(reader.line_num, values))
            if earlier.values != values:
                raise InputError(
                    f"{place}: lines {earlier.line} and {reader.line_num} are about the same image, "
                    f"{name!r}, and differ"
                )
    except csv.Error as error:
        raise InputError(f"{place}: after line {reader.line_num}: not valid CSV: {error}") from None
    return rows


def composed(name: str) -> str:
    """A name in the form in which equal names are equal: macOS writes ü as two characters, others as one."""
    return unicodedata.normalize("NFC", name)


def image_name(value: str) -> str:
    """The name of an image as the table has it, without folders and without the ending of a picture."""
    name = composed(PurePosixPath(value.replace("\\", "/")).name)
    ending = next((ending for ending in ENDINGS if name.lower().endswith(ending)), "")
    return name.removesuffix(name[len(name) - len(ending) :]) if ending else name


def _reader(content: bytes, place: str) -> "csv.DictReader[str]":
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    header = text.partition("\n")[0]
    separator = max(SEPARATORS, key=header.count)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        found = list(reader.fieldnames or ())
    except csv.Error as error:
        raise InputError(f"{place}: not valid CSV: {error}") from None
    if repeated := next((name for name in found if found.count(name) > 1), None):
        raise InputError(f"{place}: there are two columns {repeated!r}")
    return reader
