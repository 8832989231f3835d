import importlib
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def monai() -> ModuleType:
    """Imported late, because it takes seconds, and each process of pytest imports all test files."""
    return importlib.import_module("monai")
