"""The reports under runs/, shown to browsers on this machine."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prefect.settings import get_current_settings

from flows.deployment.addresses import is_own, own_names
from tasks.support.cli import InputError


class ReportHandler(SimpleHTTPRequestHandler):
    """Shows a browser what lies under runs/, but for hidden files: those are checkouts, locks and logs."""

    def send_head(self) -> Any:
        if not is_own(self.headers.get("Host", ""), own_names()):  # another site's page, led here by its name
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
        """Say nothing."""


@contextmanager
def serving_reports(folder: Path, host: str, port: int | None) -> Iterator[str]:
    """Serve the reports on one of this machine's addresses; where its own browsers find them."""
    chosen = get_current_settings().server.api.port + 1 if port is None else port
    try:
        server = ThreadingHTTPServer((host, chosen), partial(ReportHandler, directory=str(folder)))
    except OSError as error:
        raise InputError(
            f"--reports-port {chosen}: {error.strerror}; choose another, 0 takes any that is free"
        ) from None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        seen_at = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104
        yield f"http://{seen_at}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
