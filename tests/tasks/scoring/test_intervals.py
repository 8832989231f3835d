import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.false_wins import EQUAL, REAL, RECIPES, Situation, rate, simultaneous
from tasks.scoring.intervals import (
    COVERED,
    Interval,
    Predictor,
    SeedVariance,
    between_samples,
    differences,
    paired_difference,
    pooled_seed_variance,
    pooled_values,
    scores,
)

TRIALS = 200
SHIFTS = np.array([[0.1], [-0.1]])  # of two seeds


def one_class(images: int) -> np.ndarray:
    return np.zeros(images, dtype=int)


def noise(seeds: int, images: int, deviation: float = 0.05, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, deviation, (seeds, images))


def interval_of(values: np.ndarray, strata: np.ndarray | None = None) -> Interval:
    """The interval of one predictor's score, (S, N)."""
    found = scores({"one": Predictor(values)}, one_class(values.shape[1]) if strata is None else strata)
    return found.intervals["one"]


# --- how often the intervals are right ----------------------------------------------------------------------


@pytest.mark.parametrize("situation", [EQUAL[-1], RECIPES[0], RECIPES[-1]], ids=lambda each: each.name)
def test_equal_networks_are_seldom_told_apart(situation: Situation) -> None:
    assert rate(situation, simultaneous, TRIALS) <= 0.07


@pytest.mark.parametrize(("situation", "least"), [(REAL[0], 0.99), (REAL[2], 0.75)], ids=["images", "seeds"])
def test_a_real_difference_is_found(situation: Situation, least: float) -> None:
    assert rate(situation, simultaneous, TRIALS) >= least


@pytest.mark.parametrize("images", [20, 40, 200])
@pytest.mark.parametrize(("a", "b"), [(5, 2), (4, 0.4)])
def test_interval_of_a_score_has_the_nominal_coverage(images: int, a: float, b: float) -> None:
    samples = np.random.default_rng(4).beta(a, b, size=(1000, 1, images))
    predictors = {str(i): Predictor(sample) for i, sample in enumerate(samples)}
    covered = [
        i.low <= a / (a + b) <= i.high for i in scores(predictors, one_class(images)).intervals.values()
    ]
    assert (0.935 if images >= 40 else 0.92) < np.mean(covered) < COVERED + 0.015


def test_interval_of_a_score_covers_the_mean_over_trainings() -> None:
    random, covered = np.random.default_rng(5), []
    for _ in range(TRIALS):
        seeds = random.normal(0, 0.01, (3, 1)) + random.normal(0, 0.05, 100)
        interval = interval_of(seeds)
        covered.append(interval.low <= 0 <= interval.high)
    assert 0.93 < np.mean(covered) < 0.99


def test_critical_value_is_that_of_the_studentized_range() -> None:
    """Independent networks on many images: Tukey's range over sqrt(2)."""
    columns = noise(12, 2000)
    pairs = differences({str(k): Predictor(row[None]) for k, row in enumerate(columns)}, one_class(2000))
    for (first, second), interval in pairs.intervals.items():
        error = stats.sem(columns[int(first)] - columns[int(second)])
        expected = stats.studentized_range.ppf(COVERED, 12, np.inf) / math.sqrt(2)
        assert (interval.high - interval.value) / error == pytest.approx(expected, rel=0.03)


def test_critical_value_of_one_pair_with_few_seeds_is_students() -> None:
    """Scores that are constant over images leave only the seeds: the t test of two samples."""
    seeds = np.array([[0.70, 0.72, 0.71], [0.74, 0.75, 0.79]])
    first, second = (np.repeat(each[:, None], 50, axis=1) for each in seeds)
    found = paired_difference(first, second, one_class(50))
    expected = stats.ttest_ind(*seeds).confidence_interval(COVERED)
    assert found.covers_training
    assert found.interval.value == pytest.approx(seeds[0].mean() - seeds[1].mean())
    assert found.interval.low == pytest.approx(expected.low, abs=0.003)
    assert found.interval.high == pytest.approx(expected.high, abs=0.003)


# --- images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [30, 300])
def test_interval_of_normal_scores_is_students(images: int) -> None:
    values = noise(1, images)
    expected = stats.ttest_1samp(values[0], 0).confidence_interval(COVERED)
    assert interval_of(values) == pytest.approx((values.mean(), expected.low, expected.high), abs=0.0015)


def test_images_are_resampled_within_their_class() -> None:
    """By hand: sqrt of the sum over classes of (share^2 * variance / images)."""
    strata = np.repeat([0, 1], [100, 300])
    values = noise(1, 400) + np.where(strata == 0, 1.0, 0.2)
    variances = [values[0, strata == each].var(ddof=1) for each in (0, 1)]
    error = math.sqrt(0.25**2 * variances[0] / 100 + 0.75**2 * variances[1] / 300)
    interval = interval_of(values, strata)
    assert interval.high - interval.value == pytest.approx(1.96 * error, rel=0.03)
    unstratified = interval_of(values)
    assert unstratified.high - unstratified.low > 5 * (interval.high - interval.low)


def test_score_that_is_constant_within_each_class_has_no_width() -> None:
    strata = np.repeat([0, 1, 2], [389, 500, 277])
    all_background = np.where(strata == 1, 0.0, 1.0)[None]
    found = scores({"all background": Predictor(all_background, trained=False)}, strata)
    share = all_background.mean()
    assert found.intervals["all background"] == pytest.approx((share, share, share))
    assert found.covers_training


def test_class_with_a_single_image_joins_another() -> None:
    values = noise(1, 41)
    strata = np.append(one_class(40), 1)
    assert interval_of(values, strata) == interval_of(values)
    two = interval_of(values[:, :2], np.array([0, 1]))
    assert two.low < two.value < two.high


def test_bounds_stay_in_the_range_of_the_score() -> None:
    values = np.append(np.ones(30), 0.2)[None]
    free = scores({"one": Predictor(values)}, one_class(31)).intervals["one"]
    limited = scores({"one": Predictor(values)}, one_class(31), within=(0, 1)).intervals["one"]
    assert free.high > 1
    assert limited == (free.value, free.low, 1)


def test_few_images_that_differ_give_a_finite_interval() -> None:
    first, second = np.ones((1, 500)), np.ones((1, 500))
    second[0, :2] = 0.0
    found = paired_difference(first, second, one_class(500)).interval
    assert found.value == pytest.approx(0.004)
    assert -0.02 < found.low < 0 < found.high < 0.03


def test_equal_predictors_have_the_difference_zero() -> None:
    values = noise(3, 50)
    columns = {"one": Predictor(values[:1]), "same": Predictor(values[:1]), "other": Predictor(values[1:2])}
    found = differences(columns, one_class(50))
    assert found.between("one", "same") == (0, 0, 0)
    assert not found.between("one", "same").excludes_zero
    assert found.between("one", "other").low < found.between("one", "other").high
    three = paired_difference(np.repeat(values[:1], 3, axis=0), values[:1], one_class(50))
    assert three.interval == (0, 0, 0)  # although the mean of three equal numbers may be rounded


def test_trivial_predictors_may_differ_without_width() -> None:
    trivial = {
        "all": Predictor(np.full((1, 30), 0.4), trained=False),
        "none": Predictor(np.full((1, 30), 0.1), trained=False),
    }
    found = differences(trivial, one_class(30))
    assert found.intervals["all", "none"] == pytest.approx((0.3, 0.3, 0.3))
    assert found.covers_training


def test_single_image_has_nan_bounds_everywhere() -> None:
    predictors = {"one": Predictor(np.array([[0.7], [0.9]])), "two": Predictor(np.array([[0.2]]))}
    found = [
        scores(predictors, one_class(1), within=(0, 1)).intervals["two"],
        differences(predictors, one_class(1)).intervals["one", "two"],
    ]
    for interval, value in zip(found, (0.2, 0.6), strict=True):
        assert interval.value == pytest.approx(value)
        assert math.isnan(interval.low)
        assert math.isnan(interval.high)
        assert not interval.excludes_zero


# --- seeds --------------------------------------------------------------------------------------------------


def test_seed_variance_is_pooled_over_trained_predictors() -> None:
    predictors = [
        Predictor(np.array([[0.1], [0.3]])),  # squares 0.02, df 1
        Predictor(np.array([[0.5], [0.5], [0.8]])),  # squares 0.06, df 2
        Predictor(np.array([[0.9]])),
        Predictor(np.array([[0.0]]), trained=False),
    ]
    variance = pooled_seed_variance(predictors)
    assert variance is not None
    assert variance == pytest.approx((0.08 / 3, 3))
    assert pooled_seed_variance(predictors[2:]) is None


def test_constant_shift_between_seeds_cannot_tell_experiments_apart() -> None:
    base = np.random.default_rng(2).beta(5, 2, 300)
    first, second = base + SHIFTS, base + 0.02 + SHIFTS
    found = paired_difference(first, second, one_class(300))
    assert found.covers_training
    assert not found.interval.excludes_zero
    images_alone = stats.ttest_1samp((first - second).mean(axis=0), 0)
    assert images_alone.pvalue < 1e-6


def test_without_several_seeds_training_is_not_covered() -> None:
    predictors = {"one": Predictor(noise(1, 50)), "two": Predictor(noise(1, 50, seed=1))}
    assert not scores(predictors, one_class(50)).covers_training
    assert not differences(predictors, one_class(50)).covers_training
    assert not paired_difference(noise(1, 50), noise(1, 50, seed=1), one_class(50)).covers_training


def test_one_seed_borrows_the_variance_of_others_and_counts_fully() -> None:
    base, deviation = np.random.default_rng(2).beta(5, 2, 300), 0.01
    predictors = {
        "ten seeds": Predictor(base + noise(10, 1, deviation)),
        "one seed": Predictor(base[None] + 0.0),
        "trivial": Predictor(base[None] + 0.0, trained=False),
    }
    strata = one_class(300)
    widths = {name: i.high - i.low for name, i in scores(predictors, strata).intervals.items()}
    assert widths["trivial"] < widths["ten seeds"] < widths["one seed"]
    to_trivial = differences(predictors, strata, [("one seed", "trivial")]).intervals["one seed", "trivial"]
    variance = pooled_seed_variance(predictors.values())
    assert variance is not None
    expected = stats.t.ppf(0.975, variance.df) * math.sqrt(variance.value)
    assert to_trivial.high == pytest.approx(expected, rel=0.06)


def test_known_seed_variance_holds_for_a_single_pair() -> None:
    first, second = noise(1, 300) + 0.03, noise(1, 300, seed=1)
    assert paired_difference(first, second, one_class(300)).interval.excludes_zero
    found = paired_difference(first, second, one_class(300), SeedVariance(0.02**2, df=6))
    assert found.covers_training
    assert not found.interval.excludes_zero


# --- families -----------------------------------------------------------------------------------------------


def test_family_is_each_pair_once_and_wider_than_a_single_pair() -> None:
    predictors = {name: Predictor(noise(1, 200, seed=seed)) for seed, name in enumerate("abcd")}
    strata = one_class(200)
    everything = differences(predictors, strata)
    assert list(everything.intervals) == [*map(tuple, ("ab", "ac", "ad", "bc", "bd", "cd"))]
    assert everything.between("b", "a") == everything.between("a", "b").reversed

    to_first = differences(predictors, strata, [("b", "a"), ("c", "a"), ("d", "a")])
    single = paired_difference(predictors["b"].values, predictors["a"].values, strata).interval
    widths = [i.high - i.low for i in (single, to_first.between("b", "a"), everything.between("b", "a"))]
    assert widths == sorted(widths)
    assert widths[0] < widths[1] < widths[2]
    assert single.value == to_first.between("b", "a").value == everything.between("b", "a").value


def test_family_without_pairs_is_empty() -> None:
    assert differences({"one": Predictor(noise(2, 20))}, one_class(20)).intervals == {}


def test_equal_inputs_give_equal_intervals() -> None:
    predictors = {name: Predictor(noise(2, 60, seed=seed)) for seed, name in enumerate("abc")}
    strata = np.arange(60) % 3
    first = differences(predictors, strata), scores(predictors, strata)
    np.random.default_rng().random(10)
    scores(predictors, np.arange(60) % 2)
    assert (differences(predictors, strata), scores(predictors, strata)) == first


# --- pooled scores ------------------------------------------------------------------------------------------


def test_difference_of_two_samples_has_welchs_interval() -> None:
    first, second = noise(1, 60, 0.05, seed=1), noise(1, 40, 0.1, seed=2)
    found = interval_of(between_samples(first, second), np.repeat([0, 1], [60, 40]))
    welch = stats.ttest_ind(first[0], second[0], equal_var=False).confidence_interval()
    assert found.value == pytest.approx(first.mean() - second.mean())
    assert found.low == pytest.approx(welch.low, abs=0.05 * (welch.high - welch.low))
    assert found.high == pytest.approx(welch.high, abs=0.05 * (welch.high - welch.low))


def test_difference_of_two_samples_has_the_nominal_coverage() -> None:
    random = np.random.default_rng(6)
    predictors = {
        str(i): Predictor(between_samples(random.beta(5, 2, (1, 60)), random.beta(4, 1, (1, 40))))
        for i in range(1000)
    }
    intervals = scores(predictors, np.repeat([0, 1], [60, 40])).intervals.values()
    covered = [i.low <= 5 / 7 - 4 / 5 <= i.high for i in intervals]
    assert 0.93 < np.mean(covered) < COVERED + 0.015


def test_pooled_values_have_the_ratio_as_their_mean() -> None:
    whole = np.random.default_rng(3).integers(1, 5000, size=(2, 300)).astype(float)
    part = np.round(np.random.default_rng(2).beta(5, 2, (2, 300)) * whole)
    values = pooled_values(part, whole)
    assert values.mean(axis=1) == pytest.approx(part.sum(axis=1) / whole.sum(axis=1))
    expected = stats.bootstrap(
        (part[0], whole[0]),
        lambda part, whole, axis: part.sum(axis=axis) / whole.sum(axis=axis),
        n_resamples=20_000,
        method="percentile",
        paired=True,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert interval_of(values[:1])[1:] == pytest.approx(expected, abs=1.5e-3)


def test_pooled_values_with_an_empty_whole_are_one() -> None:
    empty = np.zeros((1, 5))
    assert (pooled_values(empty, empty) == 1).all()
    mixed = pooled_values(np.zeros((2, 4)), np.array([[0.0] * 4, [0, 0, 0, 8]]))
    assert mixed.mean(axis=1) == pytest.approx([1, 0])


@pytest.mark.parametrize(
    ("low", "high", "excludes"),
    [(0.1, 0.3, True), (-0.3, -0.1, True), (-0.1, 0.1, False), (0.0, 0.1, False), (-0.1, 0.0, False)],
)
def test_zero_on_a_bound_is_not_excluded(low: float, high: float, excludes: bool) -> None:
    assert Interval((low + high) / 2, low, high).excludes_zero == excludes
