"""The sections `data` and `external`: where images come from."""

from typing import Annotated, Self, get_args
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from tasks.settings.layout import ExternalLayout, Layout
from tasks.settings.section import Section
from tasks.settings.training import Target

#: Keys of `data` that are valid only for the current source.
PINS = ("fingerprint", "sha256")


class DataSource(Section):
    source: Annotated[str, Field(min_length=1)]
    fingerprint: Annotated[str, Field(pattern=r"^f[0-9a-f]{31}$")] | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    layout: Layout | None = None
    """None: the folders of COVID-QU-Ex. Revisions from before this key lack it."""

    @model_validator(mode="after")
    def _can_be_pinned(self) -> Self:
        if self.phantoms:
            if self.fingerprint:
                raise ValueError("phantom:// never changes and has no fingerprint; set fingerprint to null")
            if self.sha256:
                raise ValueError("phantom:// is not a zip file and has no sha256; set sha256 to null")
            if self.layout:
                raise ValueError("phantom:// has the folders of COVID-QU-Ex; set layout to null")
        return self

    @model_validator(mode="after")
    def _has_no_password(self) -> Self:
        if self.source.startswith(("http://", "https://")) and "@" in urlsplit(self.source).netloc:
            raise ValueError("source: params.yaml must not contain credentials; put them into ~/.netrc")
        return self

    @property
    def phantoms(self) -> bool:
        return self.source.startswith("phantom://")

    @property
    def published(self) -> bool:
        """Whether these are the images of COVID-QU-Ex, whose counts and scores are published."""
        return not self.phantoms and self.layout is None


class External(DataSource):
    """An entry under `external`: images on which every experiment is scored, and none is trained."""

    layout: ExternalLayout | None = None
    """None: the Test images of the infection half, in the folders of COVID-QU-Ex."""

    @property
    def masks(self) -> tuple[Target, ...]:
        """The masks that the images have."""
        return tuple(t for t in get_args(Target) if self.layout is None or t in self.layout.masks)


#: By name, without hyphens, which join these names with those of trainings.
ExternalDatasets = dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], External]
