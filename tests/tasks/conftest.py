from pathlib import Path

import pytest

from tests.results import Work


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """The outputs of the stages before compare, for one test to change."""
    return Work(tmp_path)
