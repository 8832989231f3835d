"""Runs a challenger and the champion on the same images, and judges the challenger."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from tasks.bundles.files import BUNDLE_FILE
from tasks.bundles.schema import Bundle, open_bundle
from tasks.common.raw import Half
from tasks.gate.images import (
    Images,
    count_left_out,
    judged_images,
    score_bundle,
    trained_on,
    what_is_unknown,
)
from tasks.gate.rules import DECIDES, REPORTED, Scores, find
from tasks.gate.verdict import Finding, Verdict, outcome_of
from tasks.settings.params import Params, load_params
from tasks.settings.schema import Promotion
from tasks.settings.training import Target
from tasks.support.cli import InputError


class _Opened(NamedTuple):
    folder: Path
    bundle: Bundle

    @property
    def digest(self) -> str:
        return hashlib.sha256((self.folder / BUNDLE_FILE).read_bytes()).hexdigest()


def judge(challenger: Path, champion: Path | None, checkout: Path) -> Verdict:
    """Run both bundles on the same images, and judge whether the challenger may replace the champion.

    The images are those of a checkout, of the half that the challenger was trained on, and its external
    datasets, without images that either was trained on. The section `promotion` of params.yaml has the
    limits. Without a champion, parity and audit decide, and the challenger's scores are reported.

    Args:
        challenger: the folder of a bundle.
        champion: likewise; None if there is none yet.
        checkout: the challenger's revision, with the outputs of the stages download, preprocess and audit.

    Raises:
        InputError: a folder is not a bundle, a bundle does not predict the target, or an output is missing.
    """
    params = load_params(checkout / "params.yaml")
    target = params.promotion.target
    first = _open(challenger, target)
    second = None if champion is None else _open(champion, target)
    images = judged_images(checkout, params, first.bundle.dataset.half, target)
    of_first = trained_on(images, *first)
    of_second = np.zeros_like(of_first) if second is None else trained_on(images, *second)
    kept = images.without(pd.Series(of_first | of_second))
    scores = Scores(
        _scores(kept, first, target, "challenger"),
        None if second is None else _scores(kept, second, target, "champion"),
    )
    experiment = params.experiments.get(first.bundle.name)
    selection = (experiment or params.training).selection
    findings = (
        *find(scores, images.classes, params.promotion, selection),
        *_parity(first.bundle),
        audited(checkout / "artifacts" / "audit", first.bundle.dataset.half, params),
    )
    return Verdict(
        outcome=outcome_of(findings),
        challenger=first.digest,
        champion=None if second is None else second.digest,
        target=target,
        selection=selection,
        findings=findings,
        left_out=count_left_out(images, of_first, of_second),
        notes=tuple(_notes(first, second)),
    )


def _open(folder: Path, target: Target) -> _Opened:
    bundle = open_bundle(folder)
    if target not in bundle.main.targets:
        raise InputError(f"{folder}: this bundle does not predict {target}, which promotion.target names")
    return _Opened(folder, bundle)


def _scores(images: Images, opened: _Opened, target: Target, role: str) -> pd.DataFrame:
    return score_bundle(images, opened.folder, opened.bundle, target, f"{role} {opened.bundle.name}")


def _notes(first: _Opened, second: _Opened | None) -> Iterator[str]:
    yield from what_is_unknown(first.bundle, "challenger")
    if second is None:
        yield "There is no champion yet: only parity and the audit decide."
        return
    yield from what_is_unknown(second.bundle, "champion")
    if second.digest == first.digest:
        yield "Challenger and champion are the same bundle."


def _parity(bundle: Bundle) -> Iterator[Finding]:
    """For each network, whether ONNX Runtime and torch predict the same, as the stage convert checks."""
    from tasks.bundles.parity import Parity, require_parity  # imports torch

    for network in (network for step in bundle.steps for network in step.networks):
        parity, reason = Parity(**network.parity.model_dump()), ""
        try:
            require_parity(network.training, parity)
        except InputError as error:
            reason = str(error)
        if parity.images == 0:
            reason = f"{network.training}: compared on no image"
        yield Finding(
            rule="parity", images=network.training, count=parity.images, passed=not reason, reason=reason
        )


def audited(audit: Path, half: Half, params: Params) -> Finding:
    """Whether the audit found the images clean: no control with infection, and few leaks.

    A leak is a Val or Test image that duplicates, or nearly duplicates, a Train image of the half that was
    not dropped. The larger of the two splits' shares counts. Exact duplicates are not judged anyway.

    Raises:
        InputError: the stage audit has not run.
    """
    try:
        figures = json.loads((audit / "audit.json").read_text(encoding="utf-8"))["figures"]
        pairs, dropped = (pd.read_csv(audit / name, dtype=str) for name in ("pairs.csv", "dropped.csv"))
        counts = pd.read_csv(audit / "counts.csv")
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}: no such file; run `dvc repro audit` first") from None
    leaking = pairs[pairs["first"].str.startswith(f"{half}/Train/") & ~pairs["first"].isin(dropped["id"])]
    shares, total = [0.0], 0
    for split in (DECIDES, REPORTED):
        touched = {second for second in leaking["second"] if second.startswith(f"{half}/{split}/")}
        images = _usable(counts, half, split)
        total += images
        shares.append(len(touched) / images if images else 0.0)
    infected = int(figures.get("controls_with_infection", 0))
    return _audit_finding(max(shares), total, infected, params.promotion)


def _usable(counts: pd.DataFrame, half: str, split: str) -> int:
    wanted = (counts["half"] == half) & (counts["split"] == split) & (counts["class"] == "all")
    return int(counts.loc[wanted, "usable"].sum())


def _audit_finding(share: float, total: int, infected: int, promotion: Promotion) -> Finding:
    reasons = []
    if share > promotion.leaks:
        reasons.append(f"{share:.1%} of the images of a split duplicate a training image")
    if infected:
        reasons.append(f"{infected} control{'' if infected == 1 else 's'} with infection in the mask")
    return Finding(
        rule="audit",
        images="Val and Test",
        count=total,
        challenger=share,
        bound=promotion.leaks,
        limit="at most",
        passed=not reasons,
        reason="; ".join(reasons),
    )
