"""Docker's files, without Docker: the scripts are run, and compose.yaml is checked against the project."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from configparser import ConfigParser
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows.repository.git import environment
from tests.helpers import ROOT
from tests.s3 import S3Server

#: A substitute for the project's Makefile: its targets need .venv too.
MAKEFILE = """\
.venv/installed: requirements.lock
\t@echo "installs" && exit 1
show: .venv/installed
\t@echo "$(POOL) in $$PWD"
wait: .venv/installed
\t@exec python -c "import signal, sys, time; \\
\t  signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('stopped'))); \\
\t  print('waits', flush=True); time.sleep(60)"
"""

#: Required variables of compose.yaml, which have no defaults.
SECRETS = {
    "DATABASE_PASSWORD": "of the database",
    "SERVER_LOGIN": "user:of the server",
    "STORAGE_ACCESS_KEY": "key",
    "STORAGE_SECRET_KEY": "of the storage",
}

IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@localhost")


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def change(checkout: Path, name: str, text: str) -> str:
    """Commit a file, and return the commit."""
    (checkout / name).write_text(text, encoding="utf-8")
    git(checkout, "add", "--all")
    git(checkout, *IDENTITY, "commit", "--quiet", "--message", f"{name} changed")
    return git(checkout, "rev-parse", "HEAD")


class Machine:
    """A simulated container: an image with packages, a volume and an origin, and the checkout on its host."""

    def __init__(self, folder: Path) -> None:
        self.checkout, self.clone = folder / "checkout", folder / "volume" / "checkout"
        self.origin, self.installed = folder / "origin" / "retrain.git", folder / "installed"
        for path in (self.checkout / ".dvc", self.installed / ".venv" / "bin", self.clone.parent):
            path.mkdir(parents=True)
        (self.installed / ".venv" / "bin" / "dvc").symlink_to(Path(sys.executable).with_name("dvc"))
        (self.installed / "requirements.lock").write_text("torch==1\n", encoding="utf-8")
        (self.installed / ".venv" / "installed").touch()
        shutil.copy(ROOT / ".dvc" / "config", self.checkout / ".dvc")
        shutil.copy(ROOT / ".dvc" / ".gitignore", self.checkout / ".dvc")
        (self.checkout / "Makefile").write_text(MAKEFILE, encoding="utf-8")
        git(self.checkout, "init", "--quiet", "--initial-branch=work")
        change(self.checkout, "requirements.lock", "torch==1\n")

    def script(self, name: str, **variables: str) -> dict[str, Any]:
        here = {
            "ORIGIN": str(self.origin),
            "CHECKOUT": str(self.clone),
            "INSTALLED": str(self.installed),
            "DVC_REMOTE_URL": "",
        }
        return {"executable": ROOT / "docker" / name, "env": environment() | here | variables}

    def share(self, fails: bool = False, **variables: str) -> str:
        command = ["share.sh", str(self.checkout)]
        return output_of(subprocess.run(command, **self.script("share.sh", **variables), **OUTPUT), fails)

    def start(self, *arguments: str, fails: bool = False, **variables: str) -> str:
        command = ["entrypoint.sh", *arguments]
        return output_of(
            subprocess.run(command, **self.script("entrypoint.sh", **variables), **OUTPUT), fails
        )


@pytest.fixture(autouse=True)
def no_make_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables that `make test` sets, which would change the output of make in tests."""
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        monkeypatch.delenv(name, raising=False)


OUTPUT: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": 60}


def output_of(done: "subprocess.CompletedProcess[str]", fails: bool) -> str:
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    assert machine.share() == ""
    return machine


def test_a_container_runs_its_target_in_a_clone_with_the_packages_of_the_image(machine: Machine) -> None:
    assert machine.start("show", "POOL=gpu") == f"gpu in {machine.clone}\n"
    assert git(machine.clone, "rev-parse", "HEAD") == git(machine.checkout, "rev-parse", "HEAD")
    assert (machine.clone / ".venv").resolve() == machine.installed / ".venv"
    assert not (machine.clone / ".dvc" / "config.local").exists()


def test_the_default_dvc_remote_is_set_from_the_environment(machine: Machine) -> None:
    for url in ("s3://bucket/one", "s3://bucket/two"):
        machine.start("show", DVC_REMOTE_URL=url)
        config = ConfigParser()
        config.read(machine.clone / ".dvc" / "config.local")
        assert config["core"]["remote"] == "storage"
        assert config["'remote \"storage\"'"]["url"] == url
    assert not git(machine.clone, "status", "--porcelain", "--untracked-files=no")


def test_a_restarted_container_pulls_new_commits(machine: Machine) -> None:
    machine.start("show")
    after = change(machine.checkout, "new.py", "")
    assert machine.share() == ""
    machine.start("show")
    assert git(machine.clone, "rev-parse", "HEAD") == after


def test_a_changed_url_of_origin_is_used(machine: Machine) -> None:
    machine.start("show")
    moved = machine.origin.rename(machine.origin.with_name("moved.git"))
    machine.start("show", ORIGIN=str(moved))
    assert git(machine.clone, "remote", "get-url", "origin") == str(moved)


def test_an_interrupted_clone_is_repeated(machine: Machine) -> None:
    part = machine.clone.with_name("checkout.part")
    (part / ".git").mkdir(parents=True)
    machine.start("show")
    assert not part.exists()


def test_a_missing_origin_is_reported_in_one_line_without_a_clone(machine: Machine) -> None:
    assert machine.start("show", fails=True, ORIGIN="").endswith("ORIGIN: must name a git repository\n")
    assert "nowhere" in machine.start("show", fails=True, ORIGIN="/nowhere")
    assert not machine.clone.exists()


def test_a_revision_with_other_requirements_than_the_image_is_refused(machine: Machine) -> None:
    machine.start("show")
    change(machine.checkout, "requirements.lock", "torch==2\n")
    machine.share()
    assert machine.start("show", fails=True) == (
        "requirements.lock differs from the one in the image; run docker compose up --build\n"
    )


def test_stopping_a_container_signals_its_target(machine: Machine) -> None:
    command = ["entrypoint.sh", "wait"]
    with subprocess.Popen(command, **machine.script("entrypoint.sh"), stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"waits\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"stopped\n"


def test_an_origin_outside_the_volume_is_not_changed(machine: Machine) -> None:
    assert machine.share(ORIGIN="https://host/retrain.git") == "ORIGIN is not a local path: nothing to do\n"


def amend(machine: Machine) -> str:
    git(machine.checkout, *IDENTITY, "commit", "--quiet", "--amend", "--message", "another")
    return "main no longer contains"


def switch(machine: Machine) -> str:
    change(machine.checkout, "on-work.py", "")
    machine.share()
    git(machine.checkout, "switch", "--quiet", "--create", "other", "HEAD~")
    change(machine.checkout, "on-other.py", "")
    return "main no longer contains"


@pytest.mark.parametrize("rewrite", [amend, switch])
def test_a_rewritten_history_is_shared_and_old_commits_are_kept(
    machine: Machine, rewrite: Callable[[Machine], str]
) -> None:
    machine.start("show")
    run = git(machine.clone, "rev-parse", "HEAD")
    for ref in ("refs/heads/retrain/a", "refs/retrain/run/commit"):
        git(machine.clone, "push", "--quiet", "origin", f"HEAD:{ref}")
    message = rewrite(machine)
    before = git(machine.origin, "rev-parse", "main")
    assert machine.share().startswith(f"{message} {before}, which is kept")
    kept = git(machine.origin, "for-each-ref", "--format=%(refname) %(objectname)").splitlines()
    now = git(machine.checkout, "rev-parse", "HEAD")
    assert set(kept) == {
        f"refs/heads/main {now}",
        f"refs/heads/retrain/a {run}",
        f"refs/replaced/{before} {before}",
        f"refs/retrain/run/commit {run}",
    }
    machine.start("show")
    assert git(machine.clone, "rev-parse", "HEAD") == now


def test_changes_in_a_containers_clone_are_kept_when_history_is_rewritten(machine: Machine) -> None:
    machine.start("show")
    own = change(machine.clone, "own.py", "committed")
    (machine.clone / "Makefile").write_text(f"{MAKEFILE}# not committed\n", encoding="utf-8")
    amend(machine)
    machine.share()
    assert "the default branch of origin was rewritten" in machine.start("show")
    assert git(machine.clone, "rev-parse", "HEAD") == git(machine.checkout, "rev-parse", "HEAD")
    assert git(machine.clone, "rev-parse", f"kept-{own[:7]}") == own
    assert (machine.clone / "Makefile").read_text(encoding="utf-8").endswith("# not committed\n")
    assert "rewritten" not in machine.start("show")


def test_a_shallow_clone_can_be_shared(machine: Machine, tmp_path: Path) -> None:
    for number in range(3):
        change(machine.checkout, f"{number}.py", "")
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth=1", machine.checkout.as_uri(), str(shallow))
    machine.checkout, machine.origin = shallow, tmp_path / "origin" / "shallow.git"
    for number in range(2):
        assert machine.share() == ""
        assert machine.start("show").endswith(f"in {machine.clone}\n")
        assert git(machine.clone, "rev-parse", "HEAD") == git(shallow, "rev-parse", "HEAD")
        change(machine.clone, "result.py", f"{number}")
        git(machine.clone, "push", "--quiet", "origin", f"HEAD:retrain/{number}")
        git(machine.clone, "reset", "--quiet", "--hard", "@{upstream}")
        change(shallow, f"next-{number}.py", "")


def test_hooks_of_the_checkout_do_not_run(machine: Machine) -> None:
    hook = machine.checkout / ".git" / "hooks" / "pre-push"
    hook.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    hook.chmod(0o755)
    change(machine.checkout, "new.py", "")
    assert machine.share() == ""


def test_a_worktree_without_its_repository_is_reported_in_one_line(machine: Machine, tmp_path: Path) -> None:
    git(machine.checkout, "worktree", "add", "--quiet", str(tmp_path / "worktree"))
    machine.checkout.rename(tmp_path / "outside")
    machine.checkout = tmp_path / "worktree"
    assert machine.share(fails=True) == (
        "this checkout is a worktree or a submodule, whose repository is not in the container; use a clone\n"
    )


def test_a_clone_that_borrows_commits_is_reported_in_one_line(machine: Machine, tmp_path: Path) -> None:
    borrowing = tmp_path / "borrowing"
    git(tmp_path, "clone", "--quiet", "--shared", str(machine.checkout), str(borrowing))
    lender, machine.checkout = machine.checkout, borrowing
    assert machine.share() == ""
    hidden = lender.rename(tmp_path / "outside")
    (refused,) = machine.share(fails=True).splitlines()
    assert refused.startswith("this clone uses the commits of another repository")
    hidden.rename(lender)
    subprocess.run(refused.partition("to copy them: ")[2], shell=True, cwd=borrowing, check=True)
    lender.rename(hidden)
    assert machine.share() == ""


def test_other_line_ends_in_the_image_are_no_other_requirements(machine: Machine) -> None:
    lock = machine.installed / "requirements.lock"
    lock.write_bytes(lock.read_bytes().replace(b"\n", b"\r\n"))
    (machine.installed / ".venv" / "installed").touch()  # the image installs from this file
    assert machine.start("show").endswith(f"in {machine.clone}\n")


def test_a_checkout_on_windows_has_the_line_endings_that_linux_needs(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "config", "core.autocrlf", "true")
    names = [
        ".gitattributes",
        "docker/share.sh",
        "docker/entrypoint.sh",
        "requirements.lock",
        "docs/ui-run.png",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    git(tmp_path, "add", "--all")
    for name in names:
        (tmp_path / name).unlink()
    git(tmp_path, "checkout", "--", ".")
    for name in names:
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()


# --- compose.yaml -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    with (ROOT / "compose.yaml").open(encoding="utf-8") as file:
        return YAML(typ="safe").load(file)["services"]


def variables(services: dict[str, Any]) -> set[str]:
    """Return the variables that compose.yaml reads, as `${NAME...}` or as a name without a value."""
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    settings = [pair for service in services.values() for pair in service.get("environment", {}).items()]
    return set(re.findall(r"\$\{(\w+)", text)) | {name for name, value in settings if value is None}


def test_secrets_come_from_the_environment_and_have_no_default(services: dict[str, Any]) -> None:
    required = re.compile(r"\$\{(\w+):\?[^}]+\}")
    for name, service in services.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|KEY|AUTH|TOKEN", variable):
                assert value is None or required.fullmatch(value), f"{name}: {variable}"
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    assert set(required.findall(text)) == set(SECRETS)
    assert not re.search(r"://[^/\s]*:[^/\s]*@", text)


def lines_of_env() -> list[str]:
    return (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()


def variables_of_env() -> set[str]:
    return {line.removeprefix("# ") for line in lines_of_env() if re.fullmatch(r"(# )?[A-Z_]+=.*", line)}


def test_env_example_lists_every_variable_without_a_value(services: dict[str, Any]) -> None:
    assert variables_of_env() == {f"{name}=" for name in variables(services)}
    assert {f"{name}=" for name in SECRETS} <= set(lines_of_env())
    assert git(ROOT, "check-ignore", ".env") == ".env"


def test_every_image_has_a_version_and_every_port_is_local(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert "build" in service or re.search(r":v?\d+\.\d+", service["image"]), name
        for port in service.get("ports", []):
            assert re.match(r"(\$\{BIND:-)?127\.0\.0\.1\}?:\d+:\d+$", port), f"{name}: {port}"


def test_prefect_reads_no_variable_of_env() -> None:
    assert not [name for name in variables_of_env() if name.startswith("PREFECT_")]


@pytest.mark.parametrize("name", ["server", "parent", "cpu-worker", "gpu-worker", "bucket"])
@pytest.mark.parametrize("host", ["server", "storage", "127.0.0.1"])
def test_other_services_are_reached_without_a_proxy(services: dict[str, Any], name: str, host: str) -> None:
    environment = services[name]["environment"]
    assert environment["NO_PROXY"] == environment["no_proxy"]
    assert host in environment["NO_PROXY"].partition("$")[0].split(",")


@pytest.mark.parametrize("name", ["server", "storage"])
def test_health_checks_use_no_proxy(services: dict[str, Any], name: str) -> None:
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        _, *command = services[name]["healthcheck"]["test"]
        place = f"http://127.0.0.1:{server.server_port}/"
        command = [re.sub(r"http://127\.0\.0\.1:\d+/[a-z/]*", place, word) for word in command]
        proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY"), "http://127.0.0.1:9")
        direct = {"no_proxy": services["server"]["environment"]["no_proxy"].partition("$")[0]}
        kept = {name: value for name, value in environment().items() if name.lower() != "no_proxy"}
        if not shutil.which(command[-5] if name == "storage" else command[0]):
            pytest.skip("no wget")
        with subprocess.Popen(command, env=kept | proxies | (direct if name == "server" else {})) as asking:
            server.timeout = 20
            server.handle_request()
            assert asking.wait(20) == 0


def test_mounted_folders_of_the_host_are_readable_where_selinux_is_enforced(services: dict[str, Any]) -> None:
    mounted = [volume for service in services.values() for volume in service.get("volumes", [])]
    of_the_host = [volume for volume in mounted if volume.startswith((".", "/", "~", "$"))]
    assert of_the_host
    for volume in of_the_host:
        assert "z" in volume.split(":")[2].split(","), volume


@pytest.mark.parametrize("name", ["parent", "cpu-worker", "gpu-worker"])
def test_the_command_of_a_container_is_a_make_target(services: dict[str, Any], name: str) -> None:
    command = ["make", "--dry-run", "--old-file=.venv/installed", *services[name]["command"]]
    planned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    pool = name.removesuffix("-worker")
    meant = "bin/cxr serve" if name == "parent" else f'bin/cxr worker --pool "{pool}"'
    assert planned.returncode == 0 and meant in planned.stdout, planned.stderr


def test_the_image_copies_only_files_that_dockerignore_allows_and_does_not_run_as_root() -> None:
    steps = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = {word for step in steps if step.startswith("COPY") for word in step.split()[1:-1]}
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignore
    assert copied == {line.removeprefix("!") for line in ignore if line.startswith("!")}
    assert [step for step in steps if step.startswith("USER")] == ["USER $USER_ID"]


@pytest.fixture(scope="module")
def compose() -> list[str]:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, "version"], capture_output=True, check=False)
            if done.returncode == 0:
                return command
    pytest.skip("docker compose is not installed, so compose.yaml is not validated")


def configured(compose: list[str], *options: str, without: str = "") -> "subprocess.CompletedProcess[str]":
    env = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "DOCKER_CONFIG")}
    env |= {name: value for name, value in SECRETS.items() if name != without}
    command = [*compose, "--env-file", os.devnull, *options]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def test_compose_accepts_the_file_and_only_the_gpu_profile_has_a_gpu(compose: list[str]) -> None:
    everything = configured(compose, "--profile", "gpu", "config")
    assert everything.returncode == 0, everything.stderr
    assert everything.stderr == ""  # Compose warns of each variable that is not set
    assert "nvidia" in everything.stdout
    without = configured(compose, "config")
    assert without.returncode == 0, without.stderr
    assert "cpu-worker" in without.stdout and "nvidia" not in without.stdout


@pytest.mark.parametrize("secret", SECRETS)
def test_compose_refuses_to_start_without_a_secret(compose: list[str], secret: str) -> None:
    refused = configured(compose, "config", "--quiet", without=secret)
    assert refused.returncode != 0
    assert secret in refused.stderr


def test_the_bucket_is_created_once(services: dict[str, Any], s3: S3Server) -> None:
    program, *arguments = services["bucket"]["entrypoint"]
    assert program == "python"
    for _ in range(2):
        env = environment() | s3.environment | {"DVC_REMOTE_URL": "s3://made-by-compose/prefix"}
        subprocess.run([sys.executable, *arguments], env=env, check=True, timeout=60)
    assert "made-by-compose" in s3.files().ls("")


@pytest.mark.parametrize("url", ["/srv/dvc", "gs://bucket/prefix"])
def test_another_kind_of_remote_needs_no_bucket(services: dict[str, Any], url: str) -> None:
    _, *arguments = services["bucket"]["entrypoint"]
    env = environment() | {"DVC_REMOTE_URL": url, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    subprocess.run([sys.executable, *arguments], env=env, check=True, timeout=60)
