"""`cxr worker`, which `make worker` runs."""

from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number


def worker(
    *,
    pool: Annotated[str, Parameter(metavar="NAME")],
    server: Annotated[str | None, Parameter(metavar="URL")] = None,
    name: Annotated[str | None, Parameter(metavar="NAME")] = None,
    limit: Annotated[int | None, Parameter(metavar="N")] = None,
    exit_when_idle: Annotated[float | None, Parameter(metavar="MINUTES", validator=Number(gt=0))] = None,
) -> None:
    """Run stages for flows on other machines, until Ctrl-C.

    Args:
        pool: The work pool. It is created if it does not exist.
        server: The Prefect server. By default PREFECT_API_URL.
        name: The worker's name. By default the host name.
        limit: How many stages to run at a time. By default one per GPU, or as many as the CPU cores allow.
        exit_when_idle: Exit with status 0 after this many minutes without a stage, for example to end a SLURM
            job.

    Examples:
        cxr worker --pool gpu --server http://HOST:4200
        cxr worker --pool cpu --server http://HOST:4200 --limit 2
        cxr worker --pool gpu --server http://HOST:4200 --exit-when-idle 15
    """
    from flows.worker import main

    main(pool, server, name, limit, exit_when_idle)
