import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.bundles.files import BUNDLE_FILE
from tasks.prediction.inbox import LOCK, TRIES, UNFINISHED, last_batch, process
from tasks.prediction.ledger import BATCH_FILE, LEDGER, Batch
from tasks.support.cli import InputError
from tests.bundles import Pipeline
from tests.drifting import NEW, chests, darker, fill, put, with_reference
from tests.helpers import ROOT, png
from tests.s3 import S3Server


@pytest.fixture(scope="module")
def model(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_reference(pipeline.bundle("combined"), tmp_path_factory.mktemp("bundle") / "combined")


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    fill(tmp_path / "inbox", chests(NEW, 4))
    return tmp_path / "inbox"


def batches(results: Path) -> list[Batch]:
    return [Batch.read(file.parent) for file in sorted(results.glob(f"*/{BATCH_FILE}"))]


def assert_whole(results: Path, expected: int) -> None:
    """Each image is in one batch, with all of its files, and there are no others."""
    sources = Counter(file["source"] for batch in batches(results) for file in batch.files)
    assert len(sources) == expected
    assert set(sources.values()) == {1}
    for folder in (results / batch.name for batch in batches(results)):
        with (folder / "images.csv").open(newline="") as file:
            images = [row["image"] for row in csv.DictReader(file)]
        made = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        results_of = {f"masks/{target}/{name}.png" for target in ("lung", "infection") for name in images}
        results_of |= {f"overlays/{name}.jpg" for name in images}
        assert made == results_of | {"images.csv", "index.html", "run.json", BATCH_FILE}
        for name in results_of:
            with Image.open(folder / name) as picture:
                picture.load()
    assert {path.name for path in results.iterdir() if path.is_file()} == {LEDGER, LOCK}
    assert not (results / UNFINISHED).exists()


def kill_passes(kills: int, images: int, model: Path, folder: Path) -> None:
    """Kill passes at random moments, all of them between the first file and the end."""
    inbox, results = folder / "inbox", folder / "results"
    fill(inbox, chests(NEW, images))
    command = [sys.executable, "-m", "flows.commands.launcher", "inbox", str(inbox)]
    command = [*command, "--model", str(model), "--out", str(results)]
    rng, killed = np.random.default_rng(0), 0
    while killed < kills:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while not (results / UNFINISHED).exists() and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.6))
        process.kill()
        _, said = process.communicate()
        assert process.returncode in (0, -9), said
        killed += process.returncode == -9
        if process.returncode == 0:  # was too fast: give it more work
            fill(inbox, chests(NEW, images, killed + 1), f"more-{killed}")
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert_whole(results, len(list(inbox.iterdir())))


def test_a_killed_pass_is_continued(model: Path, tmp_path: Path) -> None:
    kill_passes(3, 60, model, tmp_path)


@pytest.mark.soak
def test_ten_kills(model: Path, tmp_path: Path) -> None:
    kill_passes(10, 300, model, tmp_path)


def test_what_is_new_is_predicted_once(model: Path, inbox: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    (first,) = process(str(inbox), results, model)
    assert (first.predicted, first.failed) == (4, [])
    assert process(str(inbox), results, model) == []
    changed, touched = inbox / "image-000.png", inbox / "image-001.png"
    put(changed, png(np.zeros((64, 64), np.uint8)))
    put(touched, touched.read_bytes(), age=30)
    put(inbox / "a" / "image-000.png", changed.read_bytes())
    put(inbox / "being-written.png", changed.read_bytes(), age=0)
    (second,) = process(str(inbox), results, model)
    found = {file["source"] for file in second.files}
    assert found == {str(changed), str(inbox / "a" / "image-000.png")}
    assert last_batch(results) == second
    os.utime(inbox / "being-written.png", (0, 0))
    (third,) = process(str(inbox), results, model)
    assert [file["image"] for file in third.files] == ["being-written"]


def test_files_that_are_no_images_are_listed_once(model: Path, inbox: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    put(inbox / "noise.png", b"noise")
    (batch,) = process(str(inbox), results, model)
    ((source, reason),) = batch.failed
    assert (source, batch.predicted) == (str(inbox / "noise.png"), 4)
    assert reason
    assert process(str(inbox), results, model) == []
    put(inbox / "noise.png", (inbox / "image-000.png").read_bytes())
    (repaired,) = process(str(inbox), results, model)
    assert (repaired.predicted, repaired.failed) == (1, [])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_cannot_be_read_is_tried_again(model: Path, inbox: Path, tmp_path: Path) -> None:
    (inbox / "image-000.png").chmod(0)
    counts = [len(process(str(inbox), tmp_path / "results", model)) for _ in range(TRIES + 1)]
    assert counts == [1] * TRIES + [0]


def test_a_limit_takes_the_oldest_first(model: Path, inbox: Path, tmp_path: Path) -> None:
    put(inbox / "old.png", (inbox / "image-000.png").read_bytes(), age=600)
    for count in (2, 2, 1):
        (batch,) = process(str(inbox), tmp_path / "results", model, limit=2)
        assert batch.predicted == count
    first = batches(tmp_path / "results")[0]
    assert "old" in [file["image"] for file in first.files]


def test_an_empty_inbox_writes_nothing(model: Path, tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    assert process(str(tmp_path / "inbox"), tmp_path / "results", model) == []
    assert not (tmp_path / "results").exists()


def test_results_are_not_taken_for_new_images(model: Path, inbox: Path) -> None:
    with pytest.raises(InputError, match="is in the inbox"):
        process(str(inbox), inbox / "results", model)


def test_an_empty_word_is_not_the_current_folder(
    model: Path, inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a variable of the shell that is not set."""
    monkeypatch.chdir(inbox)
    with pytest.raises(InputError, match="INBOX is an empty word"):
        process("", tmp_path / "results", model)
    assert not (tmp_path / "results").exists()


def start_a_batch(inbox: Path, results: Path, model: Path) -> Path:
    """Leave a batch as a kill right before its rename does. Returns its working folder."""
    (batch,) = process(str(inbox), results, model)
    plan = {"name": batch.name, "inbox": str(inbox), "model": str(model), "bundle": batch.bundle}
    plan |= {"sha256": batch.sha256, "engine": "onnx", "last": 100}
    files = [(file["source"], file["image"]) for file in batch.files]
    (results / UNFINISHED).mkdir()
    (results / UNFINISHED / "plan.json").write_text(json.dumps(plan | {"files": files}))
    (results / LEDGER).unlink()
    return (results / batch.name).rename(results / UNFINISHED / batch.name)


def test_a_batch_keeps_its_bundle(model: Path, pipeline: Pipeline, inbox: Path, tmp_path: Path) -> None:
    """A killed batch ends with the bundle with which it began, if that is still there."""
    results, other = tmp_path / "results", pipeline.bundle("combined")
    working = start_a_batch(inbox, results, model)
    (working / BATCH_FILE).unlink()
    (working / ".progress.jsonl.partial").write_text("half")
    put(inbox / "late.png", (inbox / "image-000.png").read_bytes())
    first, second = process(str(inbox), results, other)
    assert first.sha256 != second.sha256
    assert (first.predicted, second.predicted) == (4, 1)
    assert_whole(results, 5)


def test_a_batch_whose_bundle_is_gone_starts_over(
    model: Path, pipeline: Pipeline, inbox: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    gone = Path(shutil.copytree(model, tmp_path / "gone"))
    working = start_a_batch(inbox, results, gone)
    (working / BATCH_FILE).unlink()
    (gone / BUNDLE_FILE).unlink()
    (batch,) = process(str(inbox), results, pipeline.bundle("combined"))
    assert "was started with another bundle" in capsys.readouterr().err
    assert batch.predicted == 4
    assert_whole(results, 4)


def test_drift_looks_at_the_last_images_of_all_batches(model: Path, tmp_path: Path) -> None:
    inbox, results = tmp_path / "inbox", tmp_path / "results"
    fill(inbox, chests(NEW, 8))
    (first,) = process(str(inbox), results, model, last=20)
    assert (first.drift.verdict, first.drift.reason) == ("none", "8 images are too few; 10 are needed")
    fill(inbox, chests(NEW, 22, seed=1), "more")
    (second,) = process(str(inbox), results, model, last=20)
    assert (second.drift.verdict, second.drift.images) == ("like Val", 20)
    fill(inbox, map(darker, chests(NEW, 15, seed=2)), "dark")
    (third,) = process(str(inbox), results, model, last=20)
    assert (third.drift.verdict, third.drift.images) == ("drifted", 20)
    assert "brightness" in [row.measure for row in third.drift.rows if row.drifted]
    assert Batch.read(results / third.name) == third


def test_an_older_bundle_gives_no_verdict(pipeline: Pipeline, inbox: Path, tmp_path: Path) -> None:
    (batch,) = process(str(inbox), tmp_path / "results", pipeline.bundle("combined"))
    assert batch.drift.describe().startswith("no verdict on drift: the bundle has no measures of Val images")


def test_an_inbox_on_s3(
    s3: S3Server, model: Path, inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    where, results = f"{s3.make_bucket()}/arriving", tmp_path / "results"
    assert process(f"s3://{where}", results, model) == []
    s3.files().put(f"{inbox}/", f"{where}/", recursive=True)
    (batch,) = process(f"s3://{where}", results, model)
    assert {file["source"] for file in batch.files} == {
        f"s3://{where}/{file.name}" for file in inbox.iterdir()
    }
    s3.files().put(f"{inbox}/image-000.png", f"{where}/image-001.png")
    (batch,) = process(f"s3://{where}", results, model)
    assert [file["image"] for file in batch.files] == ["image-001"]
    with pytest.raises(InputError, match="no such bucket"):
        process("s3://no-such-bucket-here/x", results, model)
