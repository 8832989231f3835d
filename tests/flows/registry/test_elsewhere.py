"""A registered version, got by people who have no checkout of the project."""

from pathlib import Path

import pytest

from tests.flows.registry.conftest import cxr
from tests.helpers import Repository, empty_repository


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
