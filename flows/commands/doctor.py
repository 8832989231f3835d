"""`cxr doctor`: check this machine."""

from typing import Annotated

from cyclopts import Parameter

from flows.commands import ROOT


def doctor(
    *,
    quick: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Check this machine, and say what to do about each fault.

    Looks at Python and its packages, git, disks, GPUs, Prefect's settings, the network, the data source and
    the DVC remote. Changes nothing. The status is 1 if there is a fault.

    Args:
        quick: Run only the checks with which each run starts. They need no network and less than a second.
        as_json: Print JSON.

    Examples:
        cxr doctor
        cxr doctor --quick
        cxr doctor --json
    """
    import sys

    import psutil

    from flows.checks.output import print_json, print_text
    from flows.deployment.supervision import kill
    from flows.doctor import examine

    try:
        examined = examine(ROOT, before_runs=quick)
        faults = print_json(examined) if as_json else print_text(examined)
    finally:
        kill(psutil.Process().children(recursive=True))  # commands of checks that are no longer awaited
    sys.exit(1 if faults else 0)
