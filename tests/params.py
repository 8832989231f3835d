"""The project's own params.yaml, and how tests change it."""

from tasks.settings.changes import parse_assignment, with_changes
from tasks.settings.params import Params, parse_params
from tests.helpers import ROOT

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")


def changed(*assignments: str, keep: tuple[str, ...] = ()) -> Params:
    """Return the settings with changes, as `cxr params --set` takes them; `keep` is as in `with_changes`."""
    return parse_params(with_changes(TEXT, {a: parse_assignment(a) for a in assignments}, keep))
