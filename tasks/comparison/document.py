"""The schema of `comparison.json`: everything that the report states, as computed by the stage compare.

    dataset        the audit's findings, which do not depend on the experiments
    experiments    settings, curves and symptoms of each training
    groups         experiments that answer one question
    sections       one per half and target: the choice on Val, Test scores, differences, images to show
    report_2       the table and pictures of report 2, for experiments that predict both lung and infection
    consistency    which printed scores are possible
    external       scores on images of other hospitals; missing if there are none

A section names the half of the dataset as well as the target, because Test images of different halves are
not comparable. NaN and infinity are written as the strings "NaN", "Infinity" and "-Infinity"; null means
that there is no value. All other floats survive a round trip exactly.

The stage report imports no other module of this package.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.support.cli import InputError
from tasks.support.symptoms import DeadEpochs, DivergedEpochs, NonFiniteLoss

#: Increment this with every change that an older report could not read.
SCHEMA_VERSION = 3

COMPARISON_FILE = "comparison.json"
#: Largest number of experiments per section whose score distribution is shown, by decreasing Val score.
MOST_SPREADS = 3

#: Title of the group of the experiments that are in none of `report.groups`.
OTHERS = "Other experiments"

REMEDY = "`dvc repro compare` writes it again"
PICTURES_FILE = "pictures.zip"  # X-rays, reference masks and predicted masks of the images shown


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


# The dataset


class ClassCount(Model):
    """Number of images per half, split and class; "all" is the total over splits or classes."""

    half: str
    split: str
    image_class: str
    images: int
    usable: int
    published: int | None


class Problem(Model):
    image_id: str
    problem: str


class AlikePair(Model):
    """Two duplicate or near-duplicate images in different splits."""

    first: str
    second: str
    exact: bool
    correlation: float


class ImageGroups(Model):
    """Groups of images that belong together, such as those of a patient."""

    number: int
    split: int  # groups with images in several splits


class Dataset(Model):
    images: dict[str, int]  # split -> packed images
    masks: tuple[str, ...]  # kinds of reference masks that the dataset has
    groups: ImageGroups | None  # None if it is not known which images belong together
    rejected: int
    fingerprint: str  # SHA-256 of the table of packed images
    counts: tuple[ClassCount, ...]
    audit: dict[str, int]  # the audit's counts
    correlation: float  # two images with at least this correlation count as near-duplicates
    drops_duplicates: bool
    problems: int
    shown_problems: tuple[Problem, ...]
    pairs_across_splits: int
    shown_pairs: tuple[AlikePair, ...]  # the most similar


# Experiments


Symptom = Annotated[DeadEpochs | DivergedEpochs | NonFiniteLoss, Field(discriminator="kind")]


class Curves(Model):
    """One value per epoch."""

    epoch: tuple[int, ...]
    train_loss: tuple[float, ...]
    val_loss: tuple[float, ...]
    val_score: tuple[float, ...]


class TrainingRecord(Model):
    """One trained network of an experiment."""

    seed: int
    parameters: int
    train_images: int
    val_images: int
    best_epoch: int  # 0: the loss diverged before the first epoch ended
    diverged: bool
    precision: str
    device: str
    versions: dict[str, str]
    thresholds: dict[str, float]  # target -> threshold
    presence: dict[str, float]  # target -> least mean probability of an image in which anything is marked
    curves: Curves
    symptoms: tuple[Symptom, ...]


class ExperimentRecord(Model):
    name: str
    half: str
    plan: dict[str, Any]
    prediction: dict[str, Any]
    versions: dict[str, str]  # of the software that scored it
    trainings: tuple[TrainingRecord, ...]

    @property
    def first(self) -> TrainingRecord:
        return self.trainings[0]

    @property
    def folds(self) -> int:
        """The number of folds of a cross-validation; 1 without one."""
        return int(self.plan.get("folds", 1))


# Sections: scores and differences


class Bounds(Model):
    """The bounds of a 95% confidence interval."""

    low: float
    high: float


class Score(Model):
    value: float  # mean over the seeds
    interval: Bounds | None = None
    seed_sd: float | None = None  # of the seeds' means
    images: int | None = None  # if the score exists on some of the images only


Kind = Literal["experiment", "baseline"]


class ScoreRow(Model):
    name: str
    kind: Kind
    images: int
    scores: dict[str, Score]

    def value(self, metric: str) -> float | None:
        return self.scores[metric].value if metric in self.scores else None


class Difference(Model):
    """Score of the first minus score of the second, averaged over images."""

    metric: str
    first: str
    second: str
    value: float
    interval: Bounds | None  # simultaneous with the others of the family
    winner: str | None  # None if the interval includes zero

    @property
    def reversed(self) -> "Difference":
        """Second minus first."""
        bounds = self.interval and Bounds(low=-self.interval.high, high=-self.interval.low)
        update = {"first": self.second, "second": self.first, "value": -self.value, "interval": bounds}
        return self.model_copy(update=update)


class Family(Model):
    """All pairs of predictors on one metric, with simultaneous 95% intervals."""

    metric: str
    images: int
    covers_training: bool  # whether intervals include the variation between trainings
    differences: tuple[Difference, ...]  # each pair once

    def between(self, first: str, second: str) -> Difference | None:
        for found in self.differences:
            if {found.first, found.second} == {first, second}:
                return found if found.first == first else found.reversed
        return None

    def of(self, name: str, others: Iterable[str]) -> list[Difference]:
        """The named predictor minus each of the others."""
        found = (self.between(name, other) for other in others if other != name)
        return [difference for difference in found if difference]


class AgainstBaselines(Model):
    """Experiments that beat the same trivial predictors on the same metrics."""

    experiments: tuple[str, ...]
    not_beaten: dict[str, tuple[str, ...]]  # trivial predictor -> metrics; empty if beaten on all
    everyone: bool  # all experiments of the section


class ImageSet(Model):
    """The scores of one target on one set of images of a split."""

    name: str
    rows: tuple[ScoreRow, ...]  # experiments in the order of the groups, then trivial predictors
    families: tuple[Family, ...] = ()
    against_baselines: tuple[AgainstBaselines, ...] = ()
    best_baselines: dict[str, str] = {}  # metric -> trivial predictor

    @property
    def experiments(self) -> tuple[ScoreRow, ...]:
        return tuple(row for row in self.rows if row.kind == "experiment")

    @property
    def baselines(self) -> tuple[ScoreRow, ...]:
        return tuple(row for row in self.rows if row.kind == "baseline")

    def row(self, name: str) -> ScoreRow:
        return next(row for row in self.rows if row.name == name)

    def family(self, metric: str) -> Family | None:
        return next((found for found in self.families if found.metric == metric), None)


class Choice(Model):
    """The experiment with the best score on the Val split, and how sure that is."""

    selection: str  # the name of the score
    images: int  # Val images
    chosen: str
    scores: dict[str, Score]  # experiment -> score, by decreasing score
    family: Family  # all pairs of experiments
    level: tuple[str, ...]  # experiments that are not significantly different from the chosen one
    beaten: tuple[str, ...]


class Marking(Model):
    """For an experiment with networks that mark no pixel of the Test images, or nearly every pixel."""

    marks: tuple[Literal["no", "nearly every"], ...]
    seeds: int  # number of seeds with such a network


# Sections: what is shown


class ShownPrediction(Model):
    experiment: str
    target: str
    iou: float
    dice: float
    marked: float  # share of the image's pixels that are predicted


class ShownImage(Model):
    """A Test image shown in the report, and why."""

    image_id: str
    why: Literal["figure", "class", "best", "median", "worst", "false alarm", "disagreement"]
    position: int | None = None  # of a figure, among the main Test images
    references: tuple[str, ...]  # targets whose reference masks are shown
    predictions: tuple[ShownPrediction, ...]


class Figures(Model):
    shown: tuple[ShownImage, ...]
    missing: tuple[int, ...]  # positions after the last of these images
    images: int  # that can be selected
    rejected: int  # that preprocessing excluded; positions do not count them


class Spread(Model):
    """Distribution of the IoU of single main Test images, for an experiment's first seed."""

    experiment: str
    images: int
    counts: tuple[int, ...]  # images in equal bins over [0, 1]
    median: float
    lower_quartile: float
    upper_quartile: float
    share_below_half: float
    zeros: int
    shown: tuple[ShownImage, ...]


class ReliabilityLine(Model):
    """One point per bin of probabilities that contains pixels."""

    image_set: str
    mean_probability: tuple[float, ...]
    true_share: tuple[float, ...]


class Reliability(Model):
    experiment: str
    ece: float | None  # on the main Test images
    lines: tuple[ReliabilityLine, ...]


class WorstCases(Model):
    """The images of one class on which an experiment's first seed does worst."""

    experiment: str
    image_class: str
    shown: tuple[ShownImage, ...]


class Roc(Model):
    """How well the predicted infected area distinguishes COVID-19 images from others."""

    image_set: str  # the others
    images: int  # both together
    area: Score  # under the ROC curve
    false_positive_rate: tuple[float, ...]  # of the curve, first seed
    sensitivity: tuple[float, ...]


class Detection(Model):
    """Whether an experiment finds an infection at all, by image."""

    experiment: str
    sensitivity: Score  # share of COVID-19 images with any predicted pixel
    specificity: dict[str, Score]  # image set -> share of its images without any predicted pixel
    curves: tuple[Roc, ...]


class Limits(Model):
    """Bland and Altman's analysis of the infected share of the lung, predicted minus reference."""

    experiment: str
    images: int
    bias: Score
    lower: Score  # limits of agreement
    upper: Score
    error: float  # mean absolute error
    reference: tuple[float, ...]  # one value per image, first seed
    predicted: tuple[float, ...]


class SizeGroup(Model):
    """A quarter of the images with infection, by the size of the reference mask."""

    least: float  # share of the image
    most: float
    images: int
    rows: tuple[ScoreRow, ...]  # of experiments


class StepChange(Model):
    split: str
    image_set: str
    metric: str
    value: float
    interval: Bounds | None
    excludes_zero: bool


class Step(Model):
    """How one step of post-processing changes the scores of the plain masks."""

    experiment: str
    step: str
    changes: tuple[StepChange, ...]


class PrintedScores(Model):
    """The scores that report 1 printed for one loss."""

    name: str
    scores: dict[str, float]


class PublishedScores(Model):
    source: str
    doi: str | None
    measured_on: str
    iou: float
    dice: float | None
    decimals: int  # as printed


def main_image_set(names: Sequence[str]) -> str:
    """Of the sets that have images, smallest first: the COVID-19 images, or all images if there are none."""
    return "covid" if "covid" in names else names[-1]


class Section(Model):
    """One target in one half of the dataset."""

    half: str
    target: str
    experiments: tuple[str, ...]  # in the order of the groups; empty if only trivial predictors are scored
    choice: Choice | None  # None without experiments
    val: tuple[ImageSet, ...]
    image_sets: tuple[ImageSet, ...]  # of the Test split
    markings: dict[str, Marking]  # experiments whose masks are all empty or nearly full
    printed: tuple[PrintedScores, ...]
    published: tuple[PublishedScores, ...]
    reliability: tuple[Reliability, ...]
    detection: tuple[Detection, ...]  # of infection
    limits: tuple[Limits, ...]  # of infection
    sizes: tuple[SizeGroup, ...]  # of infection
    steps: tuple[Step, ...]
    spreads: tuple[Spread, ...]
    worst: tuple[WorstCases, ...]  # of the chosen experiment
    figures: Figures | None  # in the first section of a half

    def image_set(self, name: str) -> ImageSet | None:
        return next((found for found in self.image_sets if found.name == name), None)

    @property
    def main(self) -> ImageSet:
        """The Test images on which scores are mostly reported, see `main_image_set`."""
        found = self.image_set(main_image_set([found.name for found in self.image_sets]))
        assert found
        return found


# Report 2 and consistency


class Report2Scores(Model):
    """Scores in the form of report 2's table; those of the last epoch are on the Val split."""

    name: str
    dice_lung: float | None
    iou_lung: float | None
    dice_infection: float | None
    iou_infection: float | None
    last_train_loss: float | None
    last_val_loss: float | None
    last_val_dice: float | None
    last_val_iou: float | None


class Report2(Model):
    half: str
    rows: tuple[Report2Scores, ...]
    printed: Report2Scores
    shown: tuple[ShownImage, ...]


class Fault(Model):
    """Why an IoU and a Dice cannot come from the same predictions."""

    kind: Literal["below", "above"]  # the Dice is below or above the range that the IoU allows
    highest_dice: float


class PrintedPair(Model):
    """An IoU and a Dice in [0, 1] that a report prints for the same predictions."""

    where: str
    iou: float
    dice: float
    decimals: int
    final: bool = False  # one of report 2's final scores
    fault: Fault | None = None


class OwnPair(Model):
    """An IoU and a Dice of this document that contradict each other."""

    name: str
    kind: Kind
    target: str
    split: str
    image_set: str
    average: str
    iou: float
    dice: float
    decimals: int
    fault: Fault


class PrintedIou(Model):
    """Report 1's IoU compared with the IoU of marking every pixel."""

    printed_iou: float
    printed_mae_255: float
    images: int
    iou: float
    mae_255: float
    same: bool


class PrintedMae(Model):
    """A value that report 1 printed as a mean absolute error, although it exceeds the bound of any."""

    name: str
    mae_255: float
    bound: float


class Consistency(Model):
    printed_iou: PrintedIou | None
    printed_maes: tuple[PrintedMae, ...]
    printed_pairs: tuple[PrintedPair, ...]
    finals_in_any_order: bool  # whether any two of report 2's final scores are possible together
    own_pairs: int
    broken_pairs: tuple[OwnPair, ...]


# Images of other hospitals


class ExternalRow(Model):
    """One experiment, or its ensemble, on an external dataset, and on the Test images that are most like it.

    IoU and Dice are means over the images with a reference mask, `missed` is the share of these in which
    nothing is marked, and `false_positive_rate` the share of the others in which anything is marked.
    """

    experiment: str
    scores: dict[str, Score]
    test_images: int  # with a reference mask
    test_classes: tuple[str, ...]  # the same as those of the external images, if Test images have them
    test: dict[str, Score]
    changes: dict[str, Difference]  # external dataset minus Test, of IoU and Dice


class ExternalTarget(Model):
    target: str
    images: int  # with a reference mask
    empty: int  # without one
    classes: tuple[str, ...]  # of the images with a reference mask
    covers_training: bool  # whether intervals of changes include the variation between trainings
    rows: tuple[ExternalRow, ...]  # in the order of the groups
    ensembles: tuple[ExternalRow, ...] = ()  # of the experiments that have one


class ExternalSet(Model):
    """A dataset on which nothing was trained or chosen."""

    name: str
    source: str
    images: int
    unusable: int
    overlapping: int  # usable images that are also in the dataset, and are left out of the scores
    identical: int  # of these, the images whose pixels are all the same
    targets: tuple[ExternalTarget, ...]


# Ensembles


class EnsembleScore(Model):
    """A score of an experiment's networks, each by itself, and of the average of their probabilities."""

    split: str
    image_set: str
    metric: str
    images: int
    networks: Score  # mean over the networks
    ensemble: Score
    change: Difference | None  # ensemble minus networks, without training variation: both have the same


class Rejection(Model):
    """Whether the networks' disagreement tells bad masks, see `tasks.scoring.rejection`."""

    images: int  # all Test images
    coverage: tuple[float, ...]
    risk: tuple[float, ...]
    best: tuple[float, ...]
    random: float
    ratio: Score | None  # None if all masks are equally good


class EnsembleTarget(Model):
    half: str
    target: str
    scores: tuple[EnsembleScore, ...]
    rejection: Rejection
    shown: tuple[ShownImage, ...]  # the images with the largest disagreement


class Ensemble(Model):
    experiment: str
    networks: int
    thresholds: dict[str, float]  # target -> threshold
    presence: dict[str, float]
    targets: tuple[EnsembleTarget, ...]


# Cross-validation


class FoldedScore(Model):
    """A score on Train and Val images, each of them scored by the network that was not trained on it."""

    image_set: str
    metric: str
    images: int
    score: Score
    folds: tuple[float | None, ...]  # of IoU, Dice and balanced score: the mean over the images of each fold


class FoldedTarget(Model):
    half: str
    target: str
    scores: tuple[FoldedScore, ...]


class CrossValidation(Model):
    experiment: str
    folds: int
    images: tuple[int, ...]  # in each fold
    targets: tuple[FoldedTarget, ...]


class Document(Model):
    schema_version: int
    source: str  # of the dataset
    phantoms: bool
    published: bool  # whether these are the images of COVID-QU-Ex, whose counts and scores are published
    dataset: Dataset
    plans: str  # SHA-256 of the plans of all trainings and predictions
    experiments: tuple[ExperimentRecord, ...]
    groups: dict[str, tuple[str, ...]]  # title -> experiments
    sections: tuple[Section, ...]
    report_2: Report2 | None
    consistency: Consistency
    external: tuple[ExternalSet, ...] = ()
    ensembles: tuple[Ensemble, ...] = ()
    cross_validations: tuple[CrossValidation, ...] = ()

    @property
    def halves(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(section.half for section in self.sections))

    @property
    def predicted(self) -> tuple[Section, ...]:
        """The sections with at least one experiment, the most important first."""
        return tuple(section for section in self.sections if section.experiments)

    def useless_masks(self, experiment: str) -> set[str]:
        """The targets for which an experiment's masks of the Test images are all empty or nearly full."""
        return {section.target for section in self.sections if experiment in section.markings}

    def experiment(self, name: str) -> ExperimentRecord:
        return next(found for found in self.experiments if found.name == name)

    def ensemble(self, experiment: str) -> Ensemble | None:
        """The ensemble of an experiment's networks; None if they are not averaged."""
        return next((found for found in self.ensembles if found.experiment == experiment), None)

    def shown_images(self) -> Iterator[ShownImage]:
        for section in self.sections:
            if section.figures:
                yield from section.figures.shown
            for spread in section.spreads:
                yield from spread.shown
            for cases in section.worst:
                yield from cases.shown
        if self.report_2:
            yield from self.report_2.shown
        for ensemble in self.ensembles:
            for found in ensemble.targets:
                yield from found.shown

    def to_json(self) -> str:
        optional = ("external", "ensembles", "cross_validations")
        without = {name for name in optional if not getattr(self, name)}
        return self.model_dump_json(indent=1, exclude=without) + "\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the document.

        Raises:
            InputError: the file is missing, is invalid, or has another version of the schema.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; {REMEDY}") from None
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: not valid JSON: {error}; {REMEDY}") from None
        _check_version(path, content)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise InputError(f"{path}: {place}: {first['msg']}; {REMEDY}") from None


def _check_version(path: Path, content: Any) -> None:
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema version {version}, but this code reads version {SCHEMA_VERSION}; {REMEDY}"
        )


# Members of PICTURES_FILE


def xray_name(image_id: str) -> str:
    return f"images/{image_id}.png"


def reference_name(target: str, image_id: str) -> str:
    return f"references/{target}/{image_id}.png"


def prediction_name(experiment: str, target: str, image_id: str) -> str:
    return f"predictions/{experiment}/{target}/{image_id}.png"


def ensemble_name(experiment: str) -> str:
    """The name of an experiment's ensemble where predictions are named by experiments."""
    return f"{experiment} (ensemble)"


def spread_name(experiment: str, target: str, image_id: str) -> str:
    return f"spread/{experiment}/{target}/{image_id}.png"
