"""Images and masks that look wrong."""

import math

import pandas as pd

#: Largest share of an infection mask outside the lung mask that is not reported: edges drawn by hand or
#: resized differ by a few pixels.
OUTSIDE = 0.01
#: Lungs count as bright if the image and its lung mask correlate by more than this. In the infection half of
#: COVID-QU-Ex, 2 of 5,826 do: one image is inverted, and one is upside down, so its mask does not fit. Of the
#: same images with black and white swapped, 5,822 do.
BRIGHT = 0.1
#: A lung area is unusual if its log odds differ from the median by more than this number of standard
#: deviations, which are estimated from the median deviation. In the infection half of COVID-QU-Ex, 1 of 5,826
#: is: a correct mask, of small lungs.
UNUSUAL = 5
#: Standard deviation of normally distributed values, divided by their median absolute deviation.
MAD_TO_SD = 1.4826
#: Smallest standard deviation assumed for the log odds; in COVID-QU-Ex it is 0.37. Without it, a few masks of
#: nearly equal areas would make all others unusual.
LEAST_SD = 0.3

#: The column without any value of which a fault cannot be found.
NEEDED = {
    "controls_with_infection": "infection_area",
    "covid_without_infection": "infection_area",
    "empty_lung_masks": "lung_area",
    "infection_outside_lung": "infection_outside_lung",
    "unusual_lung_areas": "lung_area",
    "bright_lungs": "lung_area",
}

Faults = dict[str, "pd.Series[str]"]  # name in audit.json -> image id -> problem


def find_faults(images: pd.DataFrame) -> Faults:
    """Masks that contradict their class or each other, unusual lung areas, and images that look inverted.

    Faults that nothing can tell, because the dataset lacks lung masks or infection masks, are not among them.
    """
    covid, infection, lung = images["class"] == "COVID-19", images["infection_area"], images["lung_area"]
    outside = images["infection_outside_lung"]
    least, most = usual_lung_areas(images)

    def found(wanted: "pd.Series[bool]", problem: str, *values: "pd.Series[float]") -> "pd.Series[str]":
        rows = pd.concat([images["id"], *(100 * value for value in values)], axis=1)[wanted]
        return pd.Series({row[0]: problem.format(*row[1:]) for row in rows.to_numpy()}, dtype=object)

    faults = {
        "controls_with_infection": found(
            ~covid & (infection > 0), "a control, but {:.3g}% of the image is marked as infection", infection
        ),
        "covid_without_infection": found(
            covid & (infection == 0), "a COVID-19 image, but its infection mask is empty"
        ),
        "empty_lung_masks": found(lung == 0, "the lung mask is empty"),
        "infection_outside_lung": found(
            outside > OUTSIDE, "{:.3g}% of the infection lies outside the lung", outside
        ),
        "unusual_lung_areas": found(
            (lung > 0) & ~lung.between(least, most),
            "the lung mask covers {:.3g}% of the image; {:.3g}% to {:.3g}% is usual",
            *(lung, least, most),
        ),
        "bright_lungs": found(
            images["lung_correlation"] > BRIGHT,
            "the lungs are brighter than the rest of the chest: black and white are swapped, or the lung "
            "mask does not fit the image",
        ),
    }
    return {name: problems for name, problems in faults.items() if not images[NEEDED[name]].isna().all()}


def usual_lung_areas(images: pd.DataFrame) -> tuple["pd.Series[float]", "pd.Series[float]"]:
    """The smallest and the largest usual lung area in each image's half, see `UNUSUAL`.

    Log odds are compared, not areas, because they are about symmetric around their median. Empty masks are
    not considered.
    """
    area = images["lung_area"].where(images["lung_area"] > 0).clip(upper=1 - 1e-6)  # 1 has no log odds
    log_odds = (area / (1 - area)).map(math.log)
    median = log_odds.groupby(images["half"]).transform("median")
    deviation = (log_odds - median).abs().groupby(images["half"]).transform("median")
    reach = UNUSUAL * (MAD_TO_SD * deviation).clip(lower=LEAST_SD)
    least, most = (1 / (1 + (-limit).map(math.exp)) for limit in (median - reach, median + reach))
    return least, most
