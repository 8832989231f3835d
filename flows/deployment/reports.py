"""Serve the reports in runs/ to browsers on this machine."""

import errno
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prefect.settings import get_current_settings

from flows.deployment.addresses import is_own_host, own_host_names
from tasks.support.cli import InputError

#: Sent with every answer. A report loads nothing and runs no script, and other pages must not frame it.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class ReportHandler(SimpleHTTPRequestHandler):
    """Serves the files in runs/, except hidden ones, which are checkouts, locks and logs."""

    #: Seconds after which a connection without a request is closed.
    timeout = 30

    def send_head(self) -> Any:
        # Refuse pages of other sites whose domain resolves to this machine.
        if not is_own_host(self.headers.get("Host", ""), own_host_names()):
            self.send_error(403)
            return None
        if not self._is_served(Path(self.translate_path(self.path))):
            self.send_error(404)
            return None
        return super().send_head()

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def _is_served(self, path: Path) -> bool:
        """Return whether a path is in runs/, also after following symlinks, and not hidden."""
        root = Path(self.directory)
        try:
            parts = [*path.relative_to(root).parts, *path.resolve().relative_to(root.resolve()).parts]
        except ValueError:  # outside, or with a null byte
            return False
        return not any(part.startswith(".") for part in parts)

    def list_directory(self, path: Any) -> Any:  # noqa: ARG002
        """Respond with 404, because a list would contain the names of hidden files."""
        self.send_error(404)

    def log_message(self, *args: Any) -> None:
        """Log nothing."""


class IPv6Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6


def _bind(host: str, port: int, handler: Callable[..., ReportHandler]) -> ThreadingHTTPServer:
    kind = IPv6Server if ":" in host else ThreadingHTTPServer
    try:
        return kind((host, port), handler)
    except OverflowError:
        why = "ports are 0 to 65535"
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise InputError(f"--reports-host {host}: {error.strerror}") from None
        why = error.strerror or ""
    raise InputError(f"--reports-port {port}: {why}; choose another port, or 0 for any free port")


@contextmanager
def serving_reports(folder: Path, host: str, port: int | None) -> Iterator[str]:
    """Serve the reports at one of this machine's addresses, and yield their URL for local browsers."""
    chosen = get_current_settings().server.api.port + 1 if port is None else port
    server = _bind(host, chosen, partial(ReportHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        seen_at = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
        yield f"http://{seen_at}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
