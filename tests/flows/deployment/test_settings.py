"""Where Prefect's settings may name a server."""

from pathlib import Path

import pytest

from flows.deployment.settings import may_name_server


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PREFECT_HOME of somebody in an empty folder."""
    for name in ("PREFECT_API_URL", "PREFECT_PROFILES_PATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "work").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        (
            "../home/profiles.toml",
            'active = "a"\n[profiles.a]\nPREFECT_API_URL = "http://host:4200/api"\n',
            True,
        ),
        ("../home/profiles.toml", 'active = "a"\n[profiles.a]\nPREFECT_LOGGING_LEVEL = "DEBUG"\n', False),
        (".env", "prefect_api_url=http://host:4200/api\n", True),
        (".env", "KAGGLE_KEY=x\n", False),
        ("prefect.toml", '[api]\nurl = "http://host:4200/api"\n', True),
        ("pyproject.toml", '[tool.prefect.api]\nurl = "http://host:4200/api"\n', True),
        ("pyproject.toml", "[tool.ruff]\nline-length = 110\n", False),
    ],
)
def test_files_that_may_name_a_server(home: Path, path: str, text: str, found: bool) -> None:
    assert not may_name_server()
    Path(path).write_text(text)
    assert may_name_server() == found


@pytest.mark.parametrize(("address", "found"), [("http://host:4200/api", True), ("", False)])
def test_the_variable_overrides_the_files(
    home: Path, address: str, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "profiles.toml").write_text("PREFECT_API_URL")
    monkeypatch.setenv("PREFECT_API_URL", address)
    assert may_name_server() == found
