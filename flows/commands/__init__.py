"""The command line `cxr`: one thin module per command, on top of the rest of flows/ and tasks/.

At the top level these modules import only the standard library and cyclopts. Functions import everything
else, so that help, completion and usage errors take a quarter of a second.
"""

from pathlib import Path

#: The checkout that this code belongs to.
ROOT = Path(__file__).parents[2]
