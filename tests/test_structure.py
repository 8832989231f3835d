"""Rules for imports between packages, and for the dependencies that dvc.yaml declares."""

import ast
import re
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.repository.git import git
from tests.helpers import ROOT

LAYERS = ("flows", "tasks", "models")
FORBIDDEN = {
    "tasks": {"prefect", "dvc", "flows"},
    "models": {
        "prefect",
        "dvc",
        "flows",
        "tasks",
        "pathlib",
        "os",
        "io",
        "shutil",
        "time",
        "datetime",
        "PIL",
        "pandas",
    },
}

#: The packages of each layer, lowest first. A package imports only from those before it. The empty name
#: stands for the modules at the top level of the layer.
PACKAGES = {
    "tasks": (
        "support",
        "common",
        "settings",
        "packed",
        "auditing",
        "sources",
        "networks",
        "inference",
        "training",
        "scoring",
        "comparison",
        "reporting",
        "claim",
        "bundles",
        "prediction",
        "gate",
        "sweep",
        "",
    ),
    "flows": (
        "repository",
        "registry",
        "curves",
        "engine",
        "remote",
        "deployment",
        "checks",
        "",
        "sweep",
        "commands",
    ),
}

#: Maximum number of files in a folder.
MAX_FILES = 16

#: Modules that do not affect results: the command line, progress, checkpoints, locks, places of files. Also
#: the schema of params.yaml, because stages declare the values that they read from it as params or as a plan
#: file.
WITHOUT_RESULT = (
    "tasks/settings/",
    "tasks/support/checkpoints.py",
    "tasks/support/cli.py",
    "tasks/support/cpus.py",
    "tasks/support/events.py",
    "tasks/support/gpus.py",
    "tasks/support/locks.py",
    "tasks/support/progress.py",
    "tasks/support/repository.py",
    "tasks/support/retry.py",
    "tasks/support/slots.py",
)

#: Modules whose only effect is on the log of a stage.
SAID_ALONE = {"train": {"tasks/support/symptoms.py"}}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules(layer: str) -> list[Path]:
    return sorted((ROOT / layer).rglob("*.py"))


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_imports_run_one_way(layer: str) -> None:
    for path in modules(layer):
        wrong = {name.partition(".")[0] for name in imported(path)} & FORBIDDEN[layer]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_models_open_no_files() -> None:
    for path in modules("models"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        opened = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "open"]
        assert not opened, path


def package_of(path: Path) -> str:
    """Return the package of a module, or an empty name for a module at the top level of its layer."""
    parts = path.relative_to(ROOT).parts
    return parts[1] if len(parts) > 2 else ""


def own_imports(path: Path) -> set[Path]:
    """Return the project's modules that a module imports directly."""
    files = [ROOT / Path(*name.split(".")).with_suffix(".py") for name in imported(path)]
    return {file for file in files if file.is_file() and file.relative_to(ROOT).parts[0] in LAYERS}


@pytest.mark.parametrize("layer", PACKAGES)
def test_packages_import_only_from_lower_packages(layer: str) -> None:
    assert {package_of(path) for path in modules(layer)} == set(PACKAGES[layer])
    levels = {package: level for level, package in enumerate(PACKAGES[layer])}
    for path in modules(layer):
        for other in own_imports(path):
            same_layer = other.relative_to(ROOT).parts[0] == layer
            upwards = same_layer and levels[package_of(other)] > levels[package_of(path)]
            assert not upwards, f"{path.relative_to(ROOT)} imports {other.relative_to(ROOT)}"


def test_there_are_no_import_cycles() -> None:
    order = TopologicalSorter({path: own_imports(path) for layer in LAYERS for path in modules(layer)})
    order.prepare()  # raises CycleError


def test_folders_have_few_files() -> None:
    files = Counter(path.parent for layer in LAYERS for path in modules(layer))
    assert max(files.values()) <= MAX_FILES, files.most_common(1)


def test_the_map_of_the_code_is_complete() -> None:
    """CONTRIBUTING.md names every package, and no module that does not exist."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (drawn,) = re.findall(r"^```text\n(flows/.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    packages = {package for layer in PACKAGES.values() for package in layer if package}
    assert packages <= set(re.findall(r"(\w+)/", drawn))
    assert set(re.findall(r"\w+\.py", drawn)) <= {path.name for layer in LAYERS for path in modules(layer)}


def closure(path: Path) -> set[Path]:
    """Return a module and all of the project's files that it imports, directly or indirectly."""
    found, waiting = set(), [path]
    while waiting:
        current = waiting.pop()
        if current in found:
            continue
        found.add(current)
        waiting += own_imports(current)
    return found


def stages(folder: Path = ROOT) -> dict[str, tuple[str, set[str]]]:
    """Return the command and the dependencies of each stage of a repository."""
    with Repo(str(folder)) as repo:
        return {s.name: (str(s.cmd), {d.def_path for d in s.deps}) for s in repo.index.stages}


def test_each_stage_depends_on_exactly_the_code_that_affects_its_results() -> None:
    assert_exact_code(stages())


def assert_exact_code(found: dict[str, tuple[str, set[str]]]) -> None:
    for name, (command, dependencies) in found.items():
        module = command.split()[2]
        needed = {
            p.relative_to(ROOT).as_posix()
            for p in closure(ROOT / Path(*module.split(".")).with_suffix(".py"))
        }
        code = {d for d in dependencies if d.partition("/")[0] in ("tasks", "models")}
        covered = {path for path in needed for d in code if path == d or path.startswith(f"{d}/")}
        left_out = needed - covered - SAID_ALONE.get(name.partition("@")[0], set())
        left_out = {path for path in left_out if not path.startswith(WITHOUT_RESULT)}
        assert not left_out, f"{name} does not depend on {sorted(left_out)}, which it imports"
        unused = {d for d in code if not any(path == d or path.startswith(f"{d}/") for path in needed)}
        assert not unused, f"{name} depends on {sorted(unused)}, which it does not import"


def test_dvc_sees_every_file_of_the_code() -> None:
    """.dvcignore hides other files in folders of code, so that what editors leave there reruns nothing."""
    files = git(ROOT, "ls-files", "-z", "--", "tasks", "models").split("\0")[:-1]
    with Repo(str(ROOT)) as repo:
        hidden = [file for file in files if repo.dvcignore.is_ignored_file(str(ROOT / file))]
    assert len(files) > 50
    assert not hidden, f".dvcignore hides {hidden} from DVC"


def test_every_experiment_has_its_stages() -> None:
    assert {"train@report1_bce-seed0", "evaluate@report1_bce_iou-seed0"} <= stages().keys()
    assert {"plan", "compare", "report"} <= stages().keys()


def test_the_report_computes_nothing() -> None:
    """It reads the document that the stage compare wrote. It uses NumPy only for the pixels of pictures."""
    folders = (ROOT / "tasks" / "reporting", ROOT / "tasks" / "claim")
    report_modules = [ROOT / "tasks" / "report.py", *(path for of in folders for path in of.glob("*.py"))]
    for path in report_modules:
        names = imported(path)
        libraries = {name.partition(".")[0] for name in names}
        assert not libraries & {"pandas", "scipy", "statistics", "torch"}, path
        assert "numpy" not in libraries or path.stem in {"charts", "gallery"}, path
        packages = {name for name in names if name.startswith(("tasks.scoring", "tasks.comparison"))}
        assert all(
            name.startswith("tasks.comparison.document") for name in packages - {"tasks.comparison"}
        ), path
    reached = {path.relative_to(ROOT).as_posix() for path in closure(ROOT / "tasks" / "report.py")}
    assert not any(path.startswith(("tasks/scoring/", "models/")) for path in reached)
    assert {path for path in reached if path.startswith("tasks/comparison/")} == {
        "tasks/comparison/document.py"
    }


def test_only_one_module_of_the_comparison_reads_outputs_of_earlier_stages() -> None:
    """Only that module knows where trainings and evaluations are stored. The document reads its own file."""
    reading = {"read_csv", "read_text", "loads", "open"}
    found = {
        path.stem
        for path in (ROOT / "tasks" / "comparison").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in reading
    }
    assert found == {"document", "inputs"}


def test_everything_that_the_flows_use_of_dvc_s_internals_has_a_test() -> None:
    text = (ROOT / "tests" / "flows" / "repository" / "test_dvc_internals.py").read_text(encoding="utf-8")
    called = {
        node.func.id
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    internals = ast.parse((ROOT / "flows" / "repository" / "dvc_internals.py").read_text(encoding="utf-8"))
    functions = {node.name for node in internals.body if isinstance(node, ast.FunctionDef)}
    public = {name for name in functions if not name.startswith("_")}
    assert len(public) > 15
    assert public <= called, f"{sorted(public - called)} have no test"


def test_stages_import_no_library_that_they_do_not_use() -> None:
    """Importing torch and torch._dynamo takes two seconds each; NumPy, pandas and SciPy half a second."""
    command = """if True:
        import sys
        import tasks.plan
        assert not {"numpy", "pandas", "PIL"} & set(sys.modules)
        import tasks.report
        assert "pandas" not in sys.modules
        import tasks.audit, tasks.baselines, tasks.compare, tasks.download, tasks.preprocess
        import tasks.sources.look
        assert not {"torch", "scipy"} & set(sys.modules)
        import tasks.evaluate, tasks.lungs, tasks.train
        assert "scipy" not in sys.modules
        from pathlib import Path
        import torch
        from tasks.training.fitting import make_optimiser
        from tasks.settings.params import load_params
        for plan in load_params(Path("params.yaml")).plans.values():
            network = torch.nn.Linear(1, 1)
            optimiser = make_optimiser(plan, network)
            network(torch.ones(1)).backward()
            optimiser.step()
            optimiser.zero_grad()
            optimiser.load_state_dict(optimiser.state_dict())
        assert "torch._dynamo" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", command], cwd=ROOT, check=True)
