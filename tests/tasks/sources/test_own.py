"""What a layout of one's own finds in a source, and what it leaves out."""

import zipfile
from pathlib import Path
from typing import Any

import pytest

from tasks.common.raw import CLASSES, SPLITS
from tasks.settings.layout import Layout
from tasks.sources.listing import fingerprint, list_files
from tasks.sources.open import open_source
from tasks.sources.own import Found, compiled, describe, find, hashed, without_group
from tasks.support.cli import InputError
from tests.helpers import zipped

NAMED: dict[str, Any] = {
    "images": "{split}/{class}/{name}.png",
    "lung": "{split}/{class}/{name}_lung.png",
    "classes": {"ill": "COVID-19", "well": "Normal"},
}
FILES = [f"{split}/ill/{number}.png" for split in ("train", "VAL", "Test") for number in (1, 2)]
DRAWN: dict[str, Any] = {
    "images": "images/{name}.png",
    "infection": "masks/{name}.png",
    "classes": "COVID-19",
    "splits": {"val": 0.25, "test": 0.25},
}


def write(folder: Path, *names: str, content: str = "x") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def pairs(folder: Path, *names: str) -> Path:
    """Images and masks of `DRAWN`."""
    return write(folder, *(f"{kind}/{name}.png" for name in names for kind in ("images", "masks")))


def search(source: Path, layout: dict[str, Any], where: str = "here") -> Found:
    return find(open_source(str(source), Path(), own_layout=True), where, Layout.model_validate(layout))


def ids(found: Found) -> set[str]:
    return {image.id for image in found.images}


def reasons(found: Found) -> dict[str, tuple[int, str]]:
    return {group.reason: (group.number, group.first) for group in found.left_out}


def test_a_placeholder_takes_as_little_as_possible() -> None:
    match = compiled("{group}_{name}.png").fullmatch("p1_a_b.PNG")
    assert match and match.groupdict() == {"group": "p1", "name": "a_b"}
    assert compiled("{name}/{name}_*.png").fullmatch("a/a_seg.png")
    assert not compiled("{name}/{name}_*.png").fullmatch("a/b_seg.png")
    assert not compiled("{name}.png").fullmatch("folder/a.png")


def test_splits_and_classes_are_named_by_folders(tmp_path: Path) -> None:
    write(tmp_path / "d", *FILES, *(name.replace(".png", "_lung.png") for name in FILES))
    found = search(tmp_path / "d", NAMED)
    assert ids(found) == {f"lung/{split}/COVID-19/{number}" for split in SPLITS for number in (1, 2)}
    assert all(files.keys() == {"image", "lung"} for files in found.images.values())
    assert found.left_out == [] and found.groups is None
    assert list(describe(found, Layout.model_validate(NAMED))) == [
        "6 images with lung mask, as the lung half:",
        "  Train: 2 COVID-19",
        "  Val: 2 COVID-19",
        "  Test: 2 COVID-19",
    ]


def test_what_is_not_taken_is_counted_with_its_reason(tmp_path: Path) -> None:
    write(tmp_path / "d", *FILES, *(name.replace(".png", "_lung.png") for name in FILES))
    write(tmp_path / "d", "Test/ill/3.png", "Test/well/4_lung.png", "Test/dead/5.png", "Test/dead/5_lung.png")
    write(tmp_path / "d", "extra/ill/6.png", "README.txt", ".DS_Store", "a/b/c/d.png")
    assert reasons(search(tmp_path / "d", NAMED)) == {
        "fits no pattern of data.layout": (2, "README.txt"),
        "an image without a lung mask": (1, "Test/ill/3.png"),
        "a lung mask without an image": (1, "Test/well/4_lung.png"),
        "'dead' is none of the classes ill, well, COVID-19, Non-COVID, Normal": (1, "Test/dead/5.png"),
        "a lung mask of an image that is left out": (1, "Test/dead/5_lung.png"),
        "'extra' is none of the splits Train, Val, Test": (1, "extra/ill/6.png"),
        "hidden, or made by a system": (1, ".DS_Store"),
    }


def test_a_zip_of_the_folder_and_the_folder_are_the_same_dataset(tmp_path: Path) -> None:
    folder = pairs(tmp_path / "d", *"abcdefgh")
    zipped(folder, tmp_path / "plain.zip")
    zipped(folder, tmp_path / "nested.zip", prefix="export 1/")
    layout = Layout.model_validate(DRAWN)
    prints = set()
    for name in ("d", "plain.zip", "nested.zip"):
        source = open_source(str(tmp_path / name), Path(), own_layout=True)
        listing = list_files(source, find(source, "here", layout).images)
        assert listing is not None
        prints.add(fingerprint(listing))
    assert len(prints) == 1


def test_the_fingerprint_sees_other_splits(tmp_path: Path) -> None:
    source = open_source(str(pairs(tmp_path / "d", *"abcdefgh")), Path(), own_layout=True)
    prints = set()
    for seed in (0, 1, 2):
        layout = Layout.model_validate(DRAWN | {"splits": {"seed": seed, "val": 0.25, "test": 0.25}})
        listing = list_files(source, find(source, "here", layout).images)
        assert listing is not None
        prints.add(fingerprint(listing))
    assert len(prints) == 3


ERRORS: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "no image": (DRAWN, ["other/a.png"], "no file fits data.layout.images, 'images/{name}.png'"),
    "no mask": (DRAWN, ["images/a.png", "mask/a.png"], "no file fits data.layout.infection"),
    "the same name twice": (
        DRAWN | {"images": "*/{name}.*", "infection": "{name}.png"},
        ["x/a.png", "y/a.png", "a.png"],
        "'x/a.png' and 'y/a.png' are the same image",
    ),
    "two masks": (
        DRAWN | {"infection": "masks*/{name}.png"},
        ["images/a.png", "masks1/a.png", "masks2/a.png"],
        "are both the infection mask of 'images/a.png'",
    ),
    "a mask for several images": (
        DRAWN | {"images": "{class}/{name}.png", "classes": "Normal"},
        ["x/a.png", "y/a.png", "masks/b.png", "masks/a.png"],
        "the infection mask 'masks/a.png' fits several images",
    ),
    "a mask of both kinds": (
        DRAWN | {"lung": "masks/{name}*.png"},
        ["images/a.png", "masks/a.png"],
        "fits the patterns of lung and infection masks",
    ),
    "an empty split": (
        NAMED,
        ["train/ill/1.png", "train/ill/1_lung.png", "test/ill/1.png", "test/ill/1_lung.png"],
        r"no image is in Val (Train 1, Val 0, Test 1)",
    ),
    "a name with a control character": (DRAWN, ["images/a\n.png"], "rename the file"),
}


@pytest.mark.parametrize(("layout", "files", "line"), ERRORS.values(), ids=ERRORS)
def test_what_cannot_be_right_is_a_one_line_error(
    tmp_path: Path, layout: dict[str, Any], files: list[str], line: str
) -> None:
    with pytest.raises(InputError) as error:
        search(write(tmp_path / "d", *files), layout)
    assert line in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    pairs(tmp_path / "d", *"abcdefgh")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "d" / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="this link points outside"):
        search(tmp_path / "d", DRAWN)


def test_only_controls_need_no_infection_mask(tmp_path: Path) -> None:
    layout = DRAWN | {"images": "{class}/{name}.png", "classes": {"ill": "COVID-19", "well": "Normal"}}
    names = [f"{word}/{number}{word}.png" for word in ("ill", "well") for number in range(1, 7)]
    masks = [f"masks/{number}ill.png" for number in range(1, 6)]
    found = search(write(tmp_path / "d", *names, *masks, "masks/1well.png"), layout)
    assert reasons(found) == {"an image without an infection mask": (1, "ill/6ill.png")}
    assert sorted(kind for files in found.images.values() for kind in files).count("infection") == 6
    assert len(found.images) == 11
    assert found.notes == ("controls without an infection mask, which counts as empty: 5",)


# --- groups -------------------------------------------------------------------------------------------------

PATIENTS: dict[str, Any] = DRAWN | {"images": "{group}/{name}.png", "infection": "{group}/mask/{name}.png"}


def test_groups_stay_together_and_their_names_stay_out(tmp_path: Path) -> None:
    names = [
        f"Doe-{patient}/{folder}{number}.png"
        for patient in range(12)
        for number in (1, 2)
        for folder in ("", "mask/")
    ]
    found = search(write(tmp_path / "d", *names, "Doe-3/3.png"), PATIENTS)
    assert found.groups == (12, 0)
    split_of: dict[str, set[int]] = {}
    for image in found.images:
        split_of.setdefault(image.name.partition("-")[0], set()).add(image.split)
    assert len(split_of) == 12 and all(len(splits) == 1 for splits in split_of.values())
    assert reasons(found) == {"an image without an infection mask": (1, f"{hashed('Doe-3')}/3.png")}
    said = [*describe(found, Layout.model_validate(PATIENTS)), *map(str, found.left_out), *ids(found)]
    assert not [line for line in said if "Doe" in line]
    assert "12 groups: each has all of its images in one split" in said


def test_errors_name_no_group(tmp_path: Path) -> None:
    write(tmp_path / "d", "Doe/1.png", "Doe/mask/1.png", "Doe/mask/1.PNG")
    with pytest.raises(InputError, match=f"'{hashed('Doe')}/1.png'") as error:
        search(tmp_path / "d", PATIENTS)
    assert "Doe" not in str(error.value)
    with pytest.raises(InputError, match=r"a file that is there: '\*\.dcm'") as error:
        search(write(tmp_path / "e", "Doe/scan.dcm"), PATIENTS)
    assert "Doe" not in str(error.value)


def test_a_group_within_a_name_is_replaced_too(tmp_path: Path) -> None:
    layout = PATIENTS | {"images": "{group}/{name}.png", "infection": "{group}/mask/{name}.png"}
    names = [f"{i}7/{folder}{i}7_view.png" for i in range(1, 9) for folder in ("", "mask/")]
    found = search(write(tmp_path / "d", *names), layout)
    assert {image.name for image in found.images} == {
        f"{hashed(f'{i}7')}-{hashed(f'{i}7')}_view" for i in range(1, 9)
    }
    assert without_group("17_x/a17/17", "17") == f"{hashed('17')}_x/a17/{hashed('17')}"


# --- the table ----------------------------------------------------------------------------------------------

TABLE: dict[str, Any] = {
    "images": "images/{name}.png",
    "infection": "masks/{name}.png",
    "table": {"file": "list.csv", "name": "file", "split": "fold", "class": "label", "group": "patient"},
    "splits": {"names": {"1": "Train", "2": "Val", "3": "Test"}},
    "classes": {"pos": "COVID-19", "neg": "Non-COVID"},
}
ROWS = ["images/a.png,1,pos,p", "b.png,2,NEG,q", "c,3,pos,r"]


def with_table(folder: Path, *rows: str, header: str = "file,fold,label,patient", bom: bool = False) -> Path:
    folder = pairs(folder, *"abc")
    text = "\n".join([header, *rows]) + "\n"
    (folder / "list.csv").write_text(text, encoding="utf-8-sig" if bom else "utf-8")
    return folder


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_says_split_class_and_group(tmp_path: Path, separator: str) -> None:
    folder = with_table(tmp_path / "d", *ROWS, bom=True)
    path = folder / "list.csv"
    path.write_bytes(path.read_bytes().replace(b",", separator.encode()))
    found = search(folder, TABLE)
    assert ids(found) == {
        "infection/Train/COVID-19/a",
        "infection/Val/Non-COVID/b",
        "infection/Test/COVID-19/c",
    }
    assert found.groups == (3, 0) and found.left_out == [] and found.notes == ()
    with_ending = TABLE | {"images": "images/{name}", "infection": "masks/{name}"}
    assert len(search(folder, with_ending).images) == 3


def test_rows_and_images_without_each_other_are_named(tmp_path: Path) -> None:
    folder = pairs(with_table(tmp_path / "d", *ROWS, "x.png,1,pos,s", "y.png,1,pos,s"), "z")
    found = search(folder, TABLE)
    assert found.notes == ("2 rows of list.csv without an image, the first: 'x'",)
    assert reasons(found)["an image without a row in the table"] == (1, "images/z.png")
    assert list(describe(found, Layout.model_validate(TABLE)))[-1] == found.notes[0]


def test_a_group_of_the_table_within_a_name_is_replaced(tmp_path: Path) -> None:
    pairs(tmp_path / "d", "Doe_1", "Roe_1", "b_1", "Poe_2")
    rows = ["Doe_1,1,pos,Doe", "Roe_1,2,pos,Roe", "b_1,3,pos,q", "Moe_1,3,pos,Moe", "Poe_2,9,pos,Poe"]
    with_table(tmp_path / "d", *rows)
    for name in "abc":
        for kind in ("images", "masks"):
            (tmp_path / "d" / kind / f"{name}.png").unlink()
    found = search(tmp_path / "d", TABLE)
    assert {image.name for image in found.images} == {f"{hashed('Doe')}_1", f"{hashed('Roe')}_1", "b_1"}
    assert found.notes == (f"1 row of list.csv without an image, the first: '{hashed('Moe')}_1'",)
    assert {group.first for group in found.left_out} == {
        f"{kind}/{hashed('Poe')}_2.png" for kind in ("images", "masks")
    }


def test_a_group_in_several_splits_is_counted(tmp_path: Path) -> None:
    found = search(with_table(tmp_path / "d", "a,1,pos,p", "b,2,neg,p", "c,3,pos,r"), TABLE)
    assert found.groups == (2, 1)
    assert "2 groups: 1 of them have images in several splits" in describe(
        found, Layout.model_validate(TABLE)
    )


TABLE_ERRORS = {
    "no column": (
        ROWS,
        "file,fold,class,patient",
        "there is no column 'label'; the columns are file, fold, class",
    ),
    "two columns": (ROWS, "file,fold,label,label", "there are two columns 'label'"),
    "a contradiction": (
        [*ROWS, "a.png,2,pos,p"],
        None,
        "lines 2 and 5 are about the same image, 'a', and differ",
    ),
    "no name": ([*ROWS, ",2,pos,p"], None, "line 5: the column file is empty"),
    "a quote without its end, which would hide all rows below": (
        [ROWS[0], '"b.png,2,neg,q', ROWS[2]],
        None,
        "after line 2: not valid CSV: unexpected end of data",
    ),
}


@pytest.mark.parametrize(("rows", "header", "line"), TABLE_ERRORS.values(), ids=TABLE_ERRORS)
def test_a_wrong_table_is_a_one_line_error(
    tmp_path: Path, rows: list[str], header: str | None, line: str
) -> None:
    folder = with_table(tmp_path / "d", *rows, header=header or "file,fold,label,patient")
    with pytest.raises(InputError) as error:
        search(folder, TABLE)
    assert str(error.value).startswith("here: list.csv: ")
    assert line in str(error.value)


def test_a_row_is_about_one_image(tmp_path: Path) -> None:
    """Otherwise, an image would get the class, split and patient of another one."""
    layout = TABLE | {"images": "{class}/{name}.png", "infection": "{class}/mask/{name}.png"}
    layout["table"] = {key: value for key, value in TABLE["table"].items() if key != "class"}
    folder = with_table(tmp_path / "d", "pos/a.png,1,pos,p", "pos/b.png,2,pos,q", "pos/c.png,3,pos,r")
    write(folder, *(f"pos/{kind}{name}.png" for name in "abc" for kind in ("", "mask/")))
    assert len(search(folder, layout).images) == 3
    write(folder, "neg/a.png")
    message = "the row 'a' of the table is about 'neg/a.png' and 'pos/a.png'; rename one of them"
    with pytest.raises(InputError, match=message):
        search(folder, layout)


COMPOSED, DECOMPOSED = "M\u00fcller", "Mu\u0308ller"  # as Windows and Linux write it, and as macOS does


def test_names_with_umlauts_are_the_same_in_both_forms(tmp_path: Path) -> None:
    """Of an image and its mask, of an image and its row of the table, and of a patient in several names."""
    folder = with_table(tmp_path / "d", *ROWS, f"{COMPOSED}_1.png,1,pos,{DECOMPOSED}", f"x,1,pos,{COMPOSED}")
    write(folder, f"images/{DECOMPOSED}_1.png", f"masks/{COMPOSED}_1.png", "images/x.png", "masks/x.png")
    found = search(folder, TABLE)
    assert found.left_out == [] and found.notes == () and found.groups == (4, 0)
    names = {image.name for image in found.images}
    assert names == {"a", "b", "c", "x", f"{hashed(COMPOSED)}_1"}
    assert hashed(COMPOSED) == hashed(DECOMPOSED)
    write(folder, f"images/{COMPOSED}_1.png")
    with pytest.raises(InputError, match=r"are the same image by data\.layout\.images"):
        search(folder, TABLE)


def test_a_table_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    folder = pairs(tmp_path / "d", *"abc")
    with pytest.raises(InputError, match=r"data\.layout\.table\.file: there is no file 'list\.csv'"):
        search(folder, TABLE)
    (folder / "list.csv").write_bytes(b"file,fold\n\xff,1")
    with pytest.raises(InputError, match="not UTF-8 text"):
        search(folder, TABLE)


def test_a_table_is_read_from_a_zip(tmp_path: Path) -> None:
    zipped(with_table(tmp_path / "d", *ROWS), tmp_path / "d.zip", prefix="d/")
    assert len(search(tmp_path / "d.zip", TABLE).images) == 3
    with zipfile.ZipFile(tmp_path / "d.zip") as archive:
        assert "d/list.csv" in archive.namelist()


def test_val_is_drawn_from_train_where_only_train_and_test_are_named(tmp_path: Path) -> None:
    layout = DRAWN | {"images": "{split}/{name}.png", "splits": {"val": 0.25}}
    files = [f"{split}/{number}.png" for split in ("train", "test") for number in range(8)]
    masks = [f"masks/{number}.png" for number in range(8)]
    layout["infection"] = "masks/{split}-{name}.png"
    masks = [f"masks/{name.replace('/', '-')}" for name in files]
    found = search(write(tmp_path / "d", *files, *masks), layout)
    counts = {split: sum(image.split == i for image in found.images) for i, split in enumerate(SPLITS)}
    assert counts == {"Train": 6, "Val": 2, "Test": 8}
    assert {CLASSES[image.image_class] for image in found.images} == {"COVID-19"}
