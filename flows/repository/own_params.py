"""Change a params.yaml by the code of its own revision. Run as a script in a folder with that code.

Reads the arguments of `flows.repository.revision.change_params` as JSON from stdin, and prints the new text.
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def main() -> None:
    sys.path[0] = str(Path.cwd())
    asked = json.load(sys.stdin)
    code = _code()
    try:
        changes = {}
        if asked["preset"]:
            changes[asked["preset"]] = code.read_preset(Path(asked["preset"]))
        changes |= asked["changes"]
        changes |= {assignment: code.parse_assignment(assignment) for assignment in asked["assignments"]}
        chosen = [asked["experiments"]] if asked["experiments"] else []
        text = code.with_changes(asked["text"], changes, *chosen)
    except ValueError as error:  # an InputError of that revision
        sys.exit(f"error: {error}")
    sys.stdout.buffer.write(text.encode())


def _code() -> Any:
    try:
        return import_module("tasks.settings.changes")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("tasks.settings"):
            raise
        return import_module("tasks.params")  # as early revisions call it


if __name__ == "__main__":
    main()
