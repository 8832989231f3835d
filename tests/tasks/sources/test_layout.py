import pytest

from tasks.sources.layout import LeftOut, Place, describe_left_out, left_out, place_of

HALF = "Infection Segmentation Data"
TRAIN = f"{HALF}/Train/COVID-19"
TAKEN = {
    f"{TRAIN}/images/a.png": Place("infection", 0, 0, "image", "a"),
    f"{HALF}/{HALF}/Test/Normal/lung masks/a b.png": Place("infection", 2, 2, "lung", "a b"),
    f"x/y/{HALF}/z/Val/Non-COVID/infection masks/a.b.png": Place("infection", 1, 1, "infection", "a.b"),
    "Lung Segmentation Data/Val/Normal/images/a.png": Place("lung", 1, 2, "image", "a"),
    f"{TRAIN}/images/a.PNG": Place("infection", 0, 0, "image", "a"),
    "lung segmentation data/TRAIN/normal/Lung Masks/A.Png": Place("lung", 0, 2, "lung", "A"),
    f"{HALF}/Train/Covid-19/Images/a.png": Place("infection", 0, 0, "image", "a"),
}


@pytest.mark.parametrize(("name", "place"), TAKEN.items())
def test_name_in_the_layout_has_a_place(name: str, place: Place) -> None:
    assert place_of(name, "") == place


HIDDEN = "hidden, or made by a system"
KINDS = "images, lung masks, infection masks"
CLASSES = "COVID-19, Non-COVID, Normal"
LEFT = {
    "README.txt": f"in neither {HALF!r} nor 'Lung Segmentation Data'",
    "Infection Segmentation/Train/COVID-19/images/a.png": (
        f"in neither {HALF!r} nor 'Lung Segmentation Data'"
    ),
    f"{HALF}/README.png": "in none of the folders Train, Val, Test",
    f"{HALF}/Training/COVID-19/images/a.png": "in none of the folders Train, Val, Test",
    f"{TRAIN}/images/a.jpg": "not named .png",
    f"{TRAIN}/images/a.jpeg": "not named .png",
    f"{TRAIN}/images/Thumbs.db": "not named .png",
    f"{TRAIN}/images/png": "not named .png",
    f"{TRAIN}/images/a.png\n": "not named .png",
    f"{HALF}/Train/a.png": f"in none of the folders {KINDS}",
    f"{TRAIN}/a.png": f"in none of the folders {KINDS}",
    f"{HALF}/Train/COVID/images/a.png": f"'COVID' is none of the classes {CLASSES}",
    f"{HALF}/Train/Non COVID/images/a.png": f"'Non COVID' is none of the classes {CLASSES}",
    f"{HALF}/Train/\u212aormal/images/a.png": f"'\u212aormal' is none of the classes {CLASSES}",
    f"{TRAIN}/lung mask/a.png": f"'lung mask' is none of the folders {KINDS}",
    f"{TRAIN}/image\u017f/a.png": f"'image\u017f' is none of the folders {KINDS}",  # a long s
    f"{TRAIN}/images/more/a.png": "in a folder below those of the layout",
    "Lung Segmentation Data/Train/Normal/infection masks/a.png": "the lung half has no infection masks",
    "Lung Segmentation Data/": "a linked folder, which is not followed",
    f"{TRAIN}/images/.a.png": HIDDEN,
    f"{TRAIN}/images/.png": HIDDEN,
    f"{TRAIN}/images/._a.png": HIDDEN,
    f".Trash-1000/files/{TRAIN}/images/a.png": HIDDEN,
    f"$RECYCLE.BIN/{TRAIN}/images/a.png": HIDDEN,
    f".snapshot/hourly.0/{TRAIN}/images/a.png": HIDDEN,
    f"__MACOSX/{TRAIN}/images/a.png": HIDDEN,
    f"{TRAIN}/images/@eaDir/a.png/SYNOPHOTO_THUMB_M.png": HIDDEN,
    f"{TRAIN}/images/@eaDir/": HIDDEN,
}


@pytest.mark.parametrize(("name", "reason"), LEFT.items())
def test_name_outside_the_layout_has_a_reason(name: str, reason: str) -> None:
    assert place_of(name, "") == reason


def test_the_sources_own_folder_may_be_hidden_or_a_half() -> None:
    assert place_of(f".cache/{TRAIN}/images/a.png", ".cache/") == Place("infection", 0, 0, "image", "a")
    assert isinstance(place_of(f"{TRAIN}/images/a.png", f"{HALF}/"), Place)
    assert place_of(f".cache/.x/{TRAIN}/images/a.png", ".cache/") == HIDDEN


def test_files_are_grouped_by_reason_and_hidden_folders_count_once() -> None:
    names = [f"x/{name}" for name in (*TAKEN, *LEFT)] + [f"x/__MACOSX/{i}" for i in range(100)]
    groups = left_out(names, "x/")
    assert groups[0] == LeftOut(HIDDEN, 8, 5, "$RECYCLE.BIN/")
    assert groups[1] == LeftOut("not named .png", 5, 0, f"{TRAIN}/images/Thumbs.db")
    assert sum(group.number for group in groups) == len(LEFT) - 1  # twice @eaDir


def test_few_lines_say_what_was_left_out() -> None:
    two = [LeftOut("hidden", 3, 2, ".a/"), LeftOut("not named .png", 1, 0, "b\n\udcff.jpg")]
    assert list(describe_left_out(two, "here")) == [
        "3 files and folders below here are not in the layout, the first: '.a/' (hidden)",
        r"1 file below here is not in the layout: 'b\n\udcff.jpg' (not named .png)",
    ]
    many = [LeftOut(f"reason {i}", 9 - i, 0, "c.jpg") for i in range(8)]
    lines = list(describe_left_out(many, "here"))
    assert lines[3:] == [
        "6 files below here are not in the layout, the first: 'c.jpg' (reason 3)",
        "14 files below here are not in the layout, for 4 other reasons",
    ]
    assert not list(describe_left_out([], "here"))
