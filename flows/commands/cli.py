"""The commands of `cxr`. To add one, write its function in a module of this folder, and list it here."""

import inspect
import shlex
import sys
from collections.abc import Callable
from typing import Any

from cyclopts import App, Parameter
from cyclopts.exceptions import CycloptsError, UnusedCliTokensError

from flows.commands import models
from flows.commands.data import diff, look
from flows.commands.doctor import doctor
from flows.commands.inbox import inbox
from flows.commands.params import params
from flows.commands.predict import predict
from flows.commands.prune import prune
from flows.commands.retrain import retrain
from flows.commands.serve import serve
from flows.commands.sweep import best, sweep
from flows.commands.verify import verify
from flows.commands.watch import watch
from flows.commands.worker import worker
from tasks.support.cli import InputError, stage_main

#: The project's own packages.
OWN = ("flows", "tasks", "models")

#: How to install everything. `cxr predict` alone needs less.
INSTALL = "run `make install` in a checkout of the project, or pip install '.[pipeline]'"

#: Exit status of an invalid command line.
USAGE = 2

COMMANDS = (retrain, sweep, watch, serve, worker, params, predict, inbox, verify, prune, doctor)

#: Commands below another word, such as `cxr data look`. The word may be a command itself.
GROUPS: dict[str, tuple[str, tuple[Callable[..., Any], ...]]] = {
    "data": ("See what changed in the dataset.", (look, diff)),
    "sweep": ("", (best,)),
    "models": (
        "Version, compare, promote and roll back networks.",
        (
            models.list_,
            models.show,
            models.get,
            models.compare,
            models.promote,
            models.refuse,
            models.rollback,
            models.history,
        ),
    ),
}


def make_app() -> App:
    app = App(
        name="cxr",
        help="Train, evaluate, compare and apply segmentation networks on COVID-QU-Ex chest X-rays.",
        help_epilogue="`cxr COMMAND --help` shows a command's options, with examples.",
        help_format="plaintext",
        version_flags=(),
        default_parameter=Parameter(negative=(), show_default=lambda value: value or None),
    )
    for command in COMMANDS:
        _add(app, command)
    for name, (text, commands) in GROUPS.items():
        if text:
            app.command(App(name=name, help=text))
        for command in commands:
            _add(app[name], command)
    app.register_install_completion_command(help="Install completion for this shell.")
    return app


def _add(app: App, command: Callable[..., Any]) -> None:
    """Add a command. Its help text is its docstring, wrapped for the terminal, with examples at the end."""
    text, _, examples = (inspect.getdoc(command) or "").partition("\nExamples:\n")
    paragraphs = text.partition("\nArgs:\n")[0].split("\n\n")
    app.command(
        command,
        help="\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs).strip(),
        help_epilogue=f"Examples:\n{examples}",
    )


def main() -> None:
    stage_main(_run)


def _run() -> None:
    try:
        make_app()(print_error=False, exit_on_error=False, result_action="return_value")
    except CycloptsError as error:
        print(f"error: {_describe(error)}", file=sys.stderr)
        sys.exit(USAGE)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in OWN:
            raise
        raise InputError(
            f"{error.name} is not installed. It comes with the extra `pipeline`: {INSTALL}"
        ) from None


def _describe(error: CycloptsError) -> str:
    """Return what is wrong with a command line, in one line."""
    if not isinstance(error, UnusedCliTokensError):
        return " ".join(str(error).split())
    unused = error.unused_tokens or []
    hint = "; write --set before each KEY=VALUE" if any("=" in token for token in unused) else ""
    return f"unexpected: {shlex.join(unused)}{hint}"
