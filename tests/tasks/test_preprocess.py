import errno
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tasks.common.raw import KIND_FOLDERS, Kind, RawDataset
from tasks.download import download
from tasks.packed.reader import PackedSplit
from tasks.packed.writer import ArrayWriter
from tasks.preprocess import lung_correlation, preprocess
from tasks.settings.layout import Layout
from tasks.sources.open import open_source
from tasks.support.cli import InputError
from tests.helpers import ROOT, made, png
from tests.own import PAIRS, TABLE, write_pairs, write_table
from tests.pngs import GREY_ALPHA, RGB, make_png, with_alpha

TRAIN = "Infection Segmentation Data/Infection Segmentation Data/Train/COVID-19"


def file_of(folder: Path, kind: Kind) -> Path:
    """The only file of this kind among the COVID-19 Train images."""
    (path,) = (folder / TRAIN / KIND_FOLDERS[kind]).iterdir()
    return path


def packed(folder: Path, out: Path, size: int = 32, max_rejected: float = 0.5) -> pd.DataFrame:
    download(open_source(str(folder), Path()), out / "raw", str(folder))
    preprocess(out / "raw", out / "packed", size, max_rejected)
    return pd.read_csv(out / "packed" / "images.csv")


def test_packs_each_image_with_its_masks(kaggle_folder: Path, tmp_path: Path) -> None:
    table = packed(kaggle_folder, tmp_path)
    raw = RawDataset(tmp_path / "raw")
    assert list(table["id"]) == list(raw.manifest["id"])
    thumbnails = np.load(tmp_path / "packed" / "thumbnails.npy")
    assert len(thumbnails) == len(table)
    for place, (_, row) in enumerate(table.iterrows()):
        folder = tmp_path / "packed" / row["half"] / row["split"]
        original = {kind: raw.read(row["id"], kind) for kind in KIND_FOLDERS}
        for kind, pixels in original.items():
            array = np.load(folder / f"{kind}.npy", mmap_mode="r")
            assert array.dtype == np.uint8
            assert array.shape == (3, 32, 32)
            if kind == "image":
                expected = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR))
                np.testing.assert_array_equal(array[row["row"]], expected)
            else:
                shares = pixels.reshape(32, 2, 32, 2).mean(axis=(1, 3))
                np.testing.assert_allclose(array[row["row"]], shares, rtol=0, atol=1)
        # The mean of each 2x2 block; Pillow rounds after each of the two axes.
        means = original["image"].reshape(32, 2, 32, 2).mean(axis=(1, 3))
        np.testing.assert_allclose(thumbnails[place], means, rtol=0, atol=1)
        assert (row["height"], row["width"]) == (64, 64)
        assert row["lung_area"] == pytest.approx((original["lung"] > 0).mean(), abs=1e-6)
        assert row["infection_area"] == pytest.approx((original["infection"] > 0).mean(), abs=1e-6)
    assert (table["infection_area"] > 0).equals(table["class"] == "COVID-19")
    assert table["sha256"].is_unique
    assert (table["infection_outside_lung"] == 0).all()
    assert pd.read_csv(tmp_path / "packed" / "rejected.csv").empty


def test_original_size_is_not_resampled(kaggle_folder: Path, tmp_path: Path) -> None:
    row = packed(kaggle_folder, tmp_path, size=64).iloc[0]
    array = np.load(tmp_path / "packed/infection/Train/image.npy")[row["row"]]
    np.testing.assert_array_equal(array, RawDataset(tmp_path / "raw").read(row["id"], "image"))


def test_same_input_gives_identical_bytes(kaggle_folder: Path, tmp_path: Path) -> None:
    packed(kaggle_folder, tmp_path / "a")
    packed(kaggle_folder, tmp_path / "b")
    a, b = (sorted((tmp_path / n / "packed").rglob("*.*")) for n in "ab")
    assert [path.read_bytes() for path in a] == [path.read_bytes() for path in b]


def test_many_processes_give_the_result_of_one(
    kaggle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed(kaggle_folder, tmp_path / "whole")
    monkeypatch.setattr("tasks.preprocess.CHUNK", 1)
    monkeypatch.setattr("tasks.common.cores.available_cores", lambda: 3)
    packed(kaggle_folder, tmp_path / "split")
    whole, split = (sorted((tmp_path / n / "packed").rglob("*.*")) for n in ("whole", "split"))
    assert [path.name for path in whole] == [path.name for path in split]
    assert [path.read_bytes() for path in whole] == [path.read_bytes() for path in split]


def test_no_usable_image_is_an_error_for_any_limit(kaggle_folder: Path, tmp_path: Path) -> None:
    for path in kaggle_folder.rglob("images/*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="9 of 9 images cannot be used"):
        packed(kaggle_folder, tmp_path, max_rejected=1.0)


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims this size."""
    content = bytearray(png(np.zeros((1, 1), np.uint8)))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


GREY_MASK = png(np.full((64, 64), 7, np.uint8))
SMALL_MASK = png(np.zeros((32, 64), np.uint8))
BAD = {
    "empty": ("image", b"", "the image is an empty file"),
    "not a PNG": ("image", b"GIF89a" + bytes(50), "the image is a GIF file, not a PNG file"),
    "truncated": ("image", None, "the image is truncated"),
    "16 bit": ("image", png(np.zeros((64, 64), np.uint16)), "the image has 16 bits per channel, not 8"),
    "bomb": ("image", claiming(10_000, 8000), "the image is 10000x8000, more than 64 megapixels"),
    "bigger bomb": ("lung", claiming(2**31 - 1, 9), "the lung mask is 2147483647x9, more than 64 megapixels"),
    "mask in an alpha channel": (
        "infection",
        make_png(with_alpha(np.zeros((64, 64), np.uint8), 255 * np.eye(64, dtype=np.uint8)), GREY_ALPHA),
        "the infection mask is partly transparent; save it without transparency",
    ),
    "mask of 0 and 1": (
        "infection",
        png(np.eye(64, dtype=np.uint8)),
        "the infection mask is not binary: it contains 1 besides 0 and 255",
    ),
    "coloured mask": (
        "lung",
        make_png(np.full((64, 64, 3), (255, 0, 0)), RGB),
        "the lung mask is not binary: it contains 76 besides 0 and 255",
    ),
    "grey mask": ("lung", GREY_MASK, "the lung mask is not binary: it contains 7 besides 0 and 255"),
    "small mask": ("infection", SMALL_MASK, "the infection mask is 64x32 but the image 64x64"),
}


@pytest.mark.parametrize(("kind", "content", "reason"), BAD.values(), ids=BAD)
def test_unusable_image_is_excluded_with_its_reason(
    kaggle_folder: Path, tmp_path: Path, kind: Kind, content: bytes | None, reason: str
) -> None:
    path = file_of(kaggle_folder, kind)
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    table = packed(kaggle_folder, tmp_path)
    rejected = pd.read_csv(tmp_path / "packed" / "rejected.csv")
    assert len(table) == 8
    assert list(rejected["id"]) == [f"infection/Train/COVID-19/{path.stem}"]
    assert reason in rejected["reason"][0]
    assert np.load(tmp_path / "packed/infection/Train/image.npy").shape == (2, 32, 32)
    assert list(table["row"][table["split"] == "Train"]) == [0, 1]


def test_infection_outside_the_lung_is_measured(kaggle_folder: Path, tmp_path: Path) -> None:
    lung, infection = np.zeros((2, 64, 64), np.uint8)
    lung[:32], infection[24:40] = 255, 255
    for kind, mask in (("lung", lung), ("infection", infection)):
        file_of(kaggle_folder, kind).write_bytes(png(mask))
    table = packed(kaggle_folder, tmp_path)
    assert table["infection_outside_lung"].tolist() == [0.5] + 8 * [0]
    assert table["infection_area"][0] == 0.25


def test_lungs_correlate_with_the_mask_as_numpy_says(kaggle_folder: Path, tmp_path: Path) -> None:
    table = packed(kaggle_folder, tmp_path)
    raw = RawDataset(tmp_path / "raw")
    for _, row in table.iterrows():
        image, lung = (raw.read(row["id"], kind) for kind in ("image", "lung"))
        rows, columns = np.nonzero(lung)
        box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        expected = np.corrcoef(image[box].ravel(), lung[box].ravel())[0, 1]
        assert row["lung_correlation"] == pytest.approx(expected, abs=1e-6)
        assert lung_correlation(255 - image, lung > 0) == pytest.approx(-expected, abs=1e-9)
    assert (table["lung_correlation"] < -0.2).all()


def test_correlation_with_a_lung_mask_by_hand() -> None:
    lung = np.zeros((4, 4), bool)
    lung[1:3, 1] = lung[1, 2] = True  # in a box of four pixels, three are lung
    image = np.full((4, 4), 255, np.uint8)  # outside the box, nothing counts
    image[1:3, 1:3] = [[0, 100], [200, 100]]
    assert lung_correlation(image, lung) == 0.0
    image[1:3, 1:3] = [[0, 0], [0, 255]]
    assert lung_correlation(image, lung) == -1.0
    assert lung_correlation(255 - image, lung) == 1.0


def test_correlation_with_a_lung_mask_is_undefined_for_constants() -> None:
    grey, image = np.full((4, 4), 9, np.uint8), np.arange(16, dtype=np.uint8).reshape(4, 4)
    lung = np.eye(4) > 0
    assert lung_correlation(image, ~(lung | ~lung)) is None  # no lung
    assert lung_correlation(image, lung | ~lung) is None  # only lung
    assert lung_correlation(grey, lung) is None


def test_tables_are_the_same_for_every_image_size(kaggle_folder: Path, tmp_path: Path) -> None:
    packed(kaggle_folder, tmp_path / "a", size=32)
    packed(kaggle_folder, tmp_path / "b", size=48)
    for name in ("images.csv", "rejected.csv", "thumbnails.npy"):
        a, b = (tmp_path / folder / "packed" / name for folder in "ab")
        assert a.read_bytes() == b.read_bytes()


PARAMS = str(ROOT / "params.yaml")


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with the project's packages."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("damage", ["truncated", "rotten"])
def test_damaged_shard_is_a_one_line_error(kaggle_folder: Path, tmp_path: Path, damage: str) -> None:
    download(open_source(str(kaggle_folder), Path()), tmp_path / "raw", "here")
    shard = tmp_path / "raw" / "infection-train.zip"
    content = bytearray(shard.read_bytes())
    if damage == "truncated":
        del content[-100:]
    else:
        content[200] ^= 0xFF
    shard.write_bytes(content)
    done = run_python(tmp_path, "-m", "tasks.preprocess", PARAMS, "raw", "packed", "--image-size", "32")
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: raw/infection-train\.zip: this file is damaged \(.+\); to create it again, run: "
        r"dvc repro --force download\n",
        done.stderr,
    ), done.stderr
    assert not (tmp_path / "packed").exists()


def test_workers_do_not_import_torch() -> None:
    # torch takes seconds to import, and hundreds of megabytes per process.
    code = "import sys, tasks.preprocess; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_missing_mask_is_named(kaggle_folder: Path, tmp_path: Path) -> None:
    path = file_of(kaggle_folder, "infection")
    path.unlink()
    packed(kaggle_folder, tmp_path)
    assert pd.read_csv(tmp_path / "packed/rejected.csv")["reason"][0] == (
        "the infection mask is missing in 'infection masks'"
    )


def test_missing_infection_mask_of_a_control_is_empty(
    kaggle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mask,) = (kaggle_folder / TRAIN.replace("COVID-19", "Normal") / KIND_FOLDERS["infection"]).iterdir()
    before = packed(kaggle_folder, tmp_path / "before")
    mask.unlink()
    after = packed(kaggle_folder, tmp_path / "after")
    assert (
        "infection half: controls without an infection mask, which counts as empty: 1\n"
        in capsys.readouterr().out
    )
    pd.testing.assert_frame_equal(before, after)
    assert made(tmp_path / "before/packed") == made(tmp_path / "after/packed")
    image_id = f"infection/Train/Normal/{mask.stem}"
    lesions = RawDataset(tmp_path / "after/raw").read(image_id, "infection")
    assert lesions.shape == (64, 64) and not lesions.any()


def test_too_many_unusable_images_are_an_error(kaggle_folder: Path, tmp_path: Path) -> None:
    file_of(kaggle_folder, "image").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"1 of 9 images cannot be used, more than .* = 0\.1 allows.*empty file"
    ):
        packed(kaggle_folder, tmp_path, max_rejected=0.1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "raw"]


def test_full_disk_is_a_one_line_error(kaggle_folder: Path, tmp_path: Path) -> None:
    # A file size limit makes a write fail like a full disk, with another error number.
    download(open_source(str(kaggle_folder), Path()), tmp_path / "raw", "here")
    code = (
        "import resource, signal, sys\n"
        "from tasks.support.cli import stage_main\n"
        "from tasks.preprocess import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "stage_main(main)\n"
    )
    done = run_python(tmp_path, "-c", code, PARAMS, "raw", "out/packed", "--image-size", "256")
    assert done.returncode == 1
    assert done.stderr == "error: out/packed: File too large\n"
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system requires root")
def test_real_full_disk(kaggle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(tmp_path / "disk")], check=False
    )
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted on this machine")
    try:
        download(open_source(str(kaggle_folder), Path()), tmp_path / "raw", "here")
        with pytest.raises(OSError, match="No space left on device") as error:
            preprocess(tmp_path / "raw", tmp_path / "disk" / "packed", 256, 0.0)
        assert error.value.errno == errno.ENOSPC
        assert error.value.filename == str(tmp_path / "disk" / "packed")
        assert list((tmp_path / "disk").iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def test_array_writer_writes_the_same_file_as_numpy(tmp_path: Path) -> None:
    items = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
    with ArrayWriter(tmp_path / "a.npy", (2, 2)) as writer:
        for item in items:
            writer.append(item)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), items)
    np.save(tmp_path / "b.npy", items)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


# --- images of one's own ------------------------------------------------------------------------------------


def own(folder: Path, layout: dict[str, object], out: Path) -> pd.DataFrame:
    source = open_source(str(folder), Path(), own_layout=True)
    download(source, out / "raw", "here", layout=Layout.model_validate(layout))
    preprocess(out / "raw", out / "packed", 32, 0.5)
    return pd.read_csv(out / "packed" / "images.csv")


def test_masks_may_mark_with_another_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_pairs(tmp_path / "pairs", each=1)
    ones = own(folder, PAIRS, tmp_path / "ones")
    assert "lung half: the lung masks mark with 1 instead of 255" in capsys.readouterr().out
    for path in folder.glob("*_mask.png"):
        path.write_bytes(png(np.asarray(Image.open(path)) * np.uint8(255)))
    assert own(folder, PAIRS, tmp_path / "full").equals(ones)
    for path in (tmp_path / "full" / "packed").rglob("*.npy"):
        same = tmp_path / "ones" / "packed" / path.relative_to(tmp_path / "full" / "packed")
        assert path.read_bytes() == same.read_bytes()
    assert capsys.readouterr().out.count("instead of 255") == 0


def test_a_mask_that_marks_with_another_value_than_the_others_is_excluded(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "pairs", each=1)
    path = folder / "chest3_mask.png"
    path.write_bytes(png(np.asarray(Image.open(path)) * np.uint8(2)))
    assert len(own(folder, PAIRS, tmp_path)) == 8
    (reason,) = pd.read_csv(tmp_path / "packed" / "rejected.csv")["reason"]
    assert reason == "the lung mask is not binary: it contains 2 besides 0 and 1"


def test_a_mask_in_jpeg_is_excluded(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "pairs", each=1)
    shutil.copyfile(folder / "chest3.jpg", folder / "chest3_mask.png")
    own(folder, PAIRS, tmp_path)
    (reason,) = pd.read_csv(tmp_path / "packed" / "rejected.csv")["reason"]
    assert reason == "the lung mask is a JPEG file, whose compression changes pixels; save masks as PNG"


def test_without_lung_masks_nothing_is_said_of_lungs(tmp_path: Path) -> None:
    table = own(write_table(tmp_path / "table"), TABLE, tmp_path)
    assert table[["lung_area", "lung_correlation", "infection_outside_lung"]].isna().all(axis=None)
    assert (table["infection_area"] > 0).equals(table["class"] == "COVID-19")
    arrays = {path.name for path in (tmp_path / "packed" / "infection" / "Train").iterdir()}
    assert arrays == {"image.npy", "infection.npy"}
    split = PackedSplit(tmp_path / "packed", "infection", "Train", ("lung",))
    with pytest.raises(InputError, match="the dataset has no lung masks; change targets"):
        split.masks()
