"""The command `cxr`, as installed by `make install`."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from cyclopts import App

from flows.commands.cli import COMMANDS, GROUPS, make_app
from flows.commands.retrain import retrain
from flows.repository.git import environment
from flows.request import Publish
from tasks.settings.params import load_params
from tests.helpers import ROOT

#: Packages that take from a tenth of a second to seconds to import.
HEAVY = ("dvc", "numpy", "pandas", "prefect", "pydantic", "torch")


def cxr(*arguments: str, folder: Path = ROOT, home: Path | None = None) -> "subprocess.CompletedProcess[str]":
    variables = environment() | ({"HOME": str(home)} if home else {})
    return subprocess.run(["cxr", *arguments], cwd=folder, env=variables, capture_output=True, text=True)


#: The words of each command.
EVERY = [[command.__name__.rstrip("_")] for command in COMMANDS] + [
    [group, command.__name__.rstrip("_")] for group, (_, commands) in GROUPS.items() for command in commands
]


@pytest.mark.parametrize("words", [[], *EVERY], ids=" ".join)
def test_help_imports_no_slow_package(words: list[str]) -> None:
    code = f"""if True:
        import sys
        from flows.commands.cli import main
        sys.argv = ["cxr", *{words}, "--help"]
        main()
        print(sorted(set({HEAVY}) & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith(" ".join(["Usage: cxr", *words]))
    assert lines[-1] == "[]"


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_the_examples_of_each_command_are_valid(words: list[str]) -> None:
    app: App = make_app()
    for word in words:
        app = app[word]
    assert app.help_epilogue
    heading, *examples = app.help_epilogue.splitlines()
    assert heading == "Examples:" and examples
    for example in examples:
        command = shlex.split(example)
        tokens = command[command.index("cxr") + 1 :]
        assert tokens[: len(words)] == words
        make_app().parse_args(tokens, print_error=False, exit_on_error=False)


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        ("retrai", 2, 'Unknown command "retrai". Did you mean "retrain"?'),
        ("data dif", 2, 'Unknown command "dif". Did you mean "diff"?'),
        ("retrain --experiment a", 2, "Unknown option: --experiment. Did you mean --experiments?"),
        ("retrain --publish moon", 2, 'Invalid value "moon" for --publish. Choose from: "remotes", "here", '),
        ("worker --pool gpu --limit x", 2, 'Invalid value for --limit: unable to convert "x" into int.'),
        ("worker", 2, 'Command "worker" parameter --pool requires an argument.'),
        ("params --set alpha=0.3 epochs=7", 2, "unexpected: epochs=7; write --set before each KEY=VALUE"),
        ("data look here", 2, "unexpected: here\n"),
        ("params --set alpha", 1, "alpha: expected KEY=VALUE, for example alpha=0.3"),
        ("params --preset nothing", 1, "presets/nothing.yaml: no such file"),
    ],
)
def test_an_error_is_reported_in_one_line(arguments: str, status: int, line: str) -> None:
    done = cxr(*arguments.split())
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(f"error: {line}") and done.stderr.count("\n") == 1


def test_the_choices_of_publish_are_those_of_the_form() -> None:
    assert get_type_hints(retrain)["publish"] == Publish
    assert get_args(Publish)


def test_params_applies_a_preset_by_name_and_values(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes((ROOT / "params.yaml").read_bytes())
    done = cxr(
        "params", "--params", str(file), "--preset", "laptop", "--set", "alpha=0.3", "--set", "epochs=7"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    params = load_params(file)
    assert params.training.image_size == 128  # from the preset
    assert params.alpha == 0.3
    assert {plan.epochs for plan in params.plans.values()} == {7}
    assert "# " in file.read_text()


def test_data_look_describes_the_source_in_params_yaml(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes((ROOT / "params.yaml").read_bytes())
    cxr("params", "--params", str(file), "--set", "data.source=phantom://9").check_returncode()
    done = cxr("data", "look", "--params", str(file))
    assert done.stdout == "phantom://9: never changes: 27 files\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose command prints its process id and arguments."""
    code = tmp_path / "a folder" / "flows" / "commands" / "cli.py"
    code.parent.mkdir(parents=True)
    code.write_text("import os, sys\ndef main(): print(os.getpid(), *sys.argv[1:])\n")
    folder = tmp_path / "a folder"
    (folder / "dvc.yaml").touch()
    (folder / "tasks").mkdir()
    return folder


def test_it_runs_the_code_of_the_current_checkout_in_its_own_process(checkout: Path) -> None:
    command = ["cxr", "a b", "$c"]
    with subprocess.Popen(
        command, cwd=checkout / "tasks", env=environment(), stdout=subprocess.PIPE
    ) as process:
        assert process.communicate()[0] == f"{process.pid} a b $c\n".encode()


def test_make_installs_it_once_per_environment(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # set by `make test`
        monkeypatch.delenv(name, raising=False)
    for name in ("Makefile", "requirements.lock", "flows/commands/launcher.py"):
        shutil.copyfile(ROOT / name, checkout / name)
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (checkout / ".venv" / "installed").touch()
    install = ["make", "--silent", "install"]
    assert subprocess.check_output(install, cwd=checkout, text=True) == ""
    assert subprocess.check_output([checkout / ".venv/bin/cxr", "a b"], cwd=checkout).endswith(b" a b\n")
    assert "Nothing to be done" in subprocess.check_output(["make", "install"], cwd=checkout, text=True)


def test_outside_a_checkout_it_reports_an_error(tmp_path: Path) -> None:
    done = cxr("--help", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {tmp_path} is not in a checkout of the project, a folder with dvc.yaml, flows/ and tasks/\n"
    )


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    done = cxr("--install-completion", "--shell", "bash", home=tmp_path)
    assert done.returncode == 0, done.stderr
    (script,) = [path for path in tmp_path.rglob("*") if path.is_file() and path.name == "cxr"]

    def completed(*words: str) -> set[str]:
        code = f"""
            source {script}
            COMP_WORDS=({" ".join(words)}) COMP_CWORD={len(words) - 1}
            $(complete -p cxr | sed 's/.*-F \\([^ ]*\\).*/\\1/')
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(
            ["bash", "-c", code], env=os.environ | {"HOME": str(tmp_path)}, capture_output=True, text=True
        )
        assert done.stderr == ""
        return {word.strip() for word in done.stdout.splitlines()}

    assert completed("cxr", "ret") == {"retrain"}
    assert completed("cxr", "data", "d") == {"diff"}
    assert completed("cxr", "retrain", "--exp") == {"--experiments"}
    assert completed("cxr", "retrain", "--publish", "re") == {"remotes"}
