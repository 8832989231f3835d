"""The registry of models, in real git repositories with a DVC cache and a DVC remote."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows.registry.registry import check_origin, fetch, find, history, promote, push, rollback, versions
from flows.registry.tags import create, read_events
from tasks.settings.schema import load_params
from tasks.support.cli import InputError
from tests.helpers import ROOT, Repository, empty_repository

STAGE = """
stages:
  export: {cmd: "true", outs: [artifacts/bundles/tiny]}
"""
BY = "Ada <ada@example.org>"


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_bundle(folder: Path, use: str) -> None:
    """The smallest bundle that `open_bundle` accepts. `use` makes it different from others."""
    network = {
        "training": "tiny-seed0",
        "seed": 0,
        "parameters": 1,
        "precision": "fp32",
        "points": {"infection": {"threshold": 0.5, "presence": 0}},
        "parity": dict.fromkeys(("images", "pixels", "probability", "onnx_pixels", "evaluated_pixels"), 0)
        | {"same_setup": True},
        "files": {"network.onnx": sha(b"graph")},
    }
    prediction = load_params(ROOT / "params.yaml").experiments["combined"].prediction.model_dump(mode="json")
    bundle = {
        "schema_version": 1,
        "name": "tiny",
        "intended_use": use,
        "limitations": [],
        "input": {"image_size": 32},
        "lungs": None,
        "main": {
            "experiment": "tiny",
            "targets": ["infection"],
            "prediction": prediction,
            "classes": [],
            "networks": [network],
        },
        "dataset": {
            "source": "",
            "half": "infection",
            "images": {},
            "fingerprint": sha(b""),
            "phantoms": True,
        },
        "scores": [],
        "plans": sha(b""),
        "versions": {},
        "fingerprint": sha(b"statistics"),
        "licence": {"code": "", "data": ""},
    }
    files = {
        "bundle.json": json.dumps(bundle).encode(),
        "card.md": use.encode(),
        "fingerprint.npz": b"statistics",
        "networks/tiny-seed0/network.onnx": b"graph",
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # it may be a link into the cache
        path.write_bytes(content)


def cxr(repository: Repository, *arguments: str) -> str:
    """Run `cxr` of this checkout in a repository without the project's code."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from flows.commands.cli import main; main()"
    return repository.run(sys.executable, "-c", code, *arguments)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A repository with three bundles, each on a branch, an origin and a DVC remote."""
    folder = tmp_path_factory.mktemp("registry")
    repository = empty_repository(folder / "repository")
    (repository.folder / "dvc.yaml").write_text(STAGE)
    (repository.folder / ".gitignore").write_text("/artifacts/\n/bundles/\n")
    repository.run("dvc", "remote", "add", "--default", "store", str(folder / "store"))
    for name in ("one", "two", "three"):
        write_bundle(repository.folder / "artifacts" / "bundles" / "tiny", name)
        repository.run("dvc", "commit", "--force", "--quiet")
        repository.commit(name)
        repository.run("git", "branch", name)
    repository.run("git", "init", "--quiet", "--bare", str(folder / "origin"))
    repository.run("git", "remote", "add", "origin", str(folder / "origin"))
    return repository


@pytest.fixture
def repository(made: Repository, tmp_path: Path) -> Repository:
    """A copy without tags, whose origin is its own."""
    subprocess.run(["cp", "-a", str(made.folder), str(tmp_path / "repository")], check=True)
    subprocess.run(["git", "init", "--quiet", "--bare", str(tmp_path / "origin")], check=True)
    copy = Repository(tmp_path / "repository")
    copy.run("git", "remote", "set-url", "origin", str(tmp_path / "origin"))
    return copy


def test_promotions_and_rollbacks_are_read_by_gto_too(repository: Repository) -> None:
    folder = repository.folder
    assert promote(folder, "one", "tiny", "first", BY).name == "tiny@v1.0.0"
    promote(folder, "two", "tiny", "better", BY, verdict="Dice +0.02")
    promote(folder, "three", "tiny", "best", BY)
    assert [(v.version, v.stages) for v in versions(folder)] == [
        ("v1.0.0", ()),
        ("v1.1.0", ()),
        ("v1.2.0", ("champion",)),
    ]
    assert "tiny@v1.2.0 is the champion already" in cxr(
        repository, "models", "promote", "three", "--model", "tiny", "--reason", "again"
    )
    assert rollback(folder, "tiny", "misses lungs", BY).version == "v1.1.0"
    assert "v1.1.0" in repository.run("gto", "show", "tiny#champion")
    assert rollback(folder, "tiny", "this too", BY).version == "v1.0.0"
    with pytest.raises(InputError, match="no champion before"):
        rollback(folder, "tiny", "and this", BY)
    assert promote(folder, "tiny@v1.1.0", "tiny", "repaired scanner", BY).version == "v1.1.0"
    found = [(c.version, c.action, c.reason, c.verdict, c.by) for c in history(folder, "tiny")]
    assert found == [
        ("v1.1.0", "promoted", "repaired scanner", "", BY),
        ("v1.0.0", "rolled back", "this too", "", BY),
        ("v1.1.0", "rolled back", "misses lungs", "", BY),
        ("v1.2.0", "promoted", "best", "", BY),
        ("v1.1.0", "promoted", "better", "Dice +0.02", BY),
        ("v1.0.0", "promoted", "first", "", BY),
    ]
    assert [event.counter for event in read_events(folder) if event.stage] == [1, 2, 3, 4, 5, 6]
    assert find(folder, "champion") == find(folder, "tiny") == find(folder, "tiny@v1.1.0")
    assert find(folder, "tiny@latest").version == "v1.2.0"
    shown = json.loads(repository.run("gto", "show", "tiny#champion", "--json"))
    assert [one["version"] for one in shown] == ["v1.1.0"]
    assert repository.run("gto", "history", "tiny").count("assignment") == 6
    assert "better (Dice +0.02)" in cxr(repository, "models", "history", "tiny")


def test_text_of_users_forges_no_trailer(repository: Repository) -> None:
    digest = "0" * 64
    reason = f"good\n\nPromoted-By: Eve\nBundle-SHA256: {digest}\n---\n# a\x1b[2J"
    promote(
        repository.folder, "one", "tiny", reason, "Ada\n\nBundle-SHA256: " + digest, f"x\nVerdict: {digest}"
    )
    for tag in ("tiny@v1.0.0", "tiny#champion#1"):
        message = repository.run("git", "tag", "--list", "--format=%(contents)", tag)
        parsed = subprocess.run(
            ["git", "interpret-trailers", "--parse"],
            input=message,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert [line for line in parsed.splitlines() if line.startswith("Bundle-SHA256: 0")] == []
        assert parsed.count("Promoted-By: ") == 1 and "Promoted-By: Ada " in parsed
    assert find(repository.folder, "tiny").digest != digest
    promote(repository.folder, "two", "tiny", "--- x", BY)
    (change, _) = history(repository.folder, "tiny")
    assert (change.by, change.reason) == (BY, "--- x")


def test_another_bundle_than_that_of_the_tag_is_refused(repository: Repository, tmp_path: Path) -> None:
    trailers = {"Bundle-SHA256": "0" * 64, "Promoted-By": BY}
    create(repository.folder, "tiny@v1.0.0", "one", "Register", "", trailers)
    with pytest.raises(InputError, match="not that of the tag"):
        fetch(repository.folder, "tiny@v1.0.0", tmp_path / "out" / "bundle")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_champion_that_was_pushed_is_got_elsewhere(repository: Repository, tmp_path: Path) -> None:
    output = cxr(repository, "models", "promote", "two", "--model", "tiny", "--reason", "better", "--push")
    assert "tiny@v1.0.0, tiny#champion#1 pushed to origin" in output
    origin = str(tmp_path / "origin")
    assert (
        fetch(str(repository.folder), "tiny#champion", tmp_path / "a").joinpath("card.md").read_text()
        == "two"
    )
    repository.run("git", "clone", "--quiet", origin, str(tmp_path / "clone"), "--branch", "tiny#champion#1")
    clone = Repository(tmp_path / "clone")
    assert fetch(clone.folder, "champion", tmp_path / "b").joinpath("card.md").read_text() == "two"
    (tmp_path / "b" / "bundle.json").write_text("{}")
    with pytest.raises(InputError, match="choose another folder"):
        fetch(clone.folder, "champion", tmp_path / "b")


def test_two_promotions_at_once(repository: Repository, tmp_path: Path) -> None:
    subprocess.run(["cp", "-a", str(repository.folder), str(tmp_path / "other")], check=True)
    other = tmp_path / "other"
    first, second = promote(repository.folder, "one", "tiny", "a", BY), promote(other, "two", "tiny", "b", BY)
    push(repository.folder, first, ["tiny@v1.0.0", "tiny#champion#1"])
    with pytest.raises(InputError, match="promoted tiny in the meantime; run `git fetch --tags`"):
        push(other, second, ["tiny@v1.0.0", "tiny#champion#1"])
    assert read_events(other) == []
    with pytest.raises(InputError, match="run `git fetch --tags`, and try again"):
        check_origin(other, "tiny")


def test_where_signatures_are_required_only_signed_tags_count(repository: Repository, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    (tmp_path / "signers").write_text(f"tester@example.org {key.with_suffix('.pub').read_text()}")
    for name, value in {
        "gpg.format": "ssh",
        "user.signingKey": str(key),
        "gpg.ssh.allowedSignersFile": str(tmp_path / "signers"),
        "registry.requireSigned": "true",
        "tag.gpgSign": "true",
    }.items():
        repository.run("git", "config", name, value)
    promote(repository.folder, "one", "tiny", "signed", BY)
    repository.run("git", "tag", "--no-sign", "--annotate", "--message=x", "tiny#champion#7", "two")
    # A signed tag under another name.
    repository.run("git", "update-ref", "refs/tags/tiny#champion#8", "refs/tags/tiny#champion#1")
    assert [event.tag for event in read_events(repository.folder)] == ["tiny@v1.0.0", "tiny#champion#1"]
    assert find(repository.folder, "champion").version == "v1.0.0"
