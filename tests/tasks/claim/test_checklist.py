"""The CLAIM checklist of handmade documents."""

import re
from typing import Any

import pytest

from tasks.claim.answer import Answer
from tasks.claim.checklist import SECTIONS, answers, checklist
from tasks.comparison.document import Document, ImageGroups
from tests.results import Work


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Document:
    """Infection and lung, several seeds, post-processing; read from a zip on this machine."""
    work = Work(tmp_path_factory.mktemp("document"))
    work.add("both", shift=1, targets=("infection", "lung"), seeds=2, prediction={"threshold": "val"})
    work.groups = {"The loss": ("bce", "bce_iou")}
    return work.compare(work.params(source="/home/somebody/private/covidqu.zip"))


@pytest.fixture(scope="module")
def phantoms(document: Document) -> Document:
    return document.model_copy(
        update={"phantoms": True, "published": False, "source": "phantom://?images=800"}
    )


@pytest.fixture(scope="module")
def own(document: Document) -> Document:
    return document.model_copy(update={"published": False})


def of_dataset(document: Document, **change: Any) -> Document:
    return document.model_copy(update={"dataset": document.dataset.model_copy(update=change)})


def of_first_experiment(document: Document, **change: Any) -> Document:
    first, *others = document.experiments
    return document.model_copy(update={"experiments": (first.model_copy(update=change), *others)})


def test_all_44_items_are_numbered_once_and_in_order(document: Document) -> None:
    assert [item.number for items in SECTIONS.values() for item in items] == list(range(1, 45))
    assert re.findall(r"^\*\*(\d+)\. ", checklist(document), re.MULTILINE) == [str(n) for n in range(1, 45)]


@pytest.mark.parametrize("kind", ["document", "phantoms", "own"])
def test_the_first_line_counts_what_follows(kind: str, request: pytest.FixtureRequest) -> None:
    page = checklist(request.getfixturevalue(kind))
    statuses = re.findall(r"^\*\*\d+\. .*\*\* – (.*)$", page, re.MULTILINE)
    assert len(statuses) == 44
    counted = re.findall(r"(\d+) ([a-z ]+)", page.splitlines()[2])
    assert {status: int(number) for number, status in counted} == {s: statuses.count(s) for s in statuses}


def test_a_status_follows_from_the_texts() -> None:
    assert Answer("said").status == "reported"
    assert Answer("said", "missing").status == "partly"
    assert Answer(missing="missing").status == "not reported"
    assert Answer(inapplicable="why").status == "not applicable"
    for texts in ({}, {"said": "said", "inapplicable": "why"}):
        with pytest.raises(AssertionError):
            Answer(**texts)


def test_values_come_from_the_document(document: Document) -> None:
    """Each change changes the answers to these items, and to no other."""
    first = document.experiments[0]
    training = first.first.model_copy(update={"parameters": 7_654_321, "train_images": 4321})
    changes = {
        (7,): of_dataset(document, fingerprint="f" * 64),
        (8, 35): of_dataset(document, drops_duplicates=True, audit=document.dataset.audit | {"dropped": 77}),
        (42,): document.model_copy(update={"plans": "a" * 64}),
        (4,): document.model_copy(update={"groups": {"Another question": ("bce", "both")}}),
        (9, 25): of_first_experiment(document, plan=first.plan | {"image_size": 512}),
        (23,): of_first_experiment(document, versions={"torch": "99.0"}),
        (2, 22, 25, 35): of_first_experiment(document, trainings=(training,)),
        (10, 25): of_first_experiment(document, plan=first.plan | {"train_classes": ["Normal"]}),
        (25, 26): of_first_experiment(document, plan=first.plan | {"selection": "lesions"}),
        (20, 35): of_dataset(document, groups=ImageGroups(number=55, split=0)),
    }
    before = answers(document)
    for items, changed in changes.items():
        after = answers(changed)
        differing = {number for number in before if before[number] != after[number]}
        assert differing == set(items)


def test_scores_are_those_of_the_chosen_experiment(document: Document) -> None:
    found = answers(document)
    for section in document.predicted:
        assert section.choice
        score = section.main.row(section.choice.chosen).scores["iou"]
        for number in (32, 37):
            assert f"{score.value:.3f}" in found[number].said
    spread = document.sections[0].main.row("both").scores["iou"].seed_sd
    assert f"standard deviation of {spread:.3f}." in found[30].said


def test_folders_of_this_machine_are_not_named(document: Document) -> None:
    page = checklist(document)
    assert "`covidqu.zip`" in page
    assert "somebody" not in page and "private" not in page


def test_published_images_have_the_reference_that_their_publishers_state(document: Document) -> None:
    found = answers(document)
    assert "10.1016/j.compbiomed.2021.105002" in found[7].said
    assert "10.1016/j.compbiomed.2021.105002" in found[14].said
    assert "10.1007/s13755-021-00146-8" in found[14].said
    assert {found[n].status for n in (14, 16)} == {"partly"}
    assert {found[n].status for n in (3, 13, 18, 33, 34, 44)} == {"not reported"}


def test_nothing_is_known_of_the_reference_of_own_images(own: Document) -> None:
    found = answers(own)
    assert {found[n].status for n in (3, 5, 11, 13, 14, 15, 16, 17, 18, 34, 44)} == {"not reported"}
    page = checklist(own)
    assert "Tahir" not in "".join(answer.said for n, answer in found.items() if n != 28)
    assert "publishers" not in page


def test_synthetic_images_have_no_patients_and_no_readers(phantoms: Document) -> None:
    found = answers(phantoms)
    assert {found[n].status for n in (5, 11, 13, 15, 16, 17, 18, 33, 34, 36)} == {"not applicable"}
    assert "phantom://?images=800" in found[7].said
    assert "exact" in found[14].said
    assert "support no conclusion about patients" in found[40].said


def test_external_datasets_and_ensembles_are_reported_if_there_are_any(work: Work) -> None:
    assert {answers(work.compare())[n].status for n in (27, 33)} == {"not applicable", "not reported"}
    work.add("twice", shift=3, seeds=2)
    work.add_ensemble("twice", shift=1)
    work.add_external(
        "elsewhere",
        "infection",
        {"bce-seed0": 12, "bce_iou-seed0": 2, "twice-seed0": 4, "twice-seed1": 4, "ensembles/twice": 5},
    )
    found = answers(work.compare())
    assert found[33].status == "reported" and "elsewhere" in found[33].said
    assert found[27].status == "reported" and "twice: 2 networks" in found[27].said


def test_weights_from_elsewhere_are_named_without_their_folder(document: Document) -> None:
    plan = document.experiments[0].plan | {
        "start_from": {"weights": "/home/somebody/lungs.safetensors", "sha256": "ab" * 32}
    }
    found = answers(of_first_experiment(document, plan=plan))[24]
    assert found.status == "partly"
    assert "lungs.safetensors (SHA-256 abababababab)" in found.said and "somebody" not in found.said


def test_a_network_that_marks_nothing_is_flagged(work: Work) -> None:
    work.experiments = {}
    work.add("dead", shift=0, dead=True)
    found = answers(work.compare())
    assert "dead (marks no pixel)" in found[37].said
    assert "Problems in training" in found[25].said
