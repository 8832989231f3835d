"""The audit on a small table of images with planted problems."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks.audit import audit
from tasks.auditing.counts import PUBLISHED
from tasks.auditing.faults import usual_lung_areas
from tasks.auditing.pairs import correlations, find_pairs, to_drop
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
        **facts: float | None,
    ) -> str:
        """Add an image; `facts` are columns of images.csv that differ from those of a sound image."""
        half, split, image_class, _ = image_id.split("/")
        place = {"id": image_id, "half": half, "split": split, "class": image_class}
        row = place | {"sha256": digest or image_id, "lung_area": 0.25, "lung_correlation": -0.7}
        infection = {"infection_area": 0.1 * (image_class == "COVID-19"), "infection_outside_lung": 0.0}
        self.rows.append(row | (infection if half == "infection" else dict.fromkeys(infection)) | facts)
        self.thumbnails.append(another() if thumbnail is None else thumbnail)
        return image_id

    def run(self, params: Audit, phantoms: bool = False, folds: Path | None = None) -> dict[str, int]:
        for folder in (self.raw, self.packed):
            folder.mkdir(exist_ok=True)
        images = pd.DataFrame(self.rows)
        rejected = pd.DataFrame(self.rejected, columns=["id", "reason"])
        others = pd.DataFrame([i.split("/")[:3] for i in rejected["id"]], columns=["half", "split", "class"])
        pd.concat([images, others.assign(id=rejected["id"])]).to_csv(self.raw / "manifest.csv", index=False)
        images.to_csv(self.packed / "images.csv", index=False)
        rejected.to_csv(self.packed / "rejected.csv", index=False)
        np.save(self.packed / "thumbnails.npy", np.stack(self.thumbnails))
        audit(self.raw, self.packed, self.out, params, published=not phantoms, folds=folds)
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


NO_FAULTS = dict.fromkeys(
    (
        "controls_with_infection",
        "covid_without_infection",
        "empty_lung_masks",
        "infection_outside_lung",
        "unusual_lung_areas",
        "bright_lungs",
    ),
    0,
)
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
        **NO_FAULTS,
        "exact_pairs_across_splits": 2,
        "near_pairs_across_splits": 1,
        "test_images_touched": 2,
        "pairs_within_splits": 1,
        "pairs_across_halves": 2,
        "dropped": 0,
    }
    pairs = dataset.table("pairs")
    assert set(pairs["second"][pairs["across"]]) == {
        TEST.format("a"),
        VAL.format("b"),
        "lung/Test/COVID-19/d",
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
@pytest.mark.parametrize("half", ["infection", "lung"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_drops_the_image_from_the_earlier_split(
    dataset: Dataset, splits: tuple[str, str], half: str, dropped: str | None, turned: bool, exact: bool
) -> None:
    ids = [f"{half}/{split}/Normal/{n}" for n, split in enumerate(splits)]
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


@pytest.mark.parametrize("halves", [("infection", "lung"), ("lung", "infection")])
@pytest.mark.parametrize("exact", [False, True])
def test_pairs_across_halves_are_no_leaks(dataset: Dataset, halves: tuple[str, str], exact: bool) -> None:
    first = another()
    for half, split, thumbnail in zip(
        halves, ("Train", "Test"), (first, first if exact else near(first)), strict=True
    ):
        dataset.add(f"{half}/{split}/Normal/a", thumbnail, "same" if exact else None)
    figures = dataset.run(DROP)
    assert dataset.pairs == {(f"{halves[0]}/Train/Normal/a", f"{halves[1]}/Test/Normal/a", exact)}
    assert not dataset.table("pairs")["across"].any()
    assert dataset.table("dropped").empty
    assert {name: count for name, count in figures.items() if count} == {
        "images": 2,
        "missing_from_published": 5826 + 33920 - 2,
        "pairs_across_halves": 1,
    }


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
    dataset.add(TRAIN.format("a"), infection_outside_lung=0.125)
    dataset.add(TRAIN.format("b"), infection_outside_lung=0.01)
    dataset.add("lung/Train/Normal/c")
    dataset.rejected.append(("lung/Test/Normal/d", "the lung mask is missing in 'lung masks'"))
    figures = dataset.run(REPORT)
    assert dataset.table("problems").to_numpy().tolist() == [
        ["lung/Test/Normal/d", "excluded: the lung mask is missing in 'lung masks'"],
        [TRAIN.format("a"), "12.5% of the infection lies outside the lung"],
    ]
    assert (figures["images"], figures["unusable"], figures["infection_outside_lung"]) == (4, 1, 1)


@pytest.mark.parametrize(
    ("image_id", "facts", "name", "problem"),
    [
        (
            "infection/Val/Normal/a",
            {"infection_area": 0.0123},
            "controls_with_infection",
            "a control, but 1.23% of the image is marked as infection",
        ),
        (
            TRAIN.format("a"),
            {"infection_area": 0.0},
            "covid_without_infection",
            "a COVID-19 image, but its infection mask is empty",
        ),
        (
            "lung/Test/Normal/a",
            {"lung_area": 0.0, "lung_correlation": None},
            "empty_lung_masks",
            "the lung mask is empty",
        ),
        (
            TRAIN.format("a"),
            {"infection_outside_lung": 0.0101},
            "infection_outside_lung",
            "1.01% of the infection lies outside the lung",
        ),
        (
            "lung/Val/COVID-19/a",
            {"lung_correlation": 0.11},
            "bright_lungs",
            "the lungs are brighter than the rest of the chest: black and white are swapped, or the lung "
            "mask does not fit the image",
        ),
        # The limits are the median's odds, a third, times and divided by exp(5 * 0.3).
        (
            TRAIN.format("a"),
            {"lung_area": 0.069},
            "unusual_lung_areas",
            "the lung mask covers 6.9% of the image; 6.92% to 59.9% is usual",
        ),
        (
            "lung/Test/Normal/a",
            {"lung_area": 0.6},
            "unusual_lung_areas",
            "the lung mask covers 60% of the image; 6.92% to 59.9% is usual",
        ),
        (
            TEST.format("a"),
            {"lung_area": 1.0},
            "unusual_lung_areas",
            "the lung mask covers 100% of the image; 6.92% to 59.9% is usual",
        ),
    ],
)
def test_each_fault_of_an_image_is_counted_and_listed(
    dataset: Dataset, image_id: str, facts: dict[str, float | None], name: str, problem: str
) -> None:
    for other in ("infection/Train/COVID-19/b", "infection/Test/Normal/b", "lung/Train/COVID-19/b"):
        dataset.add(other)
        dataset.add(f"{other}2")
    dataset.add(image_id, **facts)
    figures = dataset.run(REPORT)
    assert {key: figures[key] for key in NO_FAULTS} == NO_FAULTS | {name: 1}
    assert dataset.table("problems").to_numpy().tolist() == [[image_id, problem]]


def test_values_at_the_limits_are_no_faults(dataset: Dataset) -> None:
    dataset.add(TRAIN.format("a"), lung_correlation=0.1, infection_outside_lung=0.01)
    dataset.add(TRAIN.format("b"), lung_correlation=None)
    for name, area in (("c", 0.07), ("d", 0.25), ("e", 0.25), ("f", 0.59)):
        dataset.add(TRAIN.format(name), lung_area=area)
    figures = dataset.run(REPORT)
    assert {key: figures[key] for key in NO_FAULTS} == NO_FAULTS
    assert dataset.table("problems").empty


def test_usual_lung_areas_follow_the_spread_of_their_half() -> None:
    odds = np.exp(np.array([-2.0, -1.0, 0.0, 1.0, 2.0]))  # median deviation 1
    spread = pd.DataFrame({"half": "lung", "lung_area": odds / (1 + odds)})
    narrow = pd.DataFrame({"half": "infection", "lung_area": [0.5, 0.5, 0.5, 0.0]})
    least, most = usual_lung_areas(pd.concat([spread, narrow], ignore_index=True))
    reach = np.array([5 * 1.4826] * 5 + [5 * 0.3] * 4)
    np.testing.assert_allclose(least, 1 / (1 + np.exp(reach)))
    np.testing.assert_allclose(most, 1 / (1 + np.exp(-reach)))


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


@pytest.mark.parametrize("half", PUBLISHED)
def test_published_counts_add_up(half: str) -> None:
    published = PUBLISHED[half]
    for place in range(2):
        sums = [n for key, n in published.items() if key[place] == "all" and key[1 - place] != "all"]
        assert sum(sums) == published["all", "all"]
    single = [n for key, n in published.items() if "all" not in key]
    assert sum(single) in (0, published["all", "all"])


def test_blocks_find_the_same_pairs_as_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.auditing.pairs.BLOCK", 7)
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
    monkeypatch.setattr("tasks.auditing.pairs.MAX_PAIRS", 5)
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


def write_wanted(folder: Path, *rows: str) -> Path:
    """The table folds.csv of the stage plan."""
    folder.mkdir(exist_ok=True)
    (folder / "folds.csv").write_text("\n".join(["training,half,folds,seed", *rows]) + "\n")
    return folder / "folds.csv"


def test_folds_split_no_pair_and_no_patient_and_leave_out_what_is_dropped(
    dataset: Dataset, tmp_path: Path
) -> None:
    pictures = [another() for _ in range(30)]
    for number, picture in enumerate(pictures):
        dataset.add(TRAIN.format(f"a{number}"), picture)
        dataset.add(VAL.format(f"b{number}"), near(picture))
        dataset.add("lung/Train/COVID-19/{}".format(f"c{number}"))
    dataset.add(TRAIN.format("of a Test image"), tested := another())
    dataset.add(TEST.format("tested"), near(tested))
    wanted = write_wanted(tmp_path / "plans", "x-fold0,infection,5,7", "x-fold1,infection,5,7", "y-seed0,,1,")
    dataset.run(DROP, folds=wanted)
    assert sorted(path.name for path in (dataset.out / "folds").iterdir()) == [
        "x-fold0.csv",
        "x-fold1.csv",
        "y-seed0.csv",
    ]
    assert (dataset.out / "folds" / "y-seed0.csv").read_bytes() == b"id,fold\n"
    assert dataset.table("folds/x-fold0").equals(dataset.table("folds/x-fold1"))
    dropped = set(dataset.table("dropped")["id"])
    fold = dataset.table("folds/x-fold0").set_index("id")["fold"]
    assert len(dropped) == 31  # of each pair the Train image
    assert set(fold.index) == {VAL.format(f"b{number}") for number in range(30)}
    assert list(fold.value_counts()) == [6] * 5

    dataset.run(REPORT, folds=wanted)
    fold = dataset.table("folds/x-fold0").set_index("id")["fold"]
    assert len(fold) == 61
    for number in range(30):
        assert fold[TRAIN.format(f"a{number}")] == fold[VAL.format(f"b{number}")]
    assert fold.value_counts().max() == 13 and fold.value_counts().min() == 12

    patient = [TRAIN.format("a0"), VAL.format("b1"), VAL.format("b2"), "infection/Train/COVID-19/unusable"]
    rows = "".join(f"{image_id},0\n" for image_id in patient) + f"{TRAIN.format('a3')},1\n"
    (dataset.raw / "groups.csv").write_text(f"id,group\n{rows}")
    dataset.run(REPORT, folds=wanted)
    fold = dataset.table("folds/x-fold0").set_index("id")["fold"]
    connected = [place.format(f"{name}{n}") for n in range(3) for place, name in ((TRAIN, "a"), (VAL, "b"))]
    assert fold[connected].nunique() == 1


def test_too_few_images_for_the_folds_leave_no_audit(dataset: Dataset, tmp_path: Path) -> None:
    for number in range(9):
        dataset.add(TRAIN.format(number))
    dataset.add(VAL.format("b"))
    for number in range(2):
        dataset.add(f"infection/Train/Normal/{number}")
    with pytest.raises(InputError, match=r"^x-fold0: folds: 3: each fold needs an image of Normal"):
        dataset.run(REPORT, folds=write_wanted(tmp_path / "plans", "x-fold0,infection,3,0"))
    assert not dataset.out.exists()
