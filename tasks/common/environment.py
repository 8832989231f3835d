"""Versions of the software that results depend on, to be recorded with them."""

import platform
from importlib.metadata import version

#: Libraries that change pixels, weights or scores.
LIBRARIES = ("numpy", "pillow", "scipy", "torch")


def versions() -> dict[str, str]:
    """Name -> version: the platform, Python and `LIBRARIES`, without importing any of these.

    The platform is the operating system and processor type alone. A kernel's version changes no result, but
    would make the outputs of two machines differ.
    """
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{library: version(library) for library in LIBRARIES},
    }
