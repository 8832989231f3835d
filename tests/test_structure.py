"""What holds the house together: who may import whom, and that dvc.yaml names all that results stand on."""

import ast
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from dvc.repo import Repo

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

#: The rooms of each layer, the lowest first: one imports from those before it alone. The empty name is for
#: the modules beside the rooms.
ROOMS = {
    "tasks": (
        "support",
        "common",
        "settings",
        "packed",
        "sources",
        "networks",
        "inference",
        "training",
        "scoring",
        "comparison",
        "reporting",
        "",
    ),
    "flows": ("repository", "engine", "remote", "deployment", "", "commands"),
}

#: More files in a folder than anybody overlooks.
MOST_FILES = 16

#: What changes no result: the command line, the progress display and checkpoints; and the schema of
#: params.yaml, since what a stage takes from it, it names as params or as a plan file.
WITHOUT_RESULT = (
    "tasks/settings/",
    "tasks/support/checkpoints.py",
    "tasks/support/cli.py",
    "tasks/support/events.py",
    "tasks/support/progress.py",
)

#: Modules whose results are lines of a stage's log alone.
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


def room_of(path: Path) -> str:
    """The room of a module, empty for one that lies on top of its layer."""
    parts = path.relative_to(ROOT).parts
    return parts[1] if len(parts) > 2 else ""


def own_imports(path: Path) -> set[Path]:
    """The project's modules that one imports."""
    files = [ROOT / Path(*name.split(".")).with_suffix(".py") for name in imported(path)]
    return {file for file in files if file.is_file() and file.relative_to(ROOT).parts[0] in LAYERS}


@pytest.mark.parametrize("layer", ROOMS)
def test_rooms_import_downwards(layer: str) -> None:
    assert {room_of(path) for path in modules(layer)} == set(ROOMS[layer])
    floors = {room: floor for floor, room in enumerate(ROOMS[layer])}
    for path in modules(layer):
        for other in own_imports(path):
            same_layer = other.relative_to(ROOT).parts[0] == layer
            upwards = same_layer and floors[room_of(other)] > floors[room_of(path)]
            assert not upwards, f"{path.relative_to(ROOT)} imports {other.relative_to(ROOT)}"


def test_no_import_leads_back() -> None:
    order = TopologicalSorter({path: own_imports(path) for layer in LAYERS for path in modules(layer)})
    order.prepare()  # which refuses circles, and names one


def test_folders_can_be_overlooked() -> None:
    files = Counter(path.parent for layer in LAYERS for path in modules(layer))
    assert max(files.values()) <= MOST_FILES, files.most_common(1)


def closure(path: Path) -> set[Path]:
    """The project's files that a module imports, itself and what those import included."""
    found, waiting = set(), [path]
    while waiting:
        current = waiting.pop()
        if current in found:
            continue
        found.add(current)
        waiting += own_imports(current)
    return found


def stages() -> dict[str, tuple[str, set[str]]]:
    with Repo(str(ROOT)) as repo:
        return {s.name: (str(s.cmd), {d.def_path for d in s.deps}) for s in repo.index.stages}


def test_each_stage_depends_on_just_the_code_that_its_results_stand_on() -> None:
    for name, (command, dependencies) in stages().items():
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


def test_every_experiment_has_its_stages() -> None:
    assert {"train@report1_bce-seed0", "evaluate@report1_bce_iou-seed0"} <= stages().keys()
    assert {"plan", "compare", "report"} <= stages().keys()


def test_the_report_computes_nothing() -> None:
    """It reads the document that the stage compare wrote; NumPy serves the pixels of its pictures alone."""
    room = [ROOT / "tasks" / "report.py", *(ROOT / "tasks" / "reporting").glob("*.py")]
    for path in room:
        names = imported(path)
        libraries = {name.partition(".")[0] for name in names}
        assert not libraries & {"pandas", "scipy", "statistics", "torch"}, path
        assert "numpy" not in libraries or path.stem in {"charts", "gallery"}, path
        rooms = {name for name in names if name.startswith(("tasks.scoring", "tasks.comparison"))}
        assert all(name.startswith("tasks.comparison.document") for name in rooms - {"tasks.comparison"}), (
            path
        )
    reached = {path.relative_to(ROOT).as_posix() for path in closure(ROOT / "tasks" / "report.py")}
    assert not any(path.startswith(("tasks/scoring/", "models/")) for path in reached)
    assert {path for path in reached if path.startswith("tasks/comparison/")} == {
        "tasks/comparison/document.py"
    }


def test_one_module_of_the_comparison_reads_what_earlier_stages_left() -> None:
    """So where trainings and evaluations are stored is known in one place; the document reads itself."""
    reading = {"read_csv", "read_text", "loads", "open"}
    found = {
        path.stem
        for path in (ROOT / "tasks" / "comparison").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in reading
    }
    assert found == {"document", "inputs"}


def test_stages_load_no_library_that_they_do_not_use() -> None:
    """torch and torch._dynamo take two seconds each to load, NumPy, pandas and SciPy half a second."""
    command = """if True:
        import sys
        import tasks.plan
        assert not {"numpy", "pandas", "PIL"} & set(sys.modules)
        import tasks.report
        assert "pandas" not in sys.modules
        import tasks.audit, tasks.baselines, tasks.compare, tasks.download, tasks.look, tasks.preprocess
        assert not {"torch", "scipy"} & set(sys.modules)
        import tasks.evaluate, tasks.lungs, tasks.train
        assert "scipy" not in sys.modules
        from pathlib import Path
        import torch
        from tasks.training.fitting import make_optimiser
        from tasks.settings.schema import load_params
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
