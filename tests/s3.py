"""A real local S3-compatible server for tests: one Ceph monitor, one OSD and the RADOS gateway.

On Debian: apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import requests
from s3fs import S3FileSystem

from tests.helpers import free_ports, shared

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
KEY, SECRET = "test", "testtest"
#: Without a `setuser` option, Ceph runs as the user who runs the tests.
SETTINGS = """
[global]
fsid = {fsid}
mon host = {monitor}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
osd crush chooseleaf type = 0
osd objectstore = bluestore
bluestore block size = 10737418240
osd memory target = 1073741824
run dir = {folder}/run
admin socket = {folder}/run/$name.$pid.asok
log file = {folder}/log/$name.log
pid file = {folder}/run/$name.pid
mon data = {folder}/mon
osd data = {folder}/osd
rgw dns name = {host}
keyring = {folder}/keyring
"""


class S3Server(NamedTuple):
    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables that a user would set to use the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def files(self) -> S3FileSystem:
        """Return a file system of all buckets, without a listings cache."""
        return S3FileSystem(
            key=KEY,
            secret=SECRET,
            endpoint_url=self.endpoint,
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def make_bucket(self) -> str:
        """Create a bucket, and return its name."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        self.files().mkdir(name)
        return name


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        pytest.skip(f"no S3 server: {', '.join(missing)} not installed; see tests/s3.py")
    with shared(tmp_path_factory, "s3", start, stop) as info:
        yield S3Server(info.split()[0])


def start() -> str:
    """Start an empty server. Returns its endpoint and the folder of its data, separated by a space."""
    for last in (False, False, True):
        # The paths of sockets must be shorter than those of pytest's folders.
        folder = Path(tempfile.mkdtemp(prefix="s3-"))
        try:
            return f"{_start(folder).endpoint} {folder}"
        except BaseException as error:
            _stop(folder)
            # Tests run in parallel, so another one may have taken the port.
            if last or not isinstance(error, AssertionError):
                raise
    raise AssertionError


def stop(info: str) -> None:
    """End a server and delete its data."""
    _stop(Path(info.split()[1]))


@contextmanager
def serving() -> Iterator[S3Server]:
    """Run a server for one test."""
    info = start()
    try:
        yield S3Server(info.split()[0])
    finally:
        stop(info)


def _start(folder: Path) -> S3Server:
    for name in ("mon", "osd", "run", "log"):
        (folder / name).mkdir()
    monitor_port, gateway = free_ports(2)
    # The monitor is not on its default port, so the address has to name the protocol.
    monitor = f"[v1:127.0.0.1:{monitor_port}]"
    fsid = str(uuid.uuid4())
    settings, log = folder / "ceph.conf", folder / "log" / "start.log"
    settings.write_text(
        SETTINGS.format(fsid=fsid, monitor=monitor, host="localhost", folder=folder), encoding="utf-8"
    )

    def run(*command: str, tries: int = 1) -> None:
        # A file instead of a pipe, because the daemons keep it open.
        with log.open("a", encoding="utf-8") as output:
            done = subprocess.run(
                command,
                env=os.environ | {"CEPH_CONF": str(settings)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=120,
                check=False,
            )
        if done.returncode and tries > 1:
            run(*command, tries=tries - 1)
        else:
            assert done.returncode == 0, f"{' '.join(command)}: {log.read_text(encoding='utf-8')}"

    run("monmaptool", "--create", "--addv", "a", monitor, "--fsid", fsid, f"{folder}/monmap")
    run("ceph-mon", "--mkfs", "-i", "a", "--monmap", f"{folder}/monmap")
    run("ceph-mon", "-i", "a")
    osd = str(uuid.uuid4())
    run("ceph", "osd", "new", osd)
    run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
    # Occasionally the monitor refuses the first connection of the OSD with "wrong fsid".
    run("ceph-osd", "-i", "0", tries=5)
    run("radosgw", "-n", "client.rgw", f"--rgw-frontends=beast endpoint=127.0.0.1:{gateway}")
    user = (
        "user",
        "create",
        "--uid=dev",
        "--display-name=dev",
        f"--access-key={KEY}",
        f"--secret-key={SECRET}",
    )
    run("radosgw-admin", "-n", "client.rgw", *user)
    server = S3Server(f"http://127.0.0.1:{gateway}")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(requests.ConnectionError):
            requests.get(server.endpoint, timeout=5)
            return server
        time.sleep(0.2)
    raise TimeoutError(f"{server.endpoint} did not answer within a minute")


def _stop(folder: Path) -> None:
    """End the server's processes, including those of a failed start."""
    pids = [int(file.read_text()) for file in (folder / "run").glob("*.pid")]
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # its data is deleted too
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)
