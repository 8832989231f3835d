"""The phantom source: Kaggle's layout, exact masks, the same pixels for the same URL."""

import io
import pickle
from collections import Counter
from itertools import product

import numpy as np
import pytest
from PIL import Image

from tasks.sources.phantom import (
    CLASSES,
    KAGGLE_COUNTS,
    KINDS,
    SPLITS,
    Phantom,
    PhantomSource,
    draw_phantom,
    spread,
)

ROOT = "Infection Segmentation Data/Infection Segmentation Data"
COVID, NON_COVID, NORMAL = range(3)


def decode(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


@pytest.fixture(scope="module")
def drawn() -> dict[int, list[Phantom]]:
    """Twenty phantoms of each class, with 128 pixels per side."""
    return {
        group: [draw_phantom(0, group, i, seed=5, size=128) for i in range(20)]
        for group in range(len(CLASSES))
    }


# --- Layout and counts


def test_names_are_kaggles() -> None:
    names = PhantomSource("phantom://9").names()
    assert names == sorted(names)
    assert f"{ROOT}/Train/COVID-19/images/covid_1.png" in names
    assert f"{ROOT}/Val/Non-COVID/lung masks/non_COVID (2).png" in names
    assert f"{ROOT}/Test/Normal/infection masks/Normal (3).png" in names
    folders = {name.rsplit("/", 1)[0] for name in names}
    assert folders == {f"{ROOT}/{s}/{c}/{k}" for s, c, k in product(SPLITS, CLASSES, KINDS)}


@pytest.mark.parametrize("few", [1, 1000])
def test_many_phantoms_are_drawn_in_order(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.sources.phantom.FEW", few)
    source = PhantomSource("phantom://36?size=32")
    names = source.names()[::-1]
    with source.reading(names) as contents:
        assert list(contents) == [source.read(name) for name in names]


def test_default_counts() -> None:
    cells = Counter(tuple(name.split("/")[2:5]) for name in PhantomSource("phantom://").names())
    images = [[cells[split, group, "images"] for group in CLASSES] for split in SPLITS]
    assert images == [[400, 100, 100], [100, 50, 50], [185, 60, 60]]
    assert all(cells[s, c, kind] == cells[s, c, "images"] for s, c, kind in product(SPLITS, CLASSES, KINDS))


def test_numbers_are_unique_within_a_class() -> None:
    images = [name for name in PhantomSource("phantom://200").names() if "/images/" in name]
    assert len({name.rsplit("/", 1)[1] for name in images}) == len(images) == 200


@pytest.mark.parametrize("total", [9, 10, 60, 1000, 33920])
def test_spread_gives_the_total_and_fills_every_cell(total: int) -> None:
    cells = [count for row in spread(total) for count in row]
    assert sum(cells) == total
    assert min(cells) >= 1


def test_spread_of_the_real_total_gives_the_real_counts() -> None:
    assert spread(5826) == KAGGLE_COUNTS


# --- Determinism


def test_bytes_depend_neither_on_reading_order_nor_on_the_source_object() -> None:
    url = "phantom://12?seed=3&size=64"
    first, second = PhantomSource(url), pickle.loads(pickle.dumps(PhantomSource(url)))
    names = first.names()
    forwards = {name: first.read(name) for name in names}
    backwards = {name: second.read(name) for name in reversed(names)}
    assert forwards == backwards


def test_seed_and_case_change_the_picture() -> None:
    name = f"{ROOT}/Train/COVID-19/images/covid_1.png"
    other_seed = PhantomSource("phantom://20?size=64&seed=1").read(name)
    source = PhantomSource("phantom://20?size=64")
    images = [other_seed, *(source.read(name) for name in source.names() if "/images/" in name)]
    assert len(set(images)) == 21


# --- Pictures and masks


@pytest.mark.parametrize(("query", "size"), [("", 256), ("?size=32", 32), ("?size=101", 101)])
def test_files_are_grey_pngs_of_the_requested_size(query: str, size: int) -> None:
    source = PhantomSource(f"phantom://9{query}")
    for name in source.names():
        picture = decode(source.read(name))
        assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (size, size))


def test_file_matches_its_folder() -> None:
    source = PhantomSource("phantom://9?size=64&seed=2")
    phantom = draw_phantom(0, COVID, 0, seed=2, size=64)
    for kind, pixels in zip(KINDS, phantom, strict=True):
        stored = decode(source.read(f"{ROOT}/Train/COVID-19/{kind}/covid_1.png"))
        assert np.array_equal(np.asarray(stored), pixels)


def test_masks_are_binary_and_infection_lies_within_the_lungs(drawn: dict[int, list[Phantom]]) -> None:
    for phantom in (phantom for phantoms in drawn.values() for phantom in phantoms):
        assert set(np.unique(phantom.lungs)) == {0, 255}
        assert set(np.unique(phantom.infection)) <= {0, 255}
        assert np.all(phantom.infection <= phantom.lungs)


def test_only_covid_has_infection(drawn: dict[int, list[Phantom]]) -> None:
    assert all(phantom.infection.any() for phantom in drawn[COVID])
    assert not any(phantom.infection.any() for phantom in drawn[NON_COVID] + drawn[NORMAL])


def test_even_the_smallest_picture_shows_its_infection() -> None:
    assert all(draw_phantom(1, COVID, i, seed=0, size=32).infection.any() for i in range(100))


def test_lungs_are_two_dark_regions_within_the_frame(drawn: dict[int, list[Phantom]]) -> None:
    for image, lungs, _ in drawn[NORMAL]:
        inside = lungs > 0
        assert 0.15 < inside.mean() < 0.4
        assert inside[:, :64].any() and inside[:, 64:].any()
        middle = image[32:96, 16:112]
        assert middle[inside[32:96, 16:112]].mean() < middle[~inside[32:96, 16:112]].mean() - 25


def test_trivial_predictors_score_low(drawn: dict[int, list[Phantom]]) -> None:
    """The IoU of all foreground is the infected area; that of the whole lung is the infected share of it."""
    infected = np.array([(p.infection > 0).mean() for p in drawn[COVID]])
    share = np.array([(p.infection > 0).sum() / (p.lungs > 0).sum() for p in drawn[COVID]])
    assert 0.08 < infected.mean() < 0.16
    assert infected.std() > 0.02
    assert share.mean() < 0.65


def test_infection_is_brighter_than_clear_lung_but_overlaps_with_it(drawn: dict[int, list[Phantom]]) -> None:
    gaps = []
    for image, lungs, infection in drawn[COVID]:
        clear = image[(lungs > 0) & (infection == 0)]
        if clear.size:
            gaps.append(image[infection > 0].mean() - clear.mean())
            assert np.percentile(image[infection > 0], 10) < np.percentile(clear, 95)
    assert np.mean(gaps) > 10


# --- Errors


@pytest.mark.parametrize(
    ("url", "right"),
    [
        ("https://example.org", "phantom://N"),
        ("phantom:/9", "phantom://N"),
        ("phantom://9/Train", "phantom://N"),
        ("phantom://9#top", "phantom://N"),
        ("phantom://8", "from 9 to 33920"),
        ("phantom://33921", "from 9 to 33920"),
        ("phantom://many", "from 9 to 33920"),
        ("phantom://-9", "from 9 to 33920"),
        ("phantom://9?", "seed=S and size=P"),
        ("phantom://9?depth=3", "seed=S and size=P"),
        ("phantom://9?seed=1&seed=2", "each at most once"),
        ("phantom://9?seed=x", "from 0 to 4294967295"),
        ("phantom://9?seed", "from 0 to 4294967295"),
        ("phantom://9?size=31", "from 32 to 1024"),
        ("phantom://9?size=1025", "from 32 to 1024"),
        ("phantom://9?size=٦٤", "from 32 to 1024"),
    ],
)
def test_invalid_url_is_a_one_line_error_with_the_valid_form(url: str, right: str) -> None:
    with pytest.raises(ValueError, match=right) as refused:
        PhantomSource(url)
    assert right in str(refused.value)
    assert repr(url) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name",
    [
        "",
        f"{ROOT}/Train/COVID-19/images/covid_0.png",
        f"{ROOT}/Train/COVID-19/images/covid_01.png",
        f"{ROOT}/Train/COVID-19/images/covid_9999.png",
        f"{ROOT}/Train/COVID-19/images/Normal (1).png",
        f"{ROOT}/Test/COVID-19/images/covid_1.png",
        f"{ROOT}/Train/COVID-19/masks/covid_1.png",
    ],
)
def test_unknown_file_is_an_error(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no file"):
        PhantomSource("phantom://9").read(name)
