"""The registry of models, in real git repositories with a DVC cache and a DVC remote."""

import hashlib
import json
import re
import subprocess
import tempfile
from pathlib import Path

import pytest

from flows.registry.bundles import copy_bundle
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


def write_tag(repository: Repository, name: str, tagger: bytes, message: bytes = b"by hand") -> None:
    """An annotated tag as no command of git writes it."""
    commit = repository.run("git", "rev-parse", "one").strip().encode()
    content = b"object %b\ntype commit\ntag %b\ntagger %b\n\n%b\n" % (commit, name.encode(), tagger, message)
    command = ("git", "hash-object", "-t", "tag", "-w", "--literally", "--stdin")
    done = subprocess.run(command, cwd=repository.folder, input=content, capture_output=True, check=True)
    repository.run("git", "update-ref", f"refs/tags/{name}", done.stdout.decode().strip())


def test_odd_tags_do_not_hide_the_others(repository: Repository) -> None:
    """Lightweight, far beyond the calendar, not UTF-8, or with other names."""
    promote(repository.folder, "two", "tiny", "better", BY)
    repository.run("git", "tag", "tiny@v7.0.0", "one")
    write_tag(repository, "tiny@v8.0.0", b"A <a@example.org> 99999999999999 +0000")
    write_tag(repository, "old", b"M\xfcller <m@example.org> 1700000000 +0000", b"Gr\xfc\xdfe")
    write_tag(repository, "tiny@v0.9.0", b"M\xfcller <m@example.org> 1700000000 +0000", b"Gr\xfc\xdfe")
    for name in ("a/b@v1.0.0", "a.b@v1.0.0", "tiny@1.0.0", "tiny@v1", "tiny@v01.0.0", "tiny#champion#x"):
        write_tag(repository, name, b"A <a@example.org> 1700000000 +0000")
    assert [version.name for version in versions(repository.folder)] == ["tiny@v0.9.0", "tiny@v1.0.0"]
    assert find(repository.folder, "tiny@v0.9.0").message == "Gr\ufffd\ufffde"
    assert find(repository.folder, "champion").name == "tiny@v1.0.0"
    assert promote(repository.folder, "three", "tiny", "best", BY).name == "tiny@v1.1.0"


HEX = "0" * 32

LISTED: dict[str, object] = {
    "a path above": [{"relpath": "../evil", "md5": HEX}],
    "a path from the root": [{"relpath": "/tmp/evil", "md5": HEX}],
    "a hash above": [{"relpath": "card.md", "md5": "../../../evil"}],
    "no text": [{"relpath": "a\0b", "md5": HEX}],
    "no characters": [{"relpath": "a\ud800b", "md5": HEX}],
    "a terminal's command": [{"relpath": "a\x1b[2Jb", "md5": HEX}],
    "no list": {"relpath": 5},
}


@pytest.mark.parametrize("case", LISTED)
def test_a_hostile_list_of_files_is_refused(case: str, tmp_path: Path) -> None:
    (tmp_path / "files" / "md5" / "aa").mkdir(parents=True)
    (tmp_path / "files" / "md5" / "aa" / "b.dir").write_text(json.dumps(LISTED[case]))
    with pytest.raises(InputError, match="the list of the bundle's files ") as refused:
        copy_bundle(tmp_path, tmp_path, "aab.dir", tmp_path / "out")
    assert str(refused.value).isprintable()
    assert not (tmp_path / "out").exists()


def test_a_hostile_list_of_files_makes_no_folder_elsewhere(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the hashes in the list, DVC makes paths of folders in its cache."""
    content = json.dumps([{"relpath": "card.md", "md5": "aa/../../../../../../evil/x"}]).encode()
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    listed = tmp_path / "store" / "files" / "md5" / md5[:2] / f"{md5[2:]}.dir"
    listed.parent.mkdir(parents=True)
    listed.write_bytes(content)
    repository.run("dvc", "remote", "modify", "store", "url", str(tmp_path / "store"))
    lock = repository.folder / "dvc.lock"
    lock.write_text(re.sub(r"[0-9a-f]{32}\.dir", f"{md5}.dir", lock.read_text()))
    repository.commit("hostile")
    create(repository.folder, "tiny@v1.0.0", "HEAD", "Register", "", {})
    before = set(tmp_path.iterdir())
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    message = (
        "^download of the bundle failed: the list of the bundle's files has an invalid entry: 'card.md'$"
    )
    with pytest.raises(InputError, match=message):
        fetch(str(repository.folder), "tiny@v1.0.0", tmp_path / "out" / "bundle")
    assert set(tmp_path.iterdir()) - before == {tmp_path / "temporary", tmp_path / "out"}
    assert not list((tmp_path / "temporary").iterdir()) and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "lock", ["x: 2026-02-31", "x: !!int y", "[" * 3000, "stages: 5", "stages: {a: {outs: [5]}}", "\xff"]
)
def test_an_odd_lock_is_a_commit_without_a_bundle(lock: str, repository: Repository, tmp_path: Path) -> None:
    (repository.folder / "dvc.lock").write_text(lock, encoding="latin-1")
    repository.commit("odd")
    create(repository.folder, "tiny@v1.0.0", "HEAD", "Register", "", {})
    with pytest.raises(InputError, match="has no bundle artifacts/bundles/tiny; name tiny in export"):
        fetch(repository.folder, "tiny@v1.0.0", tmp_path / "out" / "bundle")


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
