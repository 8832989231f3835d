"""Real servers of git repositories: over https with a password, and over ssh with a key."""

import base64
import getpass
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil

from flows.repository.git import environment
from tests.fileserver import serving_requests
from tests.helpers import eventually, free_ports

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class HttpsServer(ThreadingHTTPServer):
    """Serves the repositories below a folder by `git http-backend`, to a user with a password."""

    daemon_threads = True
    user, password = "ada", "s3cret/@ %"

    def __init__(self, folder: Path, certificate: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Backend)
        self.folder, self.certificate = folder, certificate
        self.address = f"localhost:{self.server_port}"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, *_: object) -> None:
        """Ignore clients that refuse the certificate."""


class _Backend(BaseHTTPRequestHandler):
    server: HttpsServer

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        said = f"{self.server.user}:{self.server.password}".encode()
        if self.headers["Authorization"] != f"Basic {base64.b64encode(said).decode()}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        variables = {
            "GIT_PROJECT_ROOT": str(self.server.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REMOTE_USER": self.server.user,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
        }
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        done = subprocess.run(
            ["git", "http-backend"],
            env=environment() | variables,
            input=body,
            capture_output=True,
            check=True,
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def make_certificate(path: Path) -> None:
    """Write a certificate for localhost that no authority has signed, and its key beside it."""
    options = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost"]
    files = ["-out", str(path), "-keyout", str(path.with_suffix(".key"))]
    subprocess.run(["openssl", "req", *options.split(), *names, *files], check=True, capture_output=True)


@contextmanager
def https_server(folder: Path, certificate: Path) -> Iterator[HttpsServer]:
    """Serve the repositories below a folder."""
    make_certificate(certificate)
    with serving_requests(HttpsServer(folder, certificate)) as server:
        yield server


def make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


@contextmanager
def ssh_server(folder: Path) -> Iterator[tuple[str, str]]:
    """Run sshd, with its files in a new folder. Yields its address, and the ssh command that it accepts."""
    assert SSHD
    folder.mkdir()
    for name in ("host", "user"):
        make_key(folder / name)
    shutil.copy(folder / "user.pub", folder / "authorized")
    (port,) = free_ports(1)
    host_key = (folder / "host.pub").read_text()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {host_key}")
    settings = f"""
        ListenAddress 127.0.0.1:{port}
        HostKey {folder / "host"}
        AuthorizedKeysFile {folder / "authorized"}
        AuthenticationMethods publickey
        PermitRootLogin prohibit-password
        PidFile none
        StrictModes no
        UsePAM no
    """
    (folder / "config").write_text(settings)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where services are started by hand, nobody has made it
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "config")], stderr=log)
    try:
        heard = eventually(
            "sshd listens",
            lambda: server.poll() is not None or b"listening on" in (folder / "log").read_bytes(),
        )
        assert heard and server.poll() is None, (folder / "log").read_text()
        options = f"-F none -o IdentitiesOnly=yes -o BatchMode=yes -o UserKnownHostsFile={folder / 'known'}"
        yield f"{getpass.getuser()}@127.0.0.1:{port}", f"ssh {options} -i {folder / 'user'}"
    finally:
        for child in psutil.Process(server.pid).children(recursive=True):
            child.kill()
        server.terminate()
        server.wait(30)
