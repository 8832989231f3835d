"""Scores that the two reports and the literature printed."""

from tasks.comparison.document import PrintedPair, PrintedScores, PublishedScores, Report2Scores

# Report 1's Table 2: infection, one row per loss. It states neither test images nor the rule for empty masks.
REPORT_1 = (
    PrintedScores(name="Report 1, BCE", scores={"mae_255": 16.321, "iou": 0.138}),
    PrintedScores(name="Report 1, BCE + IoU", scores={"mae_255": 102168.546, "iou": 0.138}),
)

# Its conclusion prints a lung Dice of 0.5737. It does not say which split its last-epoch scores come from.
REPORT_2 = Report2Scores(
    name="Report 2",
    dice_lung=0.5767,
    iou_lung=0.9344,
    dice_infection=0.8692,
    iou_infection=0.3421,
    last_train_loss=0.2947,
    last_val_loss=None,
    last_val_dice=0.6785,
    last_val_iou=0.6473,
)

PRINTED_PAIRS = (
    PrintedPair(where="Report 2, lung", iou=0.9344, dice=0.5767, decimals=4, final=True),
    PrintedPair(where="Report 2, lung, as in its conclusion", iou=0.9344, dice=0.5737, decimals=4),
    PrintedPair(where="Report 2, infection", iou=0.3421, dice=0.8692, decimals=4, final=True),
    PrintedPair(where="Report 2, last epoch", iou=0.6473, dice=0.6785, decimals=4),
)

TAHIR, TAHIR_DOI = "Tahir et al. 2021", "10.1016/j.compbiomed.2021.105002"

#: By target.
PUBLISHED = {
    "infection": (
        PublishedScores(
            source="MedSegBench, best of five encoders",
            doi=None,
            measured_on="583 COVID-19 Test images, mean per image",
            iou=0.647,
            dice=0.756,
            decimals=3,
        ),
        PublishedScores(
            source="U-Bench, 100 networks, 256×256, 300 epochs",
            doi=None,
            measured_on="466 COVID-19 Val images, 90th percentile",
            iou=0.697,
            dice=None,
            decimals=3,
        ),
        PublishedScores(
            source=TAHIR,
            doi=TAHIR_DOI,
            measured_on="infection, controls included",
            iou=0.8305,
            dice=0.8821,
            decimals=4,
        ),
    ),
    "lung": (
        PublishedScores(source=TAHIR, doi=TAHIR_DOI, measured_on="lung", iou=0.9611, dice=0.9799, decimals=4),
    ),
}
