"""Items on the study as a whole. Most of them only its authors know."""

from tasks.claim.answer import Answer
from tasks.comparison.document import OTHERS, Document
from tasks.reporting.findings import opening, title
from tasks.reporting.limitations import RESEARCH_USE, limitations
from tasks.reporting.words import listed


def heading(document: Document) -> Answer:
    return Answer(
        f"This report: “{title(document)}”.", "A title that names the method, such as deep learning."
    )


def abstract(document: Document) -> Answer:
    return Answer(
        " ".join(opening(document)),
        "A structured abstract, with the design, the patients and the conclusions.",
    )


def background(_document: Document) -> Answer:
    return Answer(
        missing="The clinical problem, current practice, and the role that the networks would have in it."
    )


def aims(document: Document) -> Answer:
    missing = "The aims, and hypotheses that were stated before the scores were known."
    compared = {name: of for name, of in document.groups.items() if len(of) > 1 and name != OTHERS}
    if not compared:
        return Answer(missing=missing)
    questions = "; ".join(f"“{name}” ({listed(found)})" for name, found in compared.items())
    return Answer(f"Experiments that are compared: {questions}.", missing)


def design(document: Document) -> Answer:
    if document.phantoms:
        return Answer(inapplicable="The images are synthetic.")
    if document.published:
        return Answer("Retrospective: the images had been published before.")
    return Answer(missing="Whether images were collected before or after the study was planned.")


def goal(document: Document) -> Answer:
    trainings = sum(len(e.trainings) for e in document.experiments)
    targets = listed(list(dict.fromkeys(section.target for section in document.predicted)))
    return Answer(
        f"Training and comparison of networks that segment {targets}: {len(document.experiments)} "
        f"experiments, {trainings} trainings.",
        "The kind of study, such as exploration or feasibility, and the clinical task.",
    )


def registration(document: Document) -> Answer:
    if document.phantoms:
        return Answer(inapplicable="The images are synthetic.")
    return Answer(missing="Whether the study is a clinical trial, and if so, its registration.")


def limits(document: Document) -> Answer:
    return Answer(" ".join(limitations(document)))


def practice(_document: Document) -> Answer:
    return Answer(
        RESEARCH_USE, "What the results mean for practice, and what is still needed before any use."
    )


def protocol(document: Document) -> Answer:
    return Answer(
        "params.yaml and dvc.lock, of the commit whose dvc.lock names this file, define every step; `dvc "
        f"repro` repeats them. SHA-256 of the plans of all trainings: `{document.plans}`.",
        "The study protocol, if one was written before.",
    )


def availability(document: Document) -> Answer:
    data = " Data: COVID-QU-Ex on Kaggle, doi 10.34740/kaggle/dsv/3122958." if document.published else ""
    data = " Data: anyone can draw the same images from the URL under item 7." if document.phantoms else data
    others = "" if data else ", and whether the images are"
    return Answer(
        f"Software: Apache License 2.0.{data}",
        f"Where the commit of this run and its trained networks are available{others}.",
    )


def funding(_document: Document) -> Answer:
    return Answer(missing="Who paid for the work, and what part they had in it.")
