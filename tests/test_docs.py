"""README, CONTRIBUTING and docs/: commands run, links lead somewhere, and the reference leaves nothing out.

A code block without a language, or with `console`, holds commands. They run here, in a repository whose
stages have run. A comment before a block takes it out: `<!-- not run: REASON -->`. Its `cxr` commands
are still parsed.
"""

import re
import shlex
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, get_args
from urllib.parse import unquote

import pandas as pd
import pytest
import torch
from cyclopts import App
from cyclopts.exceptions import CycloptsError
from dvc.utils.serialize import load_yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pydantic import BaseModel
from ruamel.yaml import YAML

from flows.commands.cli import COMMANDS, GROUPS, make_app
from flows.repository.stage_environment import CREDENTIALS, PASSED
from models import losses
from tasks.audit_external import COLUMNS as OVERLAP_COLUMNS
from tasks.comparison.document import Document, Limits, Score, Section
from tasks.comparison.output import EXTERNAL_COLUMNS
from tasks.reporting.metrics import METRICS as IN_METRICS_JSON
from tasks.settings.data import External
from tasks.settings.experiments import Experiment
from tasks.settings.reading import parse_mapping
from tasks.settings.schema import Settings
from tasks.settings.stages import Stages
from tasks.settings.training import Selection, TrainingSettings
from tasks.sources.phantom import PhantomSource
from tests.bundles import Pipeline
from tests.helpers import ROOT, Repository
from tests.own import write_pairs
from tests.results import Work

PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")),
    *sorted((ROOT / "docs").rglob("*.md")),
]

#: Languages of blocks that hold commands: none, and a terminal's session, whose commands follow "$ ".
COMMAND_LANGUAGES = ("", "console")
NOT_RUN = re.compile(r"<!-- not run: .+ -->\s*")

#: The reference, by what it is about.
PARAMS, METRICS, CLI, FILES = (
    ROOT / "docs" / "reference" / f"{name}.md" for name in ("params", "metrics", "cli", "files")
)

#: Pages with steps between their commands.
NEW_LOSS = ROOT / "docs" / "get-started" / "new-loss.md"
REAL_DATA = ROOT / "docs" / "how-to" / "real-data.md"
OWN_IMAGES = ROOT / "docs" / "how-to" / "own-images.md"


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# --- reading pages ------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """A fenced block of code."""

    line: int
    language: str
    text: str
    runs: bool

    @property
    def commands(self) -> str:
        if self.language != "console":
            return self.text
        lines = self.text.splitlines()
        return "\n".join(line.removeprefix("$ ") for line in lines if line.startswith("$ "))


@cache
def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def inline(page: Path) -> Iterator[Token]:
    """Text, code spans, links and pictures."""
    for token in tokens(page):
        yield from token.children or ()


def blocks(page: Path) -> list[Block]:
    found = []
    for before, token in pairwise([Token("", "", 0), *tokens(page)]):
        if token.type == "fence":
            assert token.map
            language = token.info.strip()
            marked = before.type == "html_block" and NOT_RUN.fullmatch(before.content)
            runs = language in COMMAND_LANGUAGES and not marked
            found.append(Block(token.map[0] + 1, language, token.content, runs))
    return found


def code_spans(page: Path) -> list[str]:
    return [token.content for token in inline(page) if token.type == "code_inline"]


def headings(page: Path) -> list[str]:
    found = tokens(page)
    return [after.content for token, after in pairwise(found) if token.type == "heading_open"]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(page))
    return set(kept)


def section(page: Path, heading: str) -> str:
    """The text below a heading of the second level."""
    _, found, rest = page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    assert found, f"{page_id(page)} has no section {heading!r}"
    return rest.partition("\n## ")[0]


def named(text: str) -> set[str]:
    """Return the text of all code spans."""
    return set(re.findall(r"`([^`\n]+)`", text))


# --- commands -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(finished_repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """One whose results are committed, with three branches of runs and the project's environment."""
    folder = tmp_path_factory.mktemp("docs") / "repository"
    shutil.copytree(finished_repository.folder, folder, symlinks=True)
    (folder / ".venv").symlink_to(sys.prefix)
    with (folder / ".git" / "info" / "exclude").open("a") as file:
        file.write("/.venv\n")
    made = Repository(folder)
    made.commit("Results")
    for name in ("retrain/alpha-0.3", "retrain/alpha-0.5", "retrain/alpha-0.7"):
        made.run("git", "branch", name)
    return made


def follow_new_loss(page: Path, repository: Repository) -> None:
    """Change the files as the page says."""
    function, entry, choices, options, experiment = (
        block.text for block in blocks(page) if block.language in ("python", "yaml")
    )
    edit(repository, "models/losses.py", "LOSSES: dict", f"{function}\n\nLOSSES: dict")
    last = '    "focal_tversky": focal_tversky,\n'
    edit(repository, "models/losses.py", last, last + entry)
    edit(repository, "tasks/settings/training.py", '    "focal_tversky",\n]\n', choices)
    last = '    "focal_tversky": {"gamma": 4 / 3, "balance": 0.7},\n'
    edit(repository, "tests/models/test_losses.py", last, last + options)
    edit(repository, "params.yaml", "\nexperiments:\n", f"\nexperiments:\n{experiment}")


def edit(repository: Repository, path: str, old: str, new: str) -> None:
    text = repository.read(path)
    assert text.count(old) == 1, f"{path}: {old}"
    (repository.folder / path).write_text(text.replace(old, new), encoding="utf-8")


def have_the_zip(page: Path, repository: Repository) -> None:
    """The dataset as a zip, where the page expects it."""
    phantoms = PhantomSource("phantom://45?size=64")
    with zipfile.ZipFile(repository.folder / "data" / "covidqu.zip", "w") as archive:
        for name in phantoms.names():
            archive.writestr(name, phantoms.read(name))


def have_pairs(page: Path, repository: Repository) -> None:
    """A folder of X-rays and lung masks, where the page expects it."""
    write_pairs(repository.folder / "data" / "xrays", 5, "PNG", "png")
    (repository.folder / "data" / "xrays" / "chest45_mask.png").unlink()


#: What a reader has done before the commands of a page.
BEFORE: dict[Path, Callable[[Path, Repository], None]] = {
    NEW_LOSS: follow_new_loss,
    REAL_DATA: have_the_zip,
    OWN_IMAGES: have_pairs,
}


def with_commands() -> list[Path]:
    return [page for page in PAGES if any(block.runs for block in blocks(page))]


@pytest.mark.parametrize("page", with_commands(), ids=page_id)
def test_commands_run(page: Path, repository: Repository) -> None:
    start = repository.run("git", "rev-parse", "HEAD").strip()
    if prepare := BEFORE.get(page):
        prepare(page, repository)
    for block in blocks(page):
        if block.runs:
            assert block.commands.strip(), f"{page_id(page)}:{block.line}: no command"
            try:
                repository.run("bash", "-euo", "pipefail", "-c", block.commands)
            except AssertionError as error:
                pytest.fail(f"{page_id(page)}:{block.line}: {block.commands}\n{error}", pytrace=False)
    repository.run("git", "switch", "--quiet", "--discard-changes", "main")
    repository.run("git", "reset", "--quiet", "--hard", start)
    repository.run("git", "clean", "--quiet", "--force", "-d")


def test_the_loss_that_a_page_adds_works() -> None:
    function = next(block.text for block in blocks(NEW_LOSS) if block.language == "python")
    module = dict(vars(losses))
    exec(function, module)
    loss, mask = module["log_cosh_dice"], torch.ones(1, 1, 4, 4)
    assert loss(40 * mask, mask) < 1e-6
    assert 0.3 < loss(-40 * mask, mask) < 0.434


def test_a_block_that_is_not_run_says_why_and_holds_commands() -> None:
    for page in PAGES:
        comments = [token.content for token in tokens(page) if token.type == "html_block"]
        kept = [b for b in blocks(page) if b.language in COMMAND_LANGUAGES and not b.runs]
        assert all(NOT_RUN.fullmatch(comment) for comment in comments), page_id(page)
        assert len(comments) == len(kept), f"{page_id(page)}: a comment without a block of commands after it"


def cxr_lines(page: Path) -> Iterator[list[str]]:
    """The words after `cxr` of every command in a block."""
    for block in blocks(page):
        if block.language in COMMAND_LANGUAGES:
            for line in block.commands.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if "cxr" in words:
                    yield words[words.index("cxr") + 1 :]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_command_of_cxr_is_understood(page: Path) -> None:
    for words in cxr_lines(page):
        if "--help" not in words:
            try:
                make_app().parse_args(words, print_error=False, exit_on_error=False)
            except CycloptsError as error:
                pytest.fail(f"cxr {shlex.join(words)}: {error}", pytrace=False)
    for span in code_spans(page):
        if span.startswith("cxr ") and "COMMAND" not in span:
            app, options = make_app(), shlex.split(span)[1:]
            while options and not options[0].startswith("-") and app.default_command is None:
                app = app[options.pop(0)]
            known = {"--help", "--install-completion", *options_of(app)}
            assert {word for word in options if word.startswith("--")} <= known, span


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)[0].split())


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_target_of_make_exists(page: Path) -> None:
    code = [*code_spans(page), *(line for b in blocks(page) for line in b.text.splitlines())]
    used = {match[1] for text in code if (match := re.match(r"make ([a-z]+)\b", text))}
    assert used <= make_targets()


# --- links --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    for token in inline(page):
        target = str(token.attrGet("href") or token.attrGet("src") or "")
        if not target or target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / unquote(path)).resolve() if path else page
        assert there.is_relative_to(ROOT) and there.exists(), f"{page_id(page)}: {target}"
        assert not there.is_dir() or (there / "README.md").exists(), f"{page_id(page)}: {target}"
        if anchor:
            assert anchor in anchors(there), f"{page_id(page)}: {target}"
        if token.type == "image":
            assert token.content.strip(), f"{page_id(page)}: {target} has no words for those who can't see it"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_files_that_are_named_exist(page: Path) -> None:
    folders = ("flows", "tasks", "models", "tests", "docs", "presets", "benchmarks", "docker", ".ci")
    for span in code_spans(page):
        path = span.split()[0] if span.split() else ""
        if re.fullmatch(rf"({'|'.join(folders)})(/[\w.-]+)*/?", path):
            assert (ROOT / path).exists(), f"{page_id(page)}: {span}"


def test_the_map_leads_to_every_page() -> None:
    page = ROOT / "docs" / "README.md"
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for token in inline(page)
        if (target := str(token.attrGet("href") or ""))
    }
    assert set((ROOT / "docs").rglob("*.md")) - {page} <= linked


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100


# --- the reference ------------------------------------------------------------------------------------------


def leaves(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The keys of a section, as `training.augment.flip`. A section that may be null is also a key itself."""
    for name, field in schema.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        optional = isinstance(field.annotation, UnionType)
        kinds = get_args(field.annotation) if optional else (field.annotation,)
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        for kind in sections:
            yield from leaves(kind, f"{key}.")
        if not sections or type(None) in kinds:
            yield key


def keys_of_params() -> set[str]:
    own = Experiment.model_fields.keys() - TrainingSettings.model_fields.keys()
    entries = {f"experiments.NAME.{name}" for name in own}
    entries |= {f"external.NAME.{name}" for name in External.model_fields}
    return (set(leaves(Settings)) - {"experiments"}) | entries | set(leaves(Stages, "stages."))


def rows_of_params() -> dict[str, list[str]]:
    """The rows of all tables of keys: type, default and words of each."""
    rows: dict[str, list[str]] = {}
    for line in PARAMS.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\| `([\w.]+)` \|(.*)\|$", line):
            cells = [cell.strip() for cell in match[2].split("|")]
            if len(cells) == 3 or match[1].startswith("stages."):
                rows[match[1]] = cells
    return rows


def test_every_key_of_params_is_described() -> None:
    keys, rows = keys_of_params(), rows_of_params()
    assert not keys - rows.keys()
    in_sections = {key for key in rows if "." in key}
    assert in_sections - keys <= {"experiments.NAME.augment"}


def test_defaults_are_those_of_params_yaml() -> None:
    params = parse_mapping((ROOT / "params.yaml").read_text(encoding="utf-8"), "params.yaml")
    rows = rows_of_params()
    for key in keys_of_params():
        if not key.startswith(("experiments.", "external.", "stages.")):
            value: Any = params
            *sections, last = key.split(".")
            for part in sections:
                value = value[part] if value else None
            if value is None:  # the keys of a section that is null
                continue
            value = value[last]
            shown = rows[key][1].strip("`")
            if shown.endswith("…"):
                assert value.startswith(shown[:-1]), key
            else:
                assert YAML(typ="safe").load(shown) == value, key


def options_of(app: App) -> set[str]:
    """The options and arguments of a command; none of a word that only groups commands."""
    if app.default_command is None:
        return set()
    return {name for argument in app.assemble_argument_collection() for name in argument.parameter.name}


def commands() -> list[list[str]]:
    return [[command.__name__.rstrip("_")] for command in COMMANDS] + [
        [group, command.__name__.rstrip("_")] for group, (_, several) in GROUPS.items() for command in several
    ]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_option_of_a_command_is_described(words: list[str]) -> None:
    app = make_app()
    for word in words:
        app = app[word]
    of_rows = re.findall(r"^\| `([^`]+)`", section(CLI, f"cxr {' '.join(words)}"), re.MULTILINE)
    described = {row.split()[0].removesuffix("...") for row in of_rows}
    assert options_of(app) <= described
    assert described <= options_of(app)


def test_the_completion_is_described() -> None:
    assert {"cxr --install-completion", *options_of(make_app()["--install-completion"])} <= set(
        code_spans(CLI)
    )


def test_every_target_of_make_is_described() -> None:
    text = section(CLI, "make")
    assert {f"make {target}" for target in make_targets()} <= named(text)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    own = {"BIN", "TOOL", "TOOLS", "PIP_INSTALL"}
    assert set(re.findall(r"\$\((?:if \$\()?([A-Z_]+)\)", makefile)) - own <= named(text)


def test_every_variable_of_ours_is_described() -> None:
    code = [path for layer in ("flows", "tasks", "models") for path in (ROOT / layer).rglob("*.py")]
    text = "".join(path.read_text(encoding="utf-8") for path in code)
    names = set(re.findall(r"RETRAIN_[A-Z_]+", text))
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    names |= {match[1] for line in lines if (match := re.fullmatch(r"(?:# )?([A-Z_]+)=", line))}
    script = (ROOT / "docker" / "entrypoint.sh").read_text(encoding="utf-8")
    names |= set(re.findall(r"\$\{([A-Z_]+):", script))
    assert len(names) > 20
    assert not names - set(code_spans(CLI))


def test_the_variables_that_stages_get_are_those_described() -> None:
    _, _, rest = section(CLI, "Environment variables").partition("\n### Passed to stages\n")
    text = rest.partition("\n### ")[0]
    rows = dict(re.findall(r"^\| ([^|`]+) \| (`.+?) \|$", text, re.MULTILINE))
    assert {purpose: named(names) for purpose, names in rows.items()} == {
        purpose: set(names.split()) for purpose, names in {**PASSED, "data sources": CREDENTIALS}.items()
    }


def stages() -> set[str]:
    return set(load_yaml(str(ROOT / "dvc.yaml"))["stages"])


def test_every_stage_is_described() -> None:
    assert stages() <= set(headings(FILES))
    page = ROOT / "docs" / "explanation" / "orchestration.md"
    (diagram,) = (block.text for block in blocks(page) if block.language == "text")
    assert {re.split("[ @]", line)[0] for line in diagram.splitlines()} == stages()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Results with and without infection, of experiments that predict lungs too, compared."""
    work = Work(tmp_path_factory.mktemp("work"))
    work.add("both", shift=3, targets=("infection", "lung"), seeds=2)
    work.run()
    return work


@pytest.fixture(scope="module")
def sections(work: Work) -> tuple[Section, ...]:
    return Document.read(work.comparison / "comparison.json").sections


def test_every_score_of_an_image_is_described(work: Work) -> None:
    columns = set(pd.read_csv(work.paths["evaluated"] / "both-seed0" / "images.csv", nrows=1))
    assert {"average_precision", "true_share"} <= columns
    places = {"seed", "split", "target", "id", "class"}
    assert columns - places <= named(section(METRICS, "Scores of one image"))


def test_every_average_and_image_set_is_described(sections: tuple[Section, ...]) -> None:
    image_sets = [found for one in sections for found in (*one.val, *one.image_sets)]
    averages = {metric for found in image_sets for row in found.rows for metric in row.scores}
    assert {"missed", "false_positive_rate", "iou_nonempty", "balanced", "ece", "hd95"} <= averages
    words = named(section(METRICS, "Averages over images"))
    assert {*averages, *(found.name for found in image_sets)} <= words


def test_the_metrics_of_metrics_json_are_those_described(work: Work) -> None:
    text = section(METRICS, "Averages over images").partition("\n### Which of them are in metrics.json\n")[2]
    described: dict[str, set[str]] = {}
    for names, metrics in re.findall(r"^\| (`.+?) \| (`.+?) \|$", text, re.MULTILINE):
        described |= {name: named(metrics) for name in named(names)}
    assert described == {name: set(metrics) for name, metrics in IN_METRICS_JSON.items()}
    written = load_json(work.metrics)
    assert set(written) == {"bce", "bce_iou", "both", "baselines", "dataset"}
    assert set(written["both"]) == {"val", "test"} <= named(text)


def test_the_answers_to_clinical_questions_are_described(work: Work, sections: tuple[Section, ...]) -> None:
    words = named(section(METRICS, "Clinical questions"))
    assert any(one.limits for one in sections)
    values = {name for name, field in Limits.model_fields.items() if field.annotation in (Score, float)}
    assert {*values, *pd.read_csv(work.comparison / "detection.csv")["metric"]} <= words


@pytest.mark.parametrize("page", [METRICS, PARAMS], ids=page_id)
def test_every_selection_is_described(page: Path) -> None:
    text = section(page, "The score that chooses" if page == METRICS else "training")
    assert set(get_args(Selection)) <= named(text)


def test_every_score_of_the_audit_is_described(finished_repository: Repository) -> None:
    metrics = load_json(finished_repository.folder / "metrics.json")
    assert set(metrics["dataset"]) <= named(section(METRICS, "The dataset"))


def load_json(path: Path) -> Any:
    return parse_mapping(path.read_text(encoding="utf-8"), str(path))


#: The section of a stage, and where it writes.
OUTPUTS = {
    "artifacts/plans": "plan",
    "data/raw": "download",
    "data/packed": "preprocess",
    "artifacts/audit": "audit",
    "artifacts/train": "train",
    "artifacts/evaluation": "evaluate",
    "artifacts/baselines": "baselines",
    "artifacts/comparison": "compare",
    "reports": "report",
}


#: What stands for a name in the names of files and columns.
PLACEHOLDER = r"(TRAINING|EXPERIMENT|HALF|SPLIT|TARGET)"


@pytest.mark.parametrize("folder", OUTPUTS)
def test_every_output_and_its_columns_are_described(folder: str, finished_repository: Repository) -> None:
    words = named(section(FILES, OUTPUTS[folder]))
    if folder == "artifacts/baselines":  # their scores are those of evaluate
        words |= named(section(FILES, "evaluate"))
    patterns = [re.sub(PLACEHOLDER, lambda _: r"[\w-]+", re.escape(word)) for word in words]
    paths = [path for path in (finished_repository.folder / folder).rglob("*") if path.is_file()]
    paths = [path for path in paths if path.name != ".gitignore"]
    assert paths
    for path in paths:
        name = path.relative_to(finished_repository.folder).as_posix()
        assert any(re.search(rf"(^|/){pattern}$", name) for pattern in patterns), name
        if path.suffix == ".csv":
            columns = pd.read_csv(path, nrows=1).columns
            missing = [c for c in columns if not any(re.fullmatch(pattern, c) for pattern in patterns)]
            assert not missing, f"{name}: {missing}"


def test_the_tables_of_external_datasets_are_described() -> None:
    assert set(EXTERNAL_COLUMNS) <= named(section(FILES, "compare"))
    assert set(OVERLAP_COLUMNS) <= named(section(FILES, "audit_external"))


def test_every_file_of_a_bundle_is_described(pipeline: Pipeline) -> None:
    for stage, folder in {"convert": "converted", "export": "bundles"}.items():
        words = named(section(FILES, stage))
        patterns = [re.sub(PLACEHOLDER, r"[\\w-]+", re.escape(word)) for word in words]
        files = [path for path in pipeline.out(folder).rglob("*") if path.is_file()]
        assert files
        for file in files:
            assert any(re.search(rf"/{pattern}$", file.as_posix()) for pattern in patterns), file
        for file in pipeline.out(folder).rglob("parity.json"):
            assert set(load_json(file)) <= words


def test_the_network_file_is_described(finished_repository: Repository) -> None:
    for path in (finished_repository.folder / "artifacts" / "train").rglob("network.json"):
        assert set(load_json(path)) <= named(section(FILES, "train"))


def test_the_settings_file_is_described(finished_repository: Repository) -> None:
    for path in (finished_repository.folder / "artifacts" / "evaluation").rglob("settings.json"):
        assert set(load_json(path)) <= named(section(FILES, "evaluate"))
