import csv
import io
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from importlib.metadata import distribution, packages_distributions, requires
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from packaging.requirements import Requirement
from PIL import Image

import tasks.prediction.run
from tasks.common.raw import RawDataset
from tasks.prediction.inputs import PROGRESS
from tasks.prediction.run import Options, predict
from tasks.support.cli import InputError
from tasks.support.locks import alone_in
from tests.bundles import Pipeline
from tests.dicoms import SECRETS, make_dicom, twelve_bit
from tests.helpers import ROOT, made, png

TORCH = Options(engine="torch")


@pytest.fixture(scope="module")
def xrays(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Test images as PNG files, named by their ids."""
    folder = tmp_path_factory.mktemp("xrays")
    raw = RawDataset(pipeline.raw)
    for image_id in raw.manifest["id"][raw.manifest["split"] == "Test"]:
        file = folder / f"{image_id}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        content = raw.read_bytes(image_id, "image")
        assert content
        file.write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def predicted(pipeline: Pipeline, xrays: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predicted") / "out"
    predict([str(xrays)], pipeline.bundle("combined"), out, Options(ensemble=True))
    return out


def table(out: Path) -> list[dict[str, str]]:
    with (out / "images.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def masks(out: Path) -> dict[str, np.ndarray]:
    return {
        file.relative_to(out / "masks").with_suffix("").as_posix(): np.asarray(Image.open(file))
        for file in (out / "masks").rglob("*.png")
    }


def evaluated(pipeline: Pipeline, training: str) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(pipeline.out("evaluation", training) / "predictions.zip") as archive:
        return {
            name.removesuffix(".png"): np.asarray(Image.open(io.BytesIO(archive.read(name))))
            for name in archive.namelist()
        }


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, mask in expected.items():
        np.testing.assert_array_equal(found[name], mask, strict=True)


@pytest.mark.parametrize("experiment", ["combined", "two_step_infection"])
@pytest.mark.parametrize("options", [TORCH, Options()], ids=["torch", "onnx"])
def test_masks_and_shares_are_those_of_evaluate(
    experiment: str, options: Options, pipeline: Pipeline, xrays: Path, tmp_path: Path
) -> None:
    summary = predict([str(xrays)], pipeline.bundle(experiment), tmp_path, options)
    expected = evaluated(pipeline, f"{experiment}-seed0")
    assert any(mask.any() for name, mask in expected.items() if name.startswith("infection"))
    assert_same(masks(tmp_path), expected)
    assert (summary.failed, summary.predicted) == ([], len(list(xrays.rglob("*.png"))))
    rows = pd.read_csv(pipeline.out("evaluation", f"{experiment}-seed0") / "images.csv")
    rows = rows[(rows["split"] == "Test") & (rows["target"] == "infection")].set_index("id")
    for row in table(tmp_path):
        share = float(row["infected_share"] or 0)
        assert share == pytest.approx(rows.loc[row["image"], "predicted_share"], abs=1e-7)


def test_every_format_gives_the_same_masks(
    pipeline: Pipeline, xrays: Path, predicted: Path, tmp_path: Path
) -> None:
    """PNG in an archive, inverted DICOM of 12 bits, TIFF and BMP."""
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in xrays.rglob("*.png"):
            archive.write(file, file.relative_to(xrays))
            dicom = tmp_path / "dicom" / file.relative_to(xrays).with_suffix(".dcm")
            dicom.parent.mkdir(parents=True, exist_ok=True)
            dicom.write_bytes(twelve_bit(np.asarray(Image.open(file)), PixelSpacing=["0.5", "2"]))
            for ending in ("tif", "bmp"):
                copy = tmp_path / ending / file.relative_to(xrays).with_suffix(f".{ending}")
                copy.parent.mkdir(parents=True, exist_ok=True)
                Image.open(file).save(copy)
    for source in ("all.zip", "dicom", "tif", "bmp"):
        out = tmp_path / f"of {source}"
        predict([str(tmp_path / source)], pipeline.bundle("combined"), out, Options())
        assert_same(masks(out), masks(predicted))
    assert {row["format"] for row in table(tmp_path / "of tif")} == {"TIFF"}
    for row in table(tmp_path / "of dicom"):
        assert float(row["lung_mm2"]) == float(row["lung_pixels"])
        assert (row["row_spacing_mm"], row["column_spacing_mm"]) == ("0.5", "2")


def test_masks_have_the_size_of_the_image(pipeline: Pipeline, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "wide.png").write_bytes(png(rng.integers(0, 256, (50, 333), np.uint8)))
    wide = rng.integers(0, 4096, (301, 40), np.uint16)
    (tmp_path / "tall.dcm").write_bytes(make_dicom(wide, 12))
    (tmp_path / "dot.png").write_bytes(png(np.zeros((1, 1), np.uint8)))
    out = tmp_path / "out"
    predict([str(tmp_path)], pipeline.bundle("combined"), out, Options(probabilities=True))
    sizes = {"wide": (50, 333), "tall": (301, 40), "dot": (1, 1)}
    for name, size in sizes.items():
        for target in ("infection", "lung"):
            assert masks(out)[f"{target}/{name}"].shape == size
            probability = np.asarray(Image.open(out / "probabilities" / target / f"{name}.png"))
            assert (probability.dtype, probability.shape) == (np.uint16, size)


def test_the_folder_has_all_files(predicted: Path, xrays: Path) -> None:
    names = [file.relative_to(xrays).with_suffix("").as_posix() for file in sorted(xrays.rglob("*.png"))]
    assert [row["image"] for row in table(predicted)] == names
    found = set(made(predicted)) | {PROGRESS}
    expected = {"images.csv", "index.html", "run.json", PROGRESS}
    expected |= {f"masks/{target}/{name}.png" for target in ("lung", "infection") for name in names}
    assert found == expected | {f"overlays/{name}.jpg" for name in names}
    run = json.loads((predicted / "run.json").read_text())
    assert (run["images"], run["predicted"], run["failed"]) == (len(names), len(names), [])
    assert run["bundle"]["name"] == "combined"
    assert run["software"]["onnxruntime"]
    assert "torch" not in run["software"]
    page = (predicted / "index.html").read_text()
    assert page.count("<img ") == len(names)
    assert "Research use only" in page
    assert "Scores on the Test images of its own dataset: infection: Dice 0." in page
    unmarked = [row for row in table(predicted) if row["infection_pixels"] == "0"]
    assert page.count("no infection marked, ") == len(unmarked)
    assert "0.0% of the lung infected" not in page


def test_an_ensemble_has_an_uncertainty(predicted: Path) -> None:
    values = [float(row["uncertainty"]) for row in table(predicted)]
    assert all(0 < value < 0.5 for value in values)


def test_an_overlay_shows_the_masks(predicted: Path, xrays: Path) -> None:
    name, mask = next((n, m) for n, m in masks(predicted).items() if n.startswith("infection") and m.any())
    overlay = np.asarray(Image.open(predicted / "overlays" / f"{name.partition('/')[2]}.jpg"), float)
    reddish = overlay[..., 0] - overlay[..., 2]
    assert reddish[mask].mean() > reddish[~mask].mean() + 20


def count_images(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of images that pass through the networks from now on."""
    seen: list[int] = []
    forward = tasks.prediction.run.Predictor.forward

    def counted(self: Any, images: np.ndarray) -> Any:
        seen.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(tasks.prediction.run.Predictor, "forward", counted)
    return seen


def test_an_interrupted_run_continues(
    pipeline: Pipeline, xrays: Path, predicted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, options = pipeline.bundle("combined"), Options(ensemble=True)
    files = sorted(map(str, xrays.rglob("*.png")))
    some = [Path(file) for file in files[:4]]
    predict([str(xrays)], bundle, tmp_path, options)
    lines = (tmp_path / PROGRESS).read_text().splitlines(keepends=True)
    names = [json.loads(line)["image"] for line in lines[1:]]
    # As a kill leaves it: three images are finished, the fourth has an unfinished line.
    (tmp_path / PROGRESS).write_text("".join(lines[:4]) + lines[4][:50])
    (tmp_path / "masks" / "lung" / f"{names[1]}.png").unlink()
    seen = count_images(monkeypatch)
    predict([str(xrays)], bundle, tmp_path, options)
    assert sum(seen) == len(files) - 2
    left = {name: content for name, content in made(tmp_path).items() if name != "run.json"}
    assert left == {name: content for name, content in made(predicted).items() if name != "run.json"}
    assert some


def test_a_changed_image_is_predicted_again(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(png(np.zeros((20, 20), np.uint8)))
    inputs, out = [str(tmp_path / "*.png")], tmp_path / "out"
    predict(inputs, pipeline.bundle("combined"), out, Options())
    (tmp_path / "a.png").write_bytes(png(np.ones((30, 20), np.uint8)))
    seen = count_images(monkeypatch)
    predict(inputs, pipeline.bundle("combined"), out, Options())
    assert seen == [1]
    assert [row["height"] for row in table(out)] == ["30", "20"]


def test_an_image_that_became_unreadable_leaves_no_mask_behind(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(np.zeros((20, 20), np.uint8)))
    (tmp_path / "b.png").write_bytes(png(np.zeros((20, 20), np.uint8)))
    inputs, out = [str(tmp_path / "*.png")], tmp_path / "out"
    predict(inputs, pipeline.bundle("combined"), out, Options())
    (tmp_path / "a.png").write_bytes(b"damaged")
    summary = predict(inputs, pipeline.bundle("combined"), out, Options())
    assert (summary.predicted, len(summary.failed)) == (1, 1)
    assert masks(out).keys() == {"infection/b", "lung/b"}
    assert [file.name for file in (out / "overlays").iterdir()] == ["b.jpg"]


def test_one_run_at_a_time_writes_to_a_folder(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(np.zeros((20, 20), np.uint8)))
    inputs, bundle, out = [str(tmp_path / "a.png")], pipeline.bundle("combined"), tmp_path / "out"
    out.mkdir()
    with alone_in(out), pytest.raises(InputError, match="out: another run is writing there; name another"):
        predict(inputs, bundle, out, Options())
    assert not list(out.iterdir())
    assert predict(inputs, bundle, out, Options()).predicted == 1
    assert predict(inputs, bundle, out, Options()).predicted == 1


def test_a_bad_name_ends_no_run(pipeline: Pipeline, tmp_path: Path) -> None:
    """Names that are not UTF-8, have 255 bytes, or hold controls. The results are within the input."""
    for name in ("ok.png", os.fsdecode(b"M\xfcller.png"), "肺" * 83 + ".png", "a\nb\x1b.png"):
        (tmp_path / name).write_bytes(png(np.zeros((20, 20), np.uint8)))
    (tmp_path / os.fsdecode(b"bad\xff\n.png")).write_bytes(b"damaged")
    for _ in range(2):
        summary = predict([str(tmp_path)], pipeline.bundle("combined"), tmp_path / "out", Options())
        assert (summary.predicted, len(summary.failed)) == (4, 1)
    names = {"ok", "M_ller", "肺" * 66, "a_b_"}
    assert {row["image"] for row in table(tmp_path / "out")} == names
    assert masks(tmp_path / "out").keys() == {
        f"{target}/{n}" for n in names for target in ("infection", "lung")
    }
    assert "bad\\udcff\\n.png" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_nothing_of_others_is_overwritten(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(np.zeros((20, 20), np.uint8)))
    inputs, bundle = [str(tmp_path / "a.png")], pipeline.bundle("combined")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("of the user")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="holds other files; name a new or empty folder"):
            predict(inputs, bundle, tmp_path / "mine", Options(overwrite=overwrite))
    assert made(tmp_path / "mine") == {"notes.txt": b"of the user"}
    with pytest.raises(InputError, match="not a folder"):
        predict(inputs, bundle, tmp_path / "a.png", Options())
    predict(inputs, bundle, tmp_path / "out", Options())
    (tmp_path / "out" / "notes.txt").write_text("of the user")
    with pytest.raises(InputError, match="another bundle or other options"):
        predict(inputs, bundle, tmp_path / "out", Options(probabilities=True))
    with pytest.raises(InputError, match="another bundle or other options"):
        predict(inputs, pipeline.bundle("two_step_infection"), tmp_path / "out", Options())
    predict(inputs, pipeline.bundle("two_step_infection"), tmp_path / "out", Options(overwrite=True))
    assert masks(tmp_path / "out").keys() == {"infection/a"}
    assert (tmp_path / "out" / "notes.txt").read_text() == "of the user"


def hostile_files(folder: Path, count: int) -> Sequence[Path]:
    """Broken files with a patient's name in their names and contents."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (24, 24), np.uint8)
    whole = [make_dicom(pixels), twelve_bit(pixels), png(pixels)]
    others = [
        b"",
        b"Planted^Patricia",
        make_dicom(pixels, Modality="CT"),
        make_dicom(pixels, Modality="PLANTED"),
        make_dicom(pixels, Rows=60000, Columns=60000),
        make_dicom(np.stack([pixels] * 2), NumberOfFrames=2),
        make_dicom(pixels, BitsStored=40, BitsAllocated=64),
        b"\0" * 128 + b"DICM" + rng.bytes(3000),
    ]
    files = []
    for index in range(count):
        content = others[index % 8] if index % 2 else whole[index % 3][: 140 + 7 * index]
        file = folder / f"Planted-Patricia-{index}.{'png' if index % 3 == 2 else 'dcm'}"
        file.write_bytes(content)
        files.append(file)
    return files


@pytest.mark.parametrize("pseudonyms", [False, True])
def test_bad_files_among_good_ones(pseudonyms: bool, pipeline: Pipeline, tmp_path: Path) -> None:
    """Each good file has a result, each bad one a reason; no output has the planted name."""
    folder = tmp_path / "in"
    folder.mkdir()
    bad = hostile_files(folder, 50)
    for index in range(50):
        pixels = np.full((24, 24), 5 * index, np.uint8)
        file = folder / f"Planted-Patricia-good-{index}"
        content = png(pixels) if index % 2 else make_dicom(pixels, PatientComments="Planted")
        file.with_suffix(".png" if index % 2 else ".dcm").write_bytes(content)
    arguments = [
        "predict", str(folder), "--model", str(pipeline.bundle("combined")), "--out", str(tmp_path / "out")
    ]  # fmt: skip
    if pseudonyms:
        arguments += ["--pseudonyms", str(tmp_path / "key")]
    code = "from flows.commands.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.count("not predicted: ") == len(bad)
    assert done.stderr.splitlines()[-1].startswith("error: 50 images could not be predicted; see ")
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (run["predicted"], len(run["failed"])) == (50, 50)
    assert len(table(tmp_path / "out")) == 50
    texts = [done.stdout.encode(), done.stderr.encode(), *made(tmp_path / "out").values()]
    texts += [(tmp_path / "out" / PROGRESS).read_bytes()]
    texts += [file.relative_to(tmp_path).as_posix().encode() for file in (tmp_path / "out").rglob("*")]
    secrets = SECRETS if pseudonyms else ("Planted^", *SECRETS[2:])
    for secret in secrets:
        assert not [text for text in texts if secret.encode() in text], secret


def test_pseudonyms_depend_on_the_key_alone(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "jane doe.png").write_bytes(png(np.zeros((20, 20), np.uint8)))
    inputs, bundle = [str(tmp_path / "jane doe.png")], pipeline.bundle("combined")
    names = []
    for out, key in (("a", "key"), ("b", "key"), ("c", "other")):
        predict(inputs, bundle, tmp_path / out, Options(pseudonyms=tmp_path / key))
        (row,) = table(tmp_path / out)
        names.append(row["image"])
        assert row["source"] == row["image"]
    assert names[0] == names[1] != names[2]
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
    for name in ("a", "m", "z"):
        (tmp_path / f"{name}.png").write_bytes(png(np.zeros((20, 20), np.uint8)))
    predict([str(tmp_path / "[amz].png")], bundle, tmp_path / "e", Options(pseudonyms=tmp_path / "key"))
    listed = [row["image"] for row in table(tmp_path / "e")]
    assert listed == sorted(listed), "the order of the names would tell which is which"
    (tmp_path / "short").write_text("abc")
    with pytest.raises(InputError, match="needs at least 32 bytes"):
        predict(inputs, bundle, tmp_path / "d", Options(pseudonyms=tmp_path / "short"))
    assert not (tmp_path / "d").exists()


def test_predicting_imports_neither_torch_nor_orchestrators(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(np.zeros((20, 20), np.uint8)))
    (tmp_path / "b.dcm").write_bytes(make_dicom(np.zeros((20, 20), np.uint8)))
    code = """if True:
        import sys
        from flows.commands.cli import main
        try:
            main()
        finally:
            loaded = {"torch", "pandas", "prefect", "dvc", "onnx"} & set(sys.modules)
            assert not loaded, loaded
            files = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
            found = {name.partition(".")[0] for name, file in files.items() if "site-packages" in file}
            print("loaded", *found)
    """
    command = ["predict", str(tmp_path / "a.png"), str(tmp_path / "b.dcm")]
    options = ["--model", str(pipeline.bundle("combined")), "--out", str(tmp_path / "out")]
    program = [sys.executable, "-c", code, *command, *options]
    done = subprocess.run(program, cwd=ROOT, check=True, capture_output=True, text=True)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("loaded "))
    of_module = packages_distributions()
    found = {name for module in line.split()[1:] for name in of_module.get(module, ())}
    assert {"numpy", "onnxruntime", "pydantic"} <= found
    optional = {"charset-normalizer", "ruamel.yaml.clib", "setuptools"}  # used where they are installed
    assert found <= small_install() | optional


def small_install() -> set[str]:
    """The packages that are installed without the extra `pipeline`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: set[str] = set()
    waiting = [Requirement(line) for line in project["dependencies"]]
    while waiting:
        one = waiting.pop()
        if one.name not in found and (one.marker is None or one.marker.evaluate({"extra": ""})):
            found.add(one.name)
            waiting += [Requirement(line) for line in requires(one.name) or []]
    return {distribution(name).name for name in found}


@pytest.mark.parametrize(
    "pixels",
    [
        np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8),
        np.zeros((64, 64), np.uint8),
        np.full((64, 64), 255, np.uint8),
    ],
    ids=["noise", "black", "white"],
)
def test_images_unlike_the_training_images_are_warned_of(
    pixels: np.ndarray, pipeline: Pipeline, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png(pixels))
    out = tmp_path / "out"
    summary = predict([str(tmp_path / "a.png")], pipeline.bundle("combined"), out, Options())
    assert summary.unusual == 1
    assert table(out)[0]["warnings"].startswith("unlike the training images (")
    page = (out / "index.html").read_text()
    assert "<strong>Warning:</strong> unlike the training images (" in page
    assert "1 with warnings: do not rely on its masks." in page
