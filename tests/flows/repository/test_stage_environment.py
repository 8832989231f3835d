"""Which environment variables reach the command of a stage."""

from pathlib import Path

import pytest

from flows.engine.runner import Outcome, StageRunner
from flows.repository.git import UNATTENDED_LABEL
from flows.repository.revision import plan_trainings
from flows.repository.stage_environment import CREDENTIALS, PASSED, stage_environment
from tasks.support.slots import Slot
from tests.helpers import Repository, empty_repository

#: What a stage must not see, wherever it comes from.
SECRETS = {
    "PREFECT_API_AUTH_STRING": "user:secret",
    "PREFECT_API_KEY": "secret",
    "PREFECT_API_URL": "http://127.0.0.1:9/api",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql://user:secret@host/database",
    "GITHUB_TOKEN": "secret",
    "GIT_CONFIG_VALUE_0": "Authorization: secret",
    "SSH_AUTH_SOCK": "/run/agent",
    "DVC_STUDIO_TOKEN": "secret",
    "SLURM_JWT": "secret",
    "SECRET": "secret",
}

OF_SOURCES = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "KAGGLE_API_TOKEN": "secret",
    "NETRC": "/home/me/netrc",
}

#: What users of clusters and GPUs set, and what the project sets.
NEEDED = {
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "LD_LIBRARY_PATH": "/opt/cuda/lib64",
    "NCCL_SOCKET_IFNAME": "eth0",
    "CUDA_VISIBLE_DEVICES": "3",
    "OMP_NUM_THREADS": "5",
    "https_proxy": "http://proxy:3128",
    "SSL_CERT_FILE": "/etc/ssl/ca.pem",
    "LC_ALL": "C.UTF-8",
    "PREFECT__FLOW_RUN_ID": "a-run",
    "RETRAIN_PART_OF": "worker",
}

STAGES = """
stages:
  train:
    foreach: [a]
    do:
      cmd: env > train-${item}.txt
      outs:
      - train-${item}.txt
  download:
    cmd: env > download.txt
    outs: [download.txt]
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    repository = empty_repository(tmp_path / "repository")
    (repository.folder / "dvc.yaml").write_text(STAGES)
    for name, value in (SECRETS | OF_SOURCES | NEEDED).items():
        monkeypatch.setenv(name, value)
    return repository


def seen_by(repository: Repository, stage: str) -> dict[str, str]:
    """Run a stage as a flow does, and return the environment of its command."""
    runner = StageRunner(repository.folder, RETRAIN_SOURCE_ROOT="/source")
    done = runner.run(stage, Slot({"CUDA_VISIBLE_DEVICES": "1"}, ()), print, print)
    assert done.outcome is Outcome.RAN, done.tail
    lines = repository.read(f"{stage.replace('@', '-')}.txt").splitlines()
    return dict(line.split("=", maxsplit=1) for line in lines if "=" in line)


def test_a_stage_gets_what_is_on_the_list_and_no_more(repository: Repository) -> None:
    seen = seen_by(repository, "train@a")
    assert not (SECRETS | OF_SOURCES).keys() & seen.keys()
    assert "secret" not in str(seen)
    slot = {"CUDA_VISIBLE_DEVICES": "1", "RETRAIN_SOURCE_ROOT": "/source", UNATTENDED_LABEL: "1"}
    wanted = NEEDED | slot
    assert wanted.items() <= seen.items()


def test_only_the_download_gets_the_credentials_of_data_sources(repository: Repository) -> None:
    seen = seen_by(repository, "download")
    assert OF_SOURCES.items() <= seen.items()
    assert not SECRETS.keys() & seen.keys()


def test_a_user_may_pass_on_more(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRAIN_STAGE_VARIABLES", "SECRET  GITHUB_*")
    passed = stage_environment("train@a").keys() & SECRETS.keys()
    assert passed == {"SECRET", "GITHUB_TOKEN"}


def test_the_code_of_a_revision_is_read_with_the_same_environment(repository: Repository) -> None:
    code = repository.folder / "tasks" / "plan.py"
    code.parent.mkdir()
    code.write_text("import os, sys\nsys.exit(f'error: {sorted(os.environ)}')\n")
    with pytest.raises(ValueError, match="HOME") as refused:
        plan_trainings(repository.folder)
    assert not any(repr(name) in str(refused.value) for name in SECRETS | OF_SOURCES)


def test_no_pattern_stands_for_every_variable() -> None:
    patterns = " ".join([*PASSED.values(), CREDENTIALS]).split()
    assert all(pattern.strip("*") for pattern in patterns)
    assert len(set(patterns)) == len(patterns)
