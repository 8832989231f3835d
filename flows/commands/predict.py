"""`cxr predict`: masks of any X-rays, with a bundle."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from tasks.support.cli import InputError


def predict(
    *inputs: Annotated[str, Parameter(name="INPUT")],
    model: Annotated[str, Parameter(metavar="BUNDLE")],
    out: Annotated[Path, Parameter(metavar="DIR")],
    engine: Literal["onnx", "torch"] = "onnx",
    ensemble: bool = False,
    probabilities: bool = False,
    pseudonyms: Annotated[Path | None, Parameter(metavar="KEYFILE")] = None,
    overwrite: bool = False,
) -> None:
    """Predict masks of X-rays.

    Writes masks, overlays, a table and a page. Continues an interrupted run in the same folder.

    Args:
        inputs: PNG, JPEG, TIFF, BMP and DICOM files, folders, patterns, zip archives or s3://BUCKET/PREFIX.
        model: The folder of a bundle, such as artifacts/bundles/combined. In a checkout also a version of the
            registry: champion, NAME#champion or NAME@v1.0.0.
        out: The folder to write.
        engine: What runs the networks: ONNX Runtime on the CPU, or torch on the GPU if there is one.
        ensemble: Also run the networks of further seeds, and report how much they differ. A bundle with
            `ensemble: seeds` always runs all networks, and its masks are those of their average.
        probabilities: Also write probabilities, as 16-bit PNG files.
        pseudonyms: Replace file names by keyed hashes. The file holds the key, and is created if missing.
        overwrite: Replace the results of an earlier run in the folder.

    Examples:
        cxr predict xrays/ --model artifacts/bundles/combined --out predictions
        cxr predict xrays/ --model champion --out predictions
        cxr predict a.png b.dcm more.zip --model artifacts/bundles/combined --out predictions
    """
    from tasks.prediction.run import Options
    from tasks.prediction.run import predict as run

    if not inputs:
        raise InputError("no input; name files, folders, patterns, zip archives or s3://BUCKET/PREFIX")
    options = Options(engine, ensemble, probabilities, pseudonyms, overwrite)
    summary = run(inputs, find_bundle(model), out, options)
    warned = f", {summary.unusual} of them with warnings" if summary.unusual else ""
    print(f"predicted {_images(summary.predicted)}{warned}: {out / 'index.html'}")
    if summary.failed:
        raise InputError(f"{_images(len(summary.failed))} could not be predicted; see {out / 'run.json'}")


def find_bundle(model: str) -> Path:
    """Return the folder of a bundle: `model` itself, or what the registry has under this name."""
    folder = Path(model)
    if folder.exists() or folder.parent != Path():
        return folder
    from flows.repository.git import find_repository

    try:
        repository = find_repository()
        from flows.registry.registry import FETCHED, fetch_named  # of the extra `pipeline`
    except (InputError, OSError, ModuleNotFoundError):  # OSError: git is not installed
        return folder
    return fetch_named(repository, model, repository / FETCHED)


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"
