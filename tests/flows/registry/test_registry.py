"""The registry of models, in real git repositories with a DVC cache and a DVC remote."""

import json
import subprocess
from pathlib import Path

import pytest

from flows.registry.registry import check_origin, fetch, find, history, promote, push, rollback, versions
from flows.registry.tags import create, read_events
from tasks.support.cli import InputError
from tests.flows.registry.conftest import cxr
from tests.helpers import Repository

BY = "Ada <ada@example.org>"


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
    with pytest.raises(InputError, match="there is no earlier champion"):
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
