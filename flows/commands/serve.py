"""`cxr serve`, which `make serve` runs."""

from typing import Annotated

from cyclopts import Parameter


def serve(
    *,
    name: Annotated[str, Parameter(metavar="NAME")] = "retrain",
    reports_port: Annotated[int | None, Parameter(metavar="PORT")] = None,
    reports_host: Annotated[str, Parameter(metavar="HOST")] = "127.0.0.1",
    reports_url: Annotated[str | None, Parameter(metavar="URL")] = None,
) -> None:
    """Serve retraining in the Prefect UI, until Ctrl-C.

    Starts a Prefect server and a worker, and creates the deployments.

    If PREFECT_API_URL is set, uses that server instead of starting one.

    Args:
        name: The name of the deployments and their work pool. Clones that share a server need different
            names.
        reports_port: The port for reports. By default the one after the server's. 0 uses any free port.
        reports_host: The address for reports, which have no password. Use 0.0.0.0 in a container.
        reports_url: Where browsers on other machines reach the reports. Links in the UI begin with it.

    Examples:
        cxr serve
        cxr serve --name lungs --reports-port 5001
        PREFECT_API_URL=http://HOST:4200/api cxr serve
    """
    from flows.serve import main
    from flows.sweep.flow import sweep

    main(name, reports_host, reports_port, reports_url, (sweep,))
