"""Keys that params.yaml files of earlier versions lack, and how to convert such a file."""

#: Each such key, with the value for which results stay as they were.
ADDED = {
    "data.layout": "null",
    "external": "{}",
    "training.selection": "all",
    "prediction.presence": "0",
    "prediction.ensemble": "none",
    "report.groups": "{}",
    "export.experiments": "[]",
    "promotion.experiment": "null",
}


def as_before() -> str:
    """The options of `cxr params` that convert a params.yaml of an earlier version."""
    return " ".join(f"--set {key}={value}" for key, value in ADDED.items())


def missing_key(key: str) -> str:
    """The error message for a missing key, with the command that adds it if earlier versions lacked it."""
    # A new key may bring lists of stages with it.
    is_new = key.startswith("stages.") or any(f"{added}.".startswith(f"{key}.") for added in ADDED)
    before = f"; to keep the results of earlier versions: cxr params {as_before()}" if is_new else ""
    return f"this key is missing{before}"
