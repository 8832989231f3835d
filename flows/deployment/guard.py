"""A Prefect server for `make serve` that refuses requests from other web sites.

    python -m flows.deployment.guard --host 127.0.0.1 --port 4200

Without a password, `prefect server start` accepts requests from any page that a browser on this machine
opens. CORS does not block a POST without a content type, a websocket, or a page whose domain resolves to
127.0.0.1. This server therefore refuses a request if its Origin is a page of another server, or its Host is
another server's name.
"""

import argparse
import signal
from collections.abc import Set
from contextlib import suppress
from types import FrameType
from urllib.parse import urlsplit

import uvicorn
from prefect.logging.configuration import setup_logging
from prefect.server.api.server import create_app
from prefect.settings import get_current_settings
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from flows.deployment.addresses import is_own_host, own_host_names


class Guard:
    """Passes on requests of programs and of the server's own pages. All others get status 403."""

    def __init__(self, app: ASGIApp, names: Set[str], origins: Set[str]) -> None:
        """Guard an app. `names` are the server's host names. `origins` may send requests too."""
        self._app, self._names, self._origins = app, names, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] != "lifespan" and (fault := self._fault(Headers(scope=scope))):
            refused = PlainTextResponse(fault, status_code=403)
            app = WebSocketClose(reason=fault) if scope["type"] == "websocket" else refused
        await app(scope, receive, send)

    def _fault(self, headers: Headers) -> str | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not is_own_host(host, self._names):
            return f"{host!r} is not a name of this server; use its IP address, or set a password"
        if origin and origin not in self._origins and urlsplit(origin).netloc != host:
            return (
                f"pages of {origin} may not use this server; "
                "add the origin to PREFECT_SERVER_CORS_ALLOWED_ORIGINS to allow it"
            )
        return None


def guarded() -> ASGIApp:
    """Return Prefect's server. It is guarded unless it has a password or accepts all origins."""
    app, settings = create_app(final=True), get_current_settings().server.api
    origins = set(settings.cors_allowed_origins.split(","))
    if settings.auth_string or "*" in origins:
        return app
    return Guard(
        app, own_host_names(settings.host, *(urlsplit(origin).hostname for origin in origins)), origins
    )


class Server(uvicorn.Server):
    """Ignores SIGTERM. A service manager may send it to all processes at once, and runs report here first."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig != signal.SIGTERM:
            super().handle_exit(sig, frame)


def main() -> None:
    parser = argparse.ArgumentParser(description="Start a Prefect server that ends at SIGINT.")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    setup_logging()
    settings = get_current_settings().server
    config = uvicorn.Config(
        guarded(),
        host=args.host,
        port=args.port,
        timeout_keep_alive=settings.api.keepalive_timeout,
        ws_ping_interval=settings.api.websocket_ping_interval,
        ws_ping_timeout=settings.api.websocket_ping_timeout,
        log_level=settings.logging_level.lower(),
    )
    with suppress(KeyboardInterrupt):
        Server(config).run()


if __name__ == "__main__":
    main()
