"""`make demo` as people run it: it works, or ends in one clear line before anything is trained."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.repository.git import environment
from tests.helpers import Repository, finished

pytestmark = pytest.mark.soak

#: A demo that takes seconds: the params of a test repository as they are.
PRESET = "alpha: null\n"

#: A folder that nobody can write to.
UNWRITABLE = "/proc"

DEAD = "http://127.0.0.1:9"


@pytest.fixture
def repository(make_repository: Callable[[Path], Repository], tmp_path: Path) -> Repository:
    return with_demo(make_repository(tmp_path / "Röntgen Bilder (müller) 50%"))


def with_demo(repository: Repository) -> Repository:
    """Make the demo small, and give the repository the environment of these tests as its .venv."""
    (repository.folder / "presets" / "demo.yaml").write_text(PRESET)
    repository.commit("A small demo")
    own, real = repository.folder / ".venv", Path(sys.prefix)
    (own / "bin").mkdir(parents=True)
    for path in (real / "bin").iterdir():
        if path.name != "cxr":  # make writes it
            (own / "bin" / path.name).symlink_to(path)
    shutil.copyfile(real / "pyvenv.cfg", own / "pyvenv.cfg")
    packages = Path(sysconfig.get_path("purelib")).relative_to(real)
    (own / packages).parent.mkdir(parents=True)
    (own / packages).symlink_to(real / packages)
    (own / "installed").touch()
    with (repository.folder / ".git" / "info" / "exclude").open("a") as file:
        file.write("/.venv\n")
    return repository


def make_demo(folder: Path, home: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run `make demo` with a Prefect database of its own, and without the proxies of the tests."""
    own = environment() | {"PREFECT_HOME": str(home)} | variables
    # Others are set by `make test`, or would keep local requests away from a proxy.
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "no_proxy", "NO_PROXY", "PREFECT_API_URL"):
        own.pop(name, None)
    if not own["PREFECT_HOME"]:
        del own["PREFECT_HOME"]
    return subprocess.run(
        ["make", "--silent", "demo"],
        cwd=folder,
        env=own,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def works(done: "subprocess.CompletedProcess[str]", repository: Repository) -> None:
    assert done.returncode == 0, done.stdout
    states = set(finished(done.stdout).values())
    assert states and states <= {"Completed", "Cached"}
    report = next(line for line in done.stdout.splitlines() if line.startswith("report:"))
    page = Path(report.removeprefix("report:").strip())
    assert page.is_relative_to(repository.folder) and page.exists()
    assert repository.run("git", "branch", "--list", "retrain/demo-*").strip()


def is_refused(done: "subprocess.CompletedProcess[str]", line: str) -> None:
    """Nothing was trained, and one error says why. Doctor and make may add a line each."""
    assert done.returncode != 0
    assert "Traceback" not in done.stdout
    assert not finished(done.stdout)
    errors = [each for each in done.stdout.splitlines() if each.startswith("error: ")]
    assert len(errors) == 1, done.stdout
    assert line in errors[0]


@pytest.fixture
def home(make_home: Callable[[Path], Path], tmp_path: Path) -> Path:
    return make_home(tmp_path / "prefect")


def test_in_a_path_with_spaces_and_umlauts(repository: Repository, home: Path) -> None:
    works(make_demo(repository.folder, home), repository)


class TestPrepared:
    """The stages' results are in the DVC cache. The rest of the run is real."""

    @pytest.fixture
    def repository(
        self, make_prepared_repository: Callable[[Path], Repository], tmp_path: Path
    ) -> Repository:
        return with_demo(make_prepared_repository(tmp_path / "repository"))

    def test_behind_a_dead_proxy(self, repository: Repository, home: Path) -> None:
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"), DEAD)
        works(make_demo(repository.folder, home, **proxies), repository)

    def test_with_commits_that_must_be_signed(self, repository: Repository, home: Path) -> None:
        repository.run("git", "config", "commit.gpgSign", "true")
        repository.run("git", "config", "gpg.program", "/bin/false")
        works(make_demo(repository.folder, home), repository)

    def test_with_a_branch_that_blocks_those_of_runs(self, repository: Repository, home: Path) -> None:
        repository.run("git", "branch", "retrain")
        is_refused(make_demo(repository.folder, home), "has a branch 'retrain'")

    def test_with_a_server_of_yesterday_in_dotenv(self, repository: Repository, home: Path) -> None:
        (repository.folder / ".env").write_text(f"PREFECT_API_URL={DEAD}/api\n")
        works(make_demo(repository.folder, home), repository)

    def test_in_a_subfolder_of_another_repository(self, repository: Repository, home: Path) -> None:
        shutil.rmtree(repository.folder / ".git")
        Repository(repository.folder.parent).run("git", "init", "--quiet")
        is_refused(make_demo(repository.folder, home), "the project needs a repository of its own")

    def test_in_a_shallow_clone(self, repository: Repository, home: Path, tmp_path: Path) -> None:
        shallow = tmp_path / "shallow"
        repository.run("git", "clone", "--quiet", "--depth=1", repository.folder.as_uri(), str(shallow))
        shutil.copytree(repository.folder / ".dvc" / "cache", shallow / ".dvc" / "cache")
        clone = with_demo_of(repository, shallow)
        works(make_demo(clone.folder, home), clone)

    def test_with_a_home_that_cannot_be_written_to(self, repository: Repository, home: Path) -> None:
        repository.name_author()
        refused = make_demo(repository.folder, Path(), HOME=UNWRITABLE, PREFECT_HOME="")
        is_refused(refused, "the folder of Prefect, cannot be written to")
        assert "set PREFECT_HOME to a folder that you can write to" in refused.stdout
        works(make_demo(repository.folder, home, HOME=UNWRITABLE), repository)


def with_demo_of(repository: Repository, folder: Path) -> Repository:
    """Give a clone the .venv of its origin."""
    shutil.copytree(repository.folder / ".venv", folder / ".venv", symlinks=True)
    os.utime(folder / ".venv" / "installed")
    with (folder / ".git" / "info" / "exclude").open("a") as file:
        file.write("/.venv\n")
    clone = Repository(folder)
    clone.name_author()
    return clone
