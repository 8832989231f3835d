from pathlib import Path
from typing import Any

import pytest

from tasks.settings.layout import Layout
from tasks.settings.params import Params, load_data, parse_params
from tasks.support.cli import InputError
from tests.params import TEXT, changed

SPLITS = "splits: {val: 0.1, test: 0.2}"
LUNGS = f"images: 'x/{{name}}.png', lung: 'm/{{name}}.png', {SPLITS}, classes: Normal"
MINE = (
    "training.half=lung",
    "training.targets=[lung]",
    "experiments.mine={network: unet, loss: dice}",
)


def with_layout(layout: str, *others: str) -> Params:
    return changed(f"data.layout={{{layout}}}", *(others or MINE), keep=("mine",))


def layout(text: str) -> Layout:
    found = with_layout(text).data.layout
    assert found
    return found


def test_a_layout_says_what_its_images_have() -> None:
    found = layout(LUNGS)
    assert (found.half, found.masks, found.image_classes) == ("lung", {"lung": "m/{name}.png"}, ("Normal",))
    assert not found.knows("split")
    words = layout(
        LUNGS.replace(
            "classes: Normal", "classes: {0: Normal, ill: COVID-19}, table: {file: t.csv, name: n, class: c}"
        )
    )
    assert words.image_classes == ("COVID-19", "Normal")
    assert words.classes == {"0": "Normal", "ill": "COVID-19"}


BAD = {
    "a word that is no placeholder": (
        LUNGS.replace("x/{name}", "x/{nmae}"),
        "images: 'x/{nmae}.png': '{nmae}' is not one of the placeholders {name}, {split}, {class}, {group}",
    ),
    "a brace": (LUNGS.replace("x/{name}", "x/{name}}"), "'}' is not one of the placeholders"),
    "no name": (LUNGS.replace("x/{name}", "x/{group}"), "the placeholder {name} is missing"),
    "a way out": (LUNGS.replace("x/{name}", "../{name}"), "expected a path relative to the source"),
    "an absolute path": (LUNGS.replace("x/{name}", "/x/{name}"), "expected a path relative to the source"),
    "no mask": (
        LUNGS.replace("lung: 'm/{name}.png', ", ""),
        "lung and infection: a pattern for at least one of the masks is missing",
    ),
    "a mask with more placeholders": (
        LUNGS.replace("m/{name}", "m/{class}/{name}"),
        "lung: {class} is not in the pattern of images, 'x/{name}.png'",
    ),
    "equal patterns": (
        LUNGS.replace("m/{name}", "x/{name}"),
        "two of the patterns images, lung and infection",
    ),
    "no splits": (LUNGS.replace(f", {SPLITS}", ""), "splits: neither a pattern nor the table has a split"),
    "no Test split": (
        LUNGS.replace(", test: 0.2", ""),
        "splits: neither a pattern nor the table has a split",
    ),
    "nothing to train": (LUNGS.replace("val: 0.1", "val: 0.9"), "val and test are 1.1 together"),
    "names without splits": (
        LUNGS.replace("val: 0.1", "names: {a: Val}, val: 0.1"),
        "splits.names: neither a pattern nor the table",
    ),
    "no class": (
        LUNGS.replace(", classes: Normal", ""),
        "classes: neither a pattern nor the table has a class",
    ),
    "an unknown class": (
        LUNGS.replace("Normal", "Healthy"),
        "classes: 'Healthy' is invalid: expected one of COVID-19, Non-COVID, Normal, or a mapping",
    ),
    "a split twice": (
        LUNGS.replace("x/{name}", "{split}/{name}") + ", table: {file: t.csv, name: n, split: s}",
        "table.split: images has {split} already",
    ),
    "equal words": (
        LUNGS.replace("x/{name}", "{class}/{name}").replace("Normal", "{ill: COVID-19, Ill: Normal}"),
        "two of these words differ only in capital letters",
    ),
    "a misspelt key": (
        f"{LUNGS}, image: x",
        "image: unknown key (did you mean images?); the keys here are images",
    ),
    "a misspelt key of the table": (
        f"{LUNGS}, table: {{file: t.csv, name: n, klass: c}}",
        "data.layout.table.klass: unknown key (did you mean class?)",
    ),
}


@pytest.mark.parametrize(("text", "line"), BAD.values(), ids=BAD)
def test_a_wrong_layout_is_a_one_line_error(text: str, line: str) -> None:
    with pytest.raises(InputError) as error:
        with_layout(text)
    assert "data.layout" in str(error.value)
    assert line in str(error.value)
    assert len(str(error.value).splitlines()) == 1


UNFIT: dict[str, tuple[tuple[str, ...], str]] = {
    "targets": (
        ("training.half=lung", "experiments.mine={network: unet, loss: dice, targets: [infection, lung]}"),
        "infection",
    ),
    "masks": (
        ("experiments.mine={network: unet, loss: dice, targets: [infection]}",),
        "experiments.mine: targets: data.layout has no infection masks; set targets: [lung] and half: lung",
    ),
    "half": (
        ("experiments.mine={network: unet, loss: dice, targets: [lung]}",),
        "experiments.mine: half: the images of data.layout are the lung half; set half: lung",
    ),
    "classes": (
        (*MINE, "training.train_classes=[COVID-19]"),
        "train_classes: data.layout has no images of COVID-19; set train_classes: [Normal]",
    ),
}


@pytest.mark.parametrize(("changes", "line"), UNFIT.values(), ids=UNFIT)
def test_an_experiment_without_its_masks_or_classes_fails_at_the_start(
    changes: tuple[str, ...], line: str
) -> None:
    with pytest.raises(InputError) as error:
        with_layout(LUNGS, *changes)
    assert line in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_phantoms_have_no_layout() -> None:
    with pytest.raises(InputError, match=r"phantom:// has the folders of COVID-QU-Ex; set layout to null"):
        with_layout(LUNGS, *MINE, "data.source=phantom://9", "data.sha256=null")


def test_the_key_must_be_there_because_stages_depend_on_it() -> None:
    with pytest.raises(InputError, match=r"data\.layout: this key is missing"):
        parse_params(TEXT.replace("\n  layout: null\n", "\n"))


def test_a_layout_can_be_tried_before_the_experiments_fit(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(TEXT.replace("\n  layout: null\n", f"\n  layout: {{{LUNGS}}}\n"))
    found: Any = load_data(path).layout
    assert found.half == "lung"
    with pytest.raises(InputError, match="no infection masks"):
        parse_params(path.read_text())


def test_no_layout_changes_no_plan() -> None:
    """Otherwise, finished trainings on COVID-QU-Ex would run again."""
    assert not any("layout" in plan.to_json() for plan in parse_params(TEXT).plans.values())
