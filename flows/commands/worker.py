"""`cxr worker`, which `make worker` runs."""

from typing import Annotated

from cyclopts import Parameter


def worker(
    *,
    pool: Annotated[str, Parameter(metavar="NAME")],
    server: Annotated[str | None, Parameter(metavar="URL")] = None,
    name: Annotated[str | None, Parameter(metavar="NAME")] = None,
    limit: Annotated[int | None, Parameter(metavar="N")] = None,
) -> None:
    """Run stages for flows on other machines, until Ctrl-C.

    Args:
        pool: The work pool. It is created if it does not exist.
        server: The Prefect server. By default PREFECT_API_URL.
        name: The worker's name. By default the host name.
        limit: How many stages to run at a time. By default one per GPU, or as many as the CPU cores allow.

    Examples:
        cxr worker --pool gpu --server http://HOST:4200
        cxr worker --pool cpu --server http://HOST:4200 --limit 2
    """
    from flows.worker import main

    main(pool, server, name, limit)
