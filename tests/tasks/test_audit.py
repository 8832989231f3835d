"""The audit on a small table of images with planted problems."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks import audit as audit_module
from tasks.audit import audit, correlations, find_pairs, to_drop
from tasks.packed.reader import dropped_ids
from tasks.settings.schema import Audit
from tasks.support.cli import InputError

REPORT, DROP = (Audit(correlation=0.98, duplicates=what) for what in ("report", "drop"))
NOISE = np.random.default_rng(0)


def another() -> np.ndarray:
    """A thumbnail that resembles no other."""
    return NOISE.integers(0, 256, (32, 32), dtype=np.uint8)


def near(thumbnail: np.ndarray) -> np.ndarray:
    """A brighter copy with less contrast; the correlation is about 0.998."""
    return (60 + thumbnail / 2 + NOISE.normal(0, 2, (32, 32))).astype(np.uint8)


class Dataset:
    """Outputs of the stages before the audit, for made-up images."""

    def __init__(self, root: Path) -> None:
        self.raw, self.packed, self.out = root / "raw", root / "packed", root / "audit"
        self.rows: list[dict[str, object]] = []
        self.thumbnails: list[np.ndarray] = []
        self.rejected: list[tuple[str, str]] = []

    def add(
        self,
        image_id: str,
        thumbnail: np.ndarray | None = None,
        digest: str | None = None,
        outside: float = 0.0,
    ) -> str:
        half, split, image_class, _ = image_id.split("/")
        place = {"id": image_id, "half": half, "split": split, "class": image_class}
        share = outside if half == "infection" else None
        self.rows.append(place | {"sha256": digest or image_id, "infection_outside_lung": share})
        self.thumbnails.append(another() if thumbnail is None else thumbnail)
        return image_id

    def run(self, params: Audit, phantoms: bool = False) -> dict[str, int]:
        for folder in (self.raw, self.packed):
            folder.mkdir(exist_ok=True)
        images = pd.DataFrame(self.rows)
        rejected = pd.DataFrame(self.rejected, columns=["id", "reason"])
        others = pd.DataFrame([i.split("/")[:3] for i in rejected["id"]], columns=["half", "split", "class"])
        pd.concat([images, others.assign(id=rejected["id"])]).to_csv(self.raw / "manifest.csv", index=False)
        images.to_csv(self.packed / "images.csv", index=False)
        rejected.to_csv(self.packed / "rejected.csv", index=False)
        np.save(self.packed / "thumbnails.npy", np.stack(self.thumbnails))
        audit(self.raw, self.packed, self.out, params, phantoms)
        figures: dict[str, int] = json.loads((self.out / "audit.json").read_text())["figures"]
        return figures

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.out / f"{name}.csv")

    @property
    def pairs(self) -> set[tuple[str, str, bool]]:
        pairs = self.table("pairs")
        return set(zip(pairs["first"], pairs["second"], pairs["exact"], strict=True))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path)


TRAIN, VAL, TEST = (f"infection/{split}/COVID-19/{{}}" for split in ("Train", "Val", "Test"))


def test_finds_exactly_the_planted_pairs(dataset: Dataset) -> None:
    a, b, c, d = (another() for _ in range(4))
    dataset.add(TEST.format("a"), a, "same")
    dataset.add(TRAIN.format("a"), a, "same")
    dataset.add(VAL.format("b"), near(b))
    dataset.add(TRAIN.format("b"), b)
    dataset.add(TRAIN.format("c1"), c)
    dataset.add(TRAIN.format("c2"), near(c))
    dataset.add("lung/Train/COVID-19/d", d, "both")
    dataset.add("infection/Test/COVID-19/d", d, "both")
    dataset.add("lung/Test/COVID-19/d", d, "both")
    for number in range(5):
        dataset.add(f"lung/Val/Normal/{number}")
    figures = dataset.run(REPORT)
    assert dataset.pairs == {
        (TRAIN.format("a"), TEST.format("a"), True),
        (TRAIN.format("b"), VAL.format("b"), False),
        (TRAIN.format("c1"), TRAIN.format("c2"), False),
        ("lung/Train/COVID-19/d", "infection/Test/COVID-19/d", True),
        ("lung/Train/COVID-19/d", "lung/Test/COVID-19/d", True),
        ("infection/Test/COVID-19/d", "lung/Test/COVID-19/d", True),
    }
    assert figures == {
        "images": 14,
        "unusable": 0,
        "missing_from_published": 5826 + 33920 - 14,
        "infection_outside_lung": 0,
        "exact_pairs_across_splits": 3,
        "near_pairs_across_splits": 1,
        "test_images_touched": 3,
        "pairs_within_splits": 1,
        "pairs_across_halves": 1,
        "dropped": 0,
    }
    assert dataset.table("dropped").empty and list(dataset.table("dropped")) == ["id", "reason"]
    correlation = dataset.table("pairs")["correlation"]
    assert correlation.is_monotonic_decreasing and (correlation >= 0.98).all()


@pytest.mark.parametrize(
    ("splits", "dropped"),
    [
        (("Train", "Val"), "Train"),
        (("Train", "Test"), "Train"),
        (("Val", "Test"), "Val"),
        (("Train", "Train"), None),
        (("Test", "Test"), None),
    ],
)
@pytest.mark.parametrize("halves", [("infection", "infection"), ("infection", "lung"), ("lung", "infection")])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_drops_the_image_from_the_earlier_split(
    dataset: Dataset,
    splits: tuple[str, str],
    halves: tuple[str, str],
    dropped: str | None,
    turned: bool,
    exact: bool,
) -> None:
    ids = [f"{half}/{split}/Normal/{n}" for n, (half, split) in enumerate(zip(halves, splits, strict=True))]
    first = another()
    for image_id, thumbnail in zip(ids, (first, first if exact else near(first)), strict=True):
        dataset.add(image_id, thumbnail, "same" if exact else None)
    if turned:
        dataset.rows.reverse()
        dataset.thumbnails.reverse()
    figures = dataset.run(DROP)
    assert len(dataset.pairs) == 1
    ids_dropped = dropped_ids(dataset.out / "dropped.csv")
    assert ids_dropped == ({ids[0]} if dropped else set())
    assert figures["dropped"] == len(ids_dropped)


def test_chain_across_splits_keeps_only_the_test_image(dataset: Dataset) -> None:
    for split in (TRAIN, VAL, TEST):
        dataset.add(split.format("a"), digest="same")
    dataset.run(DROP)
    assert dropped_ids(dataset.out / "dropped.csv") == {TRAIN.format("a"), VAL.format("a")}
    reason = dataset.table("dropped").set_index("id")["reason"]
    assert reason[VAL.format("a")] == f"identical to {TEST.format('a')}"


def test_uniform_images_are_problems_and_not_near_duplicates(dataset: Dataset) -> None:
    black, grey = np.zeros((32, 32), np.uint8), np.full((32, 32), 9, np.uint8)
    for name, thumbnail, digest in (("a", black, "black"), ("b", black, "black"), ("c", grey, "grey")):
        dataset.add(TRAIN.format(name), thumbnail, digest)
    dataset.add(TEST.format("d"))
    dataset.run(REPORT)
    assert dataset.pairs == {(TRAIN.format("a"), TRAIN.format("b"), True)}
    problems = dataset.table("problems")
    assert list(problems["id"]) == [TRAIN.format(name) for name in "abc"]
    assert set(problems["problem"]) == {"all pixels of the image have the same value"}


def test_excluded_images_and_infection_outside_the_lung_are_problems(dataset: Dataset) -> None:
    dataset.add(TRAIN.format("a"), outside=0.125)
    dataset.add(TRAIN.format("b"))
    dataset.add("lung/Train/Normal/c")
    dataset.rejected.append(("lung/Test/Normal/d", "the lung mask is missing in 'lung masks'"))
    figures = dataset.run(REPORT)
    assert dataset.table("problems").to_numpy().tolist() == [
        ["lung/Test/Normal/d", "excluded: the lung mask is missing in 'lung masks'"],
        [TRAIN.format("a"), "12.5 % of the infection lies outside the lung"],
    ]
    assert (figures["images"], figures["unusable"], figures["infection_outside_lung"]) == (4, 1, 1)


def test_counts_include_published_counts(dataset: Dataset) -> None:
    dataset.add(TRAIN.format("a"))
    dataset.add("lung/Val/Normal/b")
    dataset.rejected.append((TRAIN.format("c"), "not a PNG"))
    dataset.run(REPORT)
    counts = dataset.table("counts").set_index(["half", "split", "class"])
    assert counts.loc[("infection", "Train", "COVID-19")].tolist() == [2, 1, 1864]
    assert counts.loc[("infection", "all", "all")].tolist() == [2, 1, 5826]
    assert counts.loc[("lung", "all", "Normal")].tolist() == [1, 1, 10701]
    assert np.isnan(counts.loc[("lung", "Val", "Normal"), "published"])  # unknown
    assert counts.loc[("lung", "Val", "all"), "published"] == 5417
    assert "missing_from_published" not in dataset.run(REPORT, phantoms=True)
    assert dataset.table("counts")["published"].isna().all()


@pytest.mark.parametrize("half", audit_module.PUBLISHED)
def test_published_counts_add_up(half: str) -> None:
    published = audit_module.PUBLISHED[half]
    for place in range(2):
        sums = [n for key, n in published.items() if key[place] == "all" and key[1 - place] != "all"]
        assert sum(sums) == published["all", "all"]
    single = [n for key, n in published.items() if "all" not in key]
    assert sum(single) in (0, published["all", "all"])


def test_blocks_find_the_same_pairs_as_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "BLOCK", 7)
    smooth = np.repeat(np.repeat(NOISE.integers(0, 256, (30, 4, 4)), 8, axis=1), 8, axis=2).astype(np.uint8)
    ids = [f"lung/Train/Normal/{number:02}" for number in range(30)]
    images = pd.DataFrame({"id": ids, "split": "Train", "sha256": ids})
    expected = np.corrcoef(smooth.reshape(30, -1))
    found = find_pairs(images, smooth, 0.3)
    places = [(ids.index(a), ids.index(b)) for a, b in zip(found["first"], found["second"], strict=True)]
    assert set(places) == set(zip(*np.where(np.triu(expected, 1) >= 0.3), strict=True))
    assert len(places) > 20
    np.testing.assert_allclose(correlations(smooth, np.array(places)), [expected[p] for p in places])


def test_too_many_pairs_are_an_error(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "MAX_PAIRS", 5)
    first = another()
    for number in range(4):
        dataset.add(TRAIN.format(number), near(first))
    with pytest.raises(
        InputError,
        match=r"more than 5 pairs of images that have a correlation of at least audit\.correlation = 0\.98",
    ):
        dataset.run(REPORT)
    assert not dataset.out.exists()
    for row in dataset.rows:
        row["sha256"] = "same"
    with pytest.raises(InputError, match="more than 5 pairs of images that have identical pixels"):
        dataset.run(REPORT)


def test_no_images_to_drop_gives_an_empty_table() -> None:
    pairs = pd.DataFrame({"first": [], "second": [], "correlation": [], "exact": [], "across": []})
    assert to_drop(pairs.astype({"across": bool})).empty
