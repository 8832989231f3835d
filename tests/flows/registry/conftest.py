"""Real git repositories with bundles, a DVC cache and a DVC remote."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.settings.params import load_params
from tests.helpers import ROOT, Repository, empty_repository

#: As in the project: the experiments to export are in params.yaml.
STAGE = """
stages:
  export:
    foreach: ${stages.export}
    do: {cmd: "true", outs: ["artifacts/bundles/${item}"]}
"""
PARAMS = "stages: {export: [tiny]}\n"


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


def cxr(repository: Repository, *arguments: str, fails: bool = False) -> str:
    """Run `cxr` of this checkout in a repository without the project's code."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from flows.commands.cli import main; main()"
    return repository.run(sys.executable, "-c", code, *arguments, fails=fails)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A repository with three bundles, each on a branch, an origin and a DVC remote."""
    folder = tmp_path_factory.mktemp("registry")
    repository = empty_repository(folder / "repository")
    (repository.folder / "dvc.yaml").write_text(STAGE)
    (repository.folder / "params.yaml").write_text(PARAMS)
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
