"""A local TCP proxy between a server and its clients, which can be switched off."""

import select
import socket
import threading
from contextlib import suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

from tests.helpers import free_ports


class Proxy:
    """Forwards connections to a local port while it is on. Its own port never changes."""

    def __init__(self, target: int) -> None:
        self._target = target
        (self.port,) = free_ports(1)
        self._relay: _Relay | None = None
        self.on()

    def on(self) -> None:
        if self._relay is None:
            self._relay = _Relay(self.port, self._target)
            self._thread = threading.Thread(target=self._relay.serve_forever, kwargs={"poll_interval": 0.02})
            self._thread.start()

    def off(self) -> None:
        """Close all connections and refuse new ones."""
        if self._relay:
            self._relay.shutdown()
            self._relay.cut()
            self._relay.server_close()  # waits for the threads of the connections
            self._thread.join()
            self._relay = None


class _Relay(ThreadingTCPServer):
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, port: int, target: int) -> None:
        super().__init__(("127.0.0.1", port), _Connection)
        self.target = target
        self.clients: set[socket.socket] = set()

    def get_request(self) -> tuple[socket.socket, Any]:
        client, address = super().get_request()
        self.clients.add(client)
        return client, address

    def shutdown_request(self, request: Any) -> None:
        self.clients.discard(request)
        super().shutdown_request(request)

    def cut(self) -> None:
        for client in list(self.clients):
            with suppress(OSError):  # the connection has just ended
                client.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: object) -> None:
        """Ignore connections that end on either side."""


class _Connection(BaseRequestHandler):
    server: _Relay

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.target)) as there:
            other = {self.request: there, there: self.request}
            while True:
                for ready in select.select(list(other), [], [])[0]:
                    if not (data := ready.recv(1 << 16)):
                        return
                    other[ready].sendall(data)
