"""Serve the reports in runs/ to browsers on this machine."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prefect.settings import get_current_settings

from flows.deployment.addresses import is_own_host, own_host_names
from tasks.support.cli import InputError


class ReportHandler(SimpleHTTPRequestHandler):
    """Serves the files in runs/, except hidden ones, which are checkouts, locks and logs."""

    def send_head(self) -> Any:
        # Refuse pages of other sites whose domain resolves to this machine.
        if not is_own_host(self.headers.get("Host", ""), own_host_names()):
            self.send_error(403)
            return None
        if any(
            part.startswith(".")
            for part in Path(self.translate_path(self.path)).relative_to(self.directory).parts
        ):
            self.send_error(404)
            return None
        return super().send_head()

    def log_message(self, *args: Any) -> None:
        """Log nothing."""


@contextmanager
def serving_reports(folder: Path, host: str, port: int | None) -> Iterator[str]:
    """Serve the reports at one of this machine's addresses, and yield their URL for local browsers."""
    chosen = get_current_settings().server.api.port + 1 if port is None else port
    try:
        server = ThreadingHTTPServer((host, chosen), partial(ReportHandler, directory=str(folder)))
    except OSError as error:
        raise InputError(
            f"--reports-port {chosen}: {error.strerror}; choose another port, or 0 for any free port"
        ) from None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        seen_at = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104
        yield f"http://{seen_at}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
