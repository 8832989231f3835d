"""params.yaml, the data source and the DVC remote: invalid, missing and refusing ones."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from flows.checks.check import Finding, Level
from flows.checks.data import check_params, check_remote, check_source
from tests.fileserver import file_server
from tests.helpers import Repository
from tests.s3 import S3Server


@pytest.fixture
def repository(tmp_path: Path, tiny_params_text: str) -> Repository:
    repository = Repository(tmp_path / "repository")
    (repository.folder / ".dvc").mkdir(parents=True)
    repository.run("git", "init", "--quiet")
    (repository.folder / "params.yaml").write_text(tiny_params_text)
    return repository


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding


def set_remote(repository: Repository, url: str) -> None:
    (repository.folder / ".dvc" / "config").write_text(
        f"[core]\n    remote = store\n['remote \"store\"']\n    url = {url}\n"
    )


def set_source(repository: Repository, source: str) -> None:
    path = repository.folder / "params.yaml"
    path.write_text(path.read_text().replace("phantom://45?size=64", source))


def test_valid_params_and_their_source_are_fine(repository: Repository) -> None:
    assert only(check_params(repository.folder)).found == "params.yaml is valid, with 2 trainings"
    assert only(check_source(repository.folder)).found == "the data source phantom://45?size=64 has 135 files"


def test_each_invalid_value_is_a_fault(repository: Repository) -> None:
    path = repository.folder / "params.yaml"
    path.write_text(path.read_text().replace("  depth: 2", "  depth: 20").replace("  width: 4", "  widht: 4"))
    findings = list(check_params(repository.folder))
    assert {finding.level for finding in findings} == {Level.FAULT}
    assert any("training.depth: 20" in finding.found for finding in findings)
    assert any("did you mean width?" in finding.found for finding in findings)
    assert list(check_source(repository.folder)) == []


def test_a_missing_source_is_a_fault(repository: Repository) -> None:
    set_source(repository, "data/covidqu.zip")
    finding = only(check_source(repository.folder))
    assert finding.level is Level.FAULT
    assert "data/covidqu.zip: does not exist" in finding.found


def test_a_source_that_refuses_is_a_fault(repository: Repository) -> None:
    with file_server() as server:
        server.refusals["/covidqu.zip"] = (403, {})
        set_source(repository, f"{server.url}/covidqu.zip?signature=secret")
        finding = only(check_source(repository.folder))
    assert finding.level is Level.FAULT
    assert "the server refuses access: 403" in finding.found
    assert "secret" not in str(finding)


def test_without_a_remote_there_is_a_warning(repository: Repository) -> None:
    finding = only(check_remote(repository.folder))
    assert finding.level is Level.WARNING
    assert finding.found.startswith("no default DVC remote is set")


def test_a_remote_is_written_read_and_left_as_it_was(repository: Repository, tmp_path: Path) -> None:
    set_remote(repository, str(tmp_path / "remote"))
    finding = only(check_remote(repository.folder))
    assert finding == (Level.OK, "the DVC remote 'store' can be read and written", "")
    assert list((tmp_path / "remote").iterdir()) == []


def test_a_remote_that_cannot_be_written_is_a_fault(repository: Repository) -> None:
    set_remote(repository, "/proc/remote")
    finding = only(check_remote(repository.folder))
    assert finding.level is Level.FAULT
    assert finding.found.startswith("the DVC remote 'store' cannot be used: ")
    assert "/proc/remote" in finding.found


def test_a_default_remote_that_does_not_exist_is_a_fault(repository: Repository) -> None:
    (repository.folder / ".dvc" / "config").write_text("[core]\n    remote = nowhere\n")
    assert only(check_remote(repository.folder)).level is Level.FAULT


def test_a_bucket_takes_the_right_key_and_refuses_a_wrong_one(
    repository: Repository, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    set_remote(repository, f"s3://{s3.make_bucket()}/folder")
    assert only(check_remote(repository.folder)).level is Level.OK
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    finding = only(check_remote(repository.folder))
    assert finding.level is Level.FAULT
    assert finding.found.startswith("the DVC remote 'store' cannot be used: ")
    assert "a-wrong-secret" not in str(finding)
    assert "AWS_SECRET_ACCESS_KEY" in finding.remedy
