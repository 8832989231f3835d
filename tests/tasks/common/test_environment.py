import platform
import subprocess
import sys

import numpy as np
import PIL
import scipy
import torch

from tasks.common.environment import versions
from tests.helpers import ROOT


def test_versions_are_those_of_the_imported_libraries() -> None:
    found = versions()
    assert list(found) == ["platform", "python", "numpy", "pillow", "scipy", "torch"]
    assert found["python"] == platform.python_version()
    assert (found["numpy"], found["pillow"]) == (np.__version__, PIL.__version__)
    assert found["scipy"] == scipy.__version__
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


def test_platform_does_not_name_the_kernel() -> None:
    # Otherwise the outputs of two machines with the same software would differ.
    assert platform.release() not in versions()["platform"]
    assert versions()["platform"].split() == [platform.system(), platform.machine()]


def test_versions_import_no_library() -> None:
    code = (
        "import sys, tasks.common.environment as e; e.versions(); "
        "sys.exit(bool({'numpy', 'PIL', 'scipy', 'torch'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
