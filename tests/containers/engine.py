"""A Docker engine, with images for compose.yaml on machines that reach no image registry.

There, images are made of Debian's packages: a minimal Debian with Python for `python:...`, and on top of it
PostgreSQL and Ceph's S3 gateway. They are kept under names of their own.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.helpers import ROOT, eventually
from tests.s3 import SETTINGS

HERE = Path(__file__).parent
#: The prefix of the names of all images that the tests make.
OWN = "retrain-tests"
#: The settings of the S3 gateway, whose data is in a volume.
CEPH = SETTINGS.format(
    fsid="5e8a9a4c-6b1f-4b0e-9f0e-3c1d0a6f7b21", monitor="[v1:127.0.0.1:6789]", host="storage", folder="/data"
)
#: What a minimal Debian lacks of the official image of Python.
PACKAGES = "ca-certificates,python3,python3-venv"


def docker(*arguments: str) -> str:
    """Run a command of Docker, and return its output."""
    return _output(["docker", *arguments])


def _output(command: list[str], **options: Any) -> str:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
    return str(done.stdout)


def works(*command: str) -> bool:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


@contextmanager
def engine() -> Iterator[None]:
    """Use the engine of this machine. If none runs, and this is root, run one meanwhile."""
    if not works("docker", "compose", "version"):
        pytest.skip("Docker, or its plugin Compose 2.24 or newer, is not installed")
    if works("docker", "info"):
        yield
        return
    if os.geteuid() or not shutil.which("dockerd"):
        pytest.skip("no Docker engine answers, and only root can start one, with dockerd")
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(["dockerd"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            eventually(
                "the engine answers",
                lambda: works("docker", "info") or process.poll() is not None,
                timeout=60,
            )
            if process.poll() is not None:
                log.seek(0)
                pytest.skip(f"dockerd does not start: {log.read().decode().splitlines()[-1]}")
            yield
        finally:
            process.terminate()
            process.wait(60)


@contextmanager
def images() -> Iterator[dict[str, str]]:
    """Provide all images that the Dockerfile and compose.yaml take from a registry.

    Yields the services whose images are substitutes, with the names of these.
    """
    (python,) = (line.split()[1] for line in _text("Dockerfile").splitlines() if line.startswith("FROM "))
    services = YAML(typ="safe").load(_text("compose.yaml"))["services"]
    with ExitStack() as stack:
        if not _there(python):
            _make_python(f"{OWN}/python")
            docker("tag", f"{OWN}/python", python)
            stack.callback(docker, "rmi", python)
        substitutes = {}
        for service in ("database", "storage"):
            if not _there(services[service]["image"]):
                substitutes[service] = f"{OWN}/{service}"
                options = (f"--tag={substitutes[service]}", f"--build-arg=PYTHON={python}", "--network=host")
                with tempfile.TemporaryDirectory() as context:
                    shutil.copytree(HERE / service, context, dirs_exist_ok=True)
                    Path(context, "ceph.conf").write_text(CEPH)
                    docker("build", *options, context)
        yield substitutes


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _there(image: str) -> bool:
    return works("docker", "image", "inspect", image) or works("docker", "pull", "--quiet", image)


def _make_python(name: str) -> None:
    """Make an image of Debian bookworm, whose Python is 3.11, with the settings of pip on this machine."""
    if works("docker", "image", "inspect", name):
        return
    if os.geteuid() or not shutil.which("debootstrap"):
        pytest.skip("no image registry answers, and only root can make an image instead, with debootstrap")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", root],
            stdout=subprocess.DEVNULL,
            check=True,
        )
        _configure_pip(root)
        packed = Path(folder, "root.tar")
        subprocess.run(["tar", "--create", "--file", packed, "--directory", root, "."], check=True)
        docker("import", str(packed), name)


def _configure_pip(root: Path) -> None:
    """Let pip in the image use the certificates, the index and the folders that it uses here."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    settings = dict(line.replace(":env:.", "global.").split("=", 1) for line in listed.splitlines())
    lines = ["[global]"]
    for name in ("cert", "index-url", "find-links"):
        value = settings.get(f"global.{name}", "").strip("'")
        if not value:
            continue
        lines.append(f"{name} = {value}")
        for place in map(Path, value.split()):
            if place.is_dir():
                shutil.copytree(place, root / place.relative_to("/"), dirs_exist_ok=True)
            elif place.is_file():
                (root / place.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(place, root / place.relative_to("/"))
    (root / "etc" / "pip.conf").write_text("\n".join(lines) + "\n")


class Compose:
    """A project of Compose: the services of compose.yaml in a checkout."""

    def __init__(
        self, checkout: Path, name: str, substitutes: dict[str, str], secrets: dict[str, str]
    ) -> None:
        self.checkout, self.name = checkout, name
        (checkout / ".env").write_text("".join(f"{key}={value}\n" for key, value in secrets.items()))
        self._override = checkout.parent / "override.json"
        self._override.write_text("{}")
        services = json.loads(self.run("config", "--format", "json"))["services"]
        # Images get names of their own, and are built with the network of the host.
        changes: dict[str, object] = {
            name: {"image": f"{OWN}/project", "build": {"network": "host"}}
            for name, settings in services.items()
            if "build" in settings
        }
        for name, image in substitutes.items():
            more = HERE / name / "service.json"
            changes[name] = {"image": image} | (json.loads(more.read_text()) if more.exists() else {})
        self._override.write_text(json.dumps({"services": changes}))

    def run(self, *arguments: str) -> str:
        """Run `docker compose` in the checkout, and return its output."""
        files = ("--file", "compose.yaml", "--file", str(self._override))
        return _output(
            ["docker", "compose", "--project-name", self.name, *files, *arguments],
            cwd=self.checkout,
            env={key: value for key, value in os.environ.items() if key in ("PATH", "HOME")},
        )

    def container(self, service: str) -> str:
        """The id of a service's container."""
        return self.run("ps", "--all", "--quiet", service).strip()

    def kill(self, service: str) -> None:
        """Kill a container's first process, as when memory is exhausted. Docker starts it again."""
        pid = int(docker("inspect", "--format", "{{.State.Pid}}", self.container(service)))
        with suppress(ProcessLookupError):
            os.kill(pid, 9)
