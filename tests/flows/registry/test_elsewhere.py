"""A registered version, got by people who have no checkout of the project."""

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from flows.registry import foreign
from tasks.support.cli import InputError
from tests.fileserver import file_server
from tests.flows.registry.conftest import cxr
from tests.gitservers import SSHD, HttpsServer, https_server, make_certificate, make_key, ssh_server
from tests.helpers import Repository, empty_repository, free_ports


@pytest.fixture
def origin(repository: Repository, tmp_path: Path) -> Path:
    """A repository to which a champion was pushed. Its bundle is on the DVC remote."""
    cxr(repository, "models", "promote", "two", "--model", "tiny", "--reason", "better", "--push")
    repository.run("git", "push", "--quiet", "origin", "main")
    repository.run("git", "--git-dir", str(tmp_path / "origin"), "symbolic-ref", "HEAD", "refs/heads/main")
    return tmp_path / "origin"


def test_dvc_alone_gets_and_imports_a_version(origin: Path, tmp_path: Path) -> None:
    elsewhere = empty_repository(tmp_path / "elsewhere")
    bundle = "artifacts/bundles/tiny"
    elsewhere.run("dvc", "get", str(origin), bundle, "--rev", "tiny@v1.0.0", "--out", "got")
    elsewhere.run("dvc", "import", str(origin), bundle, "--rev", "tiny@v1.0.0", "--out", "imported")
    for name in ("got", "imported"):
        assert elsewhere.read(f"{name}/card.md") == "two"
        assert elsewhere.read(f"{name}/networks/tiny-seed0/network.onnx") == "graph"
    commit = elsewhere.run("git", "--git-dir", str(origin), "rev-parse", "tiny@v1.0.0^{commit}").strip()
    assert f"rev_lock: {commit}" in elsewhere.read("imported.dvc")
    # It looks for a list of artifacts in dvc.yaml, which would repeat the experiments.
    missing = elsewhere.run("dvc", "artifacts", "get", str(origin), "tiny", "--rev", "v1.0.0", fails=True)
    assert "tiny" in missing


# --- over https and ssh -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def public(made: Repository, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the bare repository `cxr.git`, whose champion's data is on a DVC remote over HTTP."""
    folder = tmp_path_factory.mktemp("public")
    made.run("git", "clone", "--quiet", "--no-tags", str(made.folder), str(folder / "work"))
    work = Repository(folder / "work")
    work.name_author()
    work.run("dvc", "config", "--local", "cache.dir", str(made.folder / ".dvc" / "cache"))
    work.run("dvc", "remote", "modify", "--local", "store", "url", str(folder / "store"))
    work.run("dvc", "push", "--quiet")
    with file_server() as files:
        for path in (folder / "store").rglob("*"):
            if path.is_file():
                files.put(f"/{path.relative_to(folder / 'store')}", path)
        work.run("dvc", "remote", "modify", "store", "url", files.url)
        work.commit("The data is on the web")
        cxr(work, "models", "promote", "HEAD", "--model", "tiny", "--reason", "first")
        work.run("git", "clone", "--quiet", "--bare", str(work.folder), str(folder / "cxr.git"))
        yield folder


@pytest.fixture(scope="module")
def https(public: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpsServer]:
    with https_server(public, tmp_path_factory.mktemp("https") / "own.pem") as server:
        yield server


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    if SSHD is None:
        pytest.skip("there is no sshd on this machine")
    with ssh_server(tmp_path_factory.mktemp("ssh") / "server") as found:
        yield found


class Person:
    """Somebody in an empty folder, with a home of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder / "work", folder / "home"
        self.folder.mkdir()
        self.home.mkdir()
        self.variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        self.variables |= {
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home),
            "TMPDIR": str(self.home),
            "GIT_TRACE2_EVENT": str(self.home / "trace"),  # the command line of each process of git
            "GIT_TRACE_REDACT": "0",
        }
        # Whoever has git save passwords.
        (self.home / ".gitconfig").write_text("[credential]\n    helper = store\n")

    def get(self, url: str, fails: bool = False, **variables: str) -> str:
        repository = Repository(self.folder, self.variables | variables)
        arguments = ("models", "get", "tiny#champion", "--from", url, "--out", "bundle")
        return cxr(repository, *arguments, fails=fails)

    def check(self) -> None:
        assert (self.folder / "bundle" / "card.md").read_text() == "three"

    def saw(self, word: str) -> bool:
        """Whether a file that this person or a process of git has left mentions a word."""
        files = [path for path in (*self.home.rglob("*"), *self.folder.rglob("*")) if path.is_file()]
        assert any(path.name == "trace" for path in files)
        return any(word.encode() in path.read_bytes() for path in files)


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path)


def url_of(server: HttpsServer, password: str) -> str:
    return f"https://{server.user}:{quote(password, safe='')}@{server.address}/cxr.git"


def test_a_bundle_over_https_with_a_password_that_nobody_sees(https: HttpsServer, person: Person) -> None:
    url = url_of(https, https.password)
    output = person.get(url, GIT_SSL_CAINFO=str(https.certificate))
    person.check()
    assert output.splitlines()[-1] == "bundle"
    for secret in (https.password, quote(https.password, safe="")):
        assert secret not in output and not person.saw(secret)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("refused", "Authentication failed for 'https://{}/cxr.git/'"),
        (
            "missing",
            "could not read Username for 'https://{}': terminal prompts disabled; "
            "the server wants a password, as in https://USER:PASSWORD@HOST/PATH",
        ),
    ],
)
def test_faults_over_https_are_one_line(case: str, message: str, https: HttpsServer, person: Person) -> None:
    url = url_of(https, "wr0ng" if case == "refused" else https.password)
    url = f"https://{https.address}/cxr.git" if case == "missing" else url
    output = person.get(url, fails=True, GIT_SSL_CAINFO=str(https.certificate))
    where = f"https://{https.address}/cxr.git"
    assert output == f"error: {where}: {message.format(https.address)}\n"
    assert not person.saw("wr0ng") and not person.saw(quote(https.password, safe=""))
    assert list(person.folder.iterdir()) == []


def test_another_certificate_is_one_line(https: HttpsServer, person: Person, tmp_path: Path) -> None:
    make_certificate(tmp_path / "other.pem")
    url = url_of(https, https.password)
    output = person.get(url, fails=True, GIT_SSL_CAINFO=str(tmp_path / "other.pem"))
    assert output.startswith(f"error: https://{https.address}/cxr.git: unable to access ")
    # What git says between them depends on its TLS library.
    assert output.endswith("; GIT_SSL_CAINFO=FILE names the certificate of a private authority\n")
    assert output.count("\n") == 1


def test_a_host_that_does_not_answer_is_one_line(person: Person) -> None:
    (port,) = free_ports(1)
    output = person.get(f"https://me:s3cret@localhost:{port}/cxr.git", fails=True)
    assert output.startswith(f"error: https://localhost:{port}/cxr.git: unable to access ")
    assert "Failed to connect to localhost" in output and output.count("\n") == 1
    output = person.get(f"ssh://127.0.0.1:{port}/cxr.git", fails=True)
    assert output.startswith(f"error: ssh://127.0.0.1:{port}/cxr.git: ssh: connect to host 127.0.0.1 port")
    assert "Connection refused" in output and output.count("\n") == 1


def test_a_bundle_over_ssh(ssh: tuple[str, str], public: Path, person: Person) -> None:
    address, command = ssh
    person.get(f"ssh://{address}{public}/cxr.git", GIT_SSH_COMMAND=command)
    person.check()


def test_faults_over_ssh_are_one_line(
    ssh: tuple[str, str], public: Path, person: Person, tmp_path: Path
) -> None:
    address, command = ssh
    url, place = f"ssh://{address}{public}/cxr.git", f"ssh://{address.partition('@')[2]}{public}/cxr.git"
    make_key(tmp_path / "other")
    other = f"{command.rpartition(' ')[0]} {tmp_path / 'other'}"
    output = person.get(url, fails=True, GIT_SSH_COMMAND=other)
    user = address.partition(":")[0]
    advice = "the server accepts none of your ssh keys"
    assert output == f"error: {place}: {user}: Permission denied (publickey).; {advice}\n"
    stranger = command.replace("/known", "/unknown")
    output = person.get(url, fails=True, GIT_SSH_COMMAND=stranger)
    advice = "connect once with ssh, to accept the host's key"
    assert output == f"error: {place}: Host key verification failed.; {advice}\n"


@pytest.mark.parametrize("address", ["", "-x", "--upload-pack=touch x"])
def test_an_empty_word_or_an_option_is_no_address(
    address: str, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository.folder)
    refused = pytest.raises(InputError, match=f"^'{address}': not the address of a repository$")
    with refused, foreign.foreign(address):
        pass


def test_the_password_leaves_the_environment_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "http.version")
    before = dict(os.environ)
    with foreign._password_in_environment("https://a:b%40c@host:8443/x.git?y") as address:
        assert address == "https://host:8443/x.git?y"
        assert (os.environ[foreign.USER], os.environ[foreign.PASSWORD]) == ("a", "b@c")
        assert os.environ["GIT_CONFIG_COUNT"] == "3" and os.environ["GIT_CONFIG_KEY_0"] == "http.version"
        assert os.environ["GIT_CONFIG_KEY_2"] == "credential.https://host:8443.helper"
    assert dict(os.environ) == before
