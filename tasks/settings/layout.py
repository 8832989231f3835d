"""The section `data.layout`: how the files of a dataset of one's own are named, split and classified."""

import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, model_validator

from tasks.common.raw import CLASSES, Half, ImageClass, Kind, Split
from tasks.settings.section import Section

#: What a placeholder in a pattern can stand for.
PLACEHOLDERS = ("name", "split", "class", "group")

_PARTS = re.compile(r"\{([^{}]*)\}|[{}]")


def placeholders(pattern: str) -> tuple[str, ...]:
    """The placeholders of a valid pattern, each once."""
    return tuple(dict.fromkeys(match[1] for match in _PARTS.finditer(pattern)))


def _pattern(pattern: str) -> str:
    for match in _PARTS.finditer(pattern):
        if match[1] not in PLACEHOLDERS:
            valid = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            raise ValueError(f"{pattern!r}: {match[0]!r} is not one of the placeholders {valid}")
    if "name" not in placeholders(pattern):
        raise ValueError(
            f"{pattern!r}: the placeholder {{name}} is missing, such as in 'images/{{name}}.png'"
        )
    if "\\" in pattern or not all(part not in ("", ".", "..") for part in pattern.split("/")):
        raise ValueError(
            f"{pattern!r}: expected a path relative to the source, with / and without the folders . and .."
        )
    return pattern


def _with_text_keys(value: Any) -> Any:
    """YAML reads a class that is called 0 or 1 as a number."""
    if isinstance(value, dict):
        return {str(key) if type(key) is int else key: entry for key, entry in value.items()}
    return value


def _without_repeats(words: dict[str, Any]) -> dict[str, Any]:
    folded = [word.casefold() for word in words]
    if len(set(folded)) < len(folded):
        raise ValueError("two of these words differ only in capital letters, which count as equal")
    return words


Pattern = Annotated[str, AfterValidator(_pattern)]


def _classes(value: Any) -> Any:
    """One class for all images, or a class for each word; None where the words are those of the classes."""
    words = value.values() if isinstance(value, dict) else [value]
    if value is None or value == {} or not all(word in CLASSES for word in words):
        valid = f"one of {', '.join(CLASSES)}, or a mapping of your words to these"
        raise ValueError(f"{value!r} is invalid: expected {valid}")
    return _without_repeats(_with_text_keys(value)) if isinstance(value, dict) else value


Classes = ImageClass | dict[str, ImageClass]
SplitNames = Annotated[dict[str, Split], BeforeValidator(_with_text_keys), AfterValidator(_without_repeats)]
Column = Annotated[str, Field(min_length=1)]


class Table(Section):
    """A CSV file in the source, with a row for each image."""

    file: Annotated[str, Field(min_length=1)]
    name: Column
    split: Column | None = None
    image_class: Column | None = Field(default=None, alias="class")
    group: Column | None = None

    def column(self, field: str) -> str | None:
        """The column that holds what this placeholder stands for."""
        found: str | None = self.image_class if field == "class" else getattr(self, field)
        return found


class Splits(Section):
    """Which images are Train, Val and Test: by their names, by drawing lots, or both."""

    names: SplitNames = Field(default_factory=dict)
    seed: Annotated[int, Field(ge=0)] = 0
    val: Annotated[float, Field(ge=0, lt=1)] = 0.0
    test: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _leaves_images_to_train(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(
                f"val and test are {self.val + self.test:g} together, which leaves nothing to Train"
            )
        return self

    @property
    def drawn(self) -> tuple[Split, ...]:
        """The splits that are drawn from Train."""
        return tuple(name for name, share in (("Val", self.val), ("Test", self.test)) if share)  # type: ignore[misc]


class Layout(Section):
    """Where the images of a dataset and their masks are, and what is known of each image."""

    images: Pattern
    lung: Pattern | None = None
    infection: Pattern | None = None
    table: Table | None = None
    splits: Splits = Splits()
    classes: Annotated[Classes, PlainValidator(_classes)] | None = None

    @property
    def half(self) -> Half:
        """The half of data/raw to which the images belong."""
        return "infection" if self.infection else "lung"

    @property
    def masks(self) -> dict[Kind, str]:
        """The patterns of the masks."""
        patterns: dict[Kind, str | None] = {"lung": self.lung, "infection": self.infection}
        return {kind: pattern for kind, pattern in patterns.items() if pattern}

    @property
    def image_classes(self) -> tuple[ImageClass, ...]:
        """The classes that images can have."""
        if isinstance(self.classes, str):
            return (self.classes,)
        found = set(self.classes.values()) if self.classes else set(CLASSES)
        return tuple(name for name in CLASSES if name in found)

    def knows(self, field: str) -> bool:
        """Whether the names of the images or the table tell what this placeholder stands for."""
        return field in placeholders(self.images) or bool(self.table and self.table.column(field))

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.masks:
            raise ValueError("lung and infection: a pattern for at least one of the masks is missing")
        for kind, pattern in self.masks.items():
            if unknown := [name for name in placeholders(pattern) if name not in placeholders(self.images)]:
                raise ValueError(f"{kind}: {{{unknown[0]}}} is not in the pattern of images, {self.images!r}")
        patterns = [self.images, *self.masks.values()]
        if len(set(patterns)) < len(patterns):
            raise ValueError("two of the patterns images, lung and infection are equal")
        for field in ("split", "class", "group"):
            if self.table and self.table.column(field) and field in placeholders(self.images):
                raise ValueError(f"table.{field}: images has {{{field}}} already; keep one of them")
        self._require_splits()
        self._require_classes()
        return self

    def _require_splits(self) -> None:
        self._refuse_useless_names()
        if not self.knows("split") and len(self.splits.drawn) < 2:
            raise ValueError(
                "splits: neither a pattern nor the table has a split for each image; draw them, for "
                "example with splits: {seed: 0, val: 0.15, test: 0.2}"
            )

    def _refuse_useless_names(self) -> None:
        if self.splits.names and not self.knows("split"):
            raise ValueError("splits.names: neither a pattern nor the table has a split for each image")

    def _require_classes(self) -> None:
        if not isinstance(self.classes, str) and not self.knows("class"):
            one = "write one of them for all images, for example classes: COVID-19"
            raise ValueError(
                f"classes: neither a pattern nor the table has a class for each image; the classes are "
                f"{', '.join(CLASSES)}; {one}"
            )


class ExternalLayout(Layout):
    """The layout of images on which nothing is trained: all are Test, unless their splits are named."""

    def _require_splits(self) -> None:
        self._refuse_useless_names()
        if self.splits.drawn:
            raise ValueError(
                "splits: nothing is trained on these images, so no split is drawn; remove val and test"
            )
