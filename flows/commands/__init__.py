"""The command line `cxr`: a thin module for each command, over the rest of flows/ and tasks/.

At the top these modules import only the standard library and cyclopts, everything else in functions, so that
help, completion and usage errors take a quarter of a second.
"""

from pathlib import Path

#: The checkout whose code this is.
ROOT = Path(__file__).parents[2]
