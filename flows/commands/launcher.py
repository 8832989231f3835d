# The script .venv/bin/cxr. The Makefile adds its first lines. It runs the code of the checkout that contains
# the current folder, because several checkouts may share one .venv.
import sys
from pathlib import Path

here = Path.cwd()
for folder in (here, *here.parents):
    if all((folder / name).exists() for name in ("dvc.yaml", "flows", "tasks")):
        sys.path.insert(0, str(folder))
        break
else:
    print(
        f"error: {here} is not in a checkout of the project, a folder with dvc.yaml, flows/ and tasks/",
        file=sys.stderr,
    )
    sys.exit(2)

from flows.commands.cli import main  # noqa: E402

main()
