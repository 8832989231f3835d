"""The audit's findings, in the form that the report shows."""

import pandas as pd

from tasks.common.raw import SPLITS, RawDataset
from tasks.comparison.document import AlikePair, ClassCount, Dataset, Problem
from tasks.comparison.inputs import Inputs

SHOWN_PAIRS = 20
SHOWN_PROBLEMS = 50


def dataset(inputs: Inputs) -> Dataset:
    audit, split = inputs.audit, inputs.table["split"]
    return Dataset(
        images={name: int((split == name).sum()) for name in SPLITS},
        masks=_masks(inputs.raw),
        groups=inputs.image_groups,
        rejected=len(inputs.rejected),
        fingerprint=inputs.fingerprint,
        counts=_counts(audit.counts),
        audit=audit.figures,
        correlation=audit.params["correlation"],
        drops_duplicates=audit.params["duplicates"] == "drop",
        problems=len(audit.problems),
        shown_problems=tuple(
            Problem(image_id=row["id"], problem=row["problem"])
            for _, row in audit.problems[:SHOWN_PROBLEMS].iterrows()
        ),
        pairs_across_splits=len(audit.leaking),
        shown_pairs=tuple(
            AlikePair(
                first=row["first"],
                second=row["second"],
                exact=bool(row["exact"]),
                correlation=float(row["correlation"]),
            )
            for _, row in audit.leaking[:SHOWN_PAIRS].iterrows()
        ),
    )


def _masks(raw: RawDataset) -> tuple[str, ...]:
    halves = raw.manifest["half"].unique()
    return tuple(dict.fromkeys(kind for half in halves for kind in raw.kinds(half) if kind != "image"))


def _counts(counts: pd.DataFrame) -> tuple[ClassCount, ...]:
    return tuple(
        ClassCount(
            half=row["half"],
            split=row["split"],
            image_class=row["class"],
            images=int(row["images"]),
            usable=int(row["usable"]),
            published=None if pd.isna(row["published"]) else int(row["published"]),
        )
        for _, row in counts.iterrows()
    )
