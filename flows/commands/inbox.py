"""`cxr inbox`: predict what is new in an inbox, once."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def inbox(
    inbox: Annotated[str, Parameter(name="INBOX")],
    /,
    *,
    model: Annotated[str, Parameter(metavar="BUNDLE")],
    out: Annotated[Path, Parameter(metavar="DIR")],
    limit: Annotated[int, Parameter(metavar="N")] = 1000,
    last: Annotated[int, Parameter(metavar="N")] = 100,
    engine: Literal["onnx", "torch"] = "onnx",
) -> None:
    """Predict the new images in an inbox, and check for drift.

    One pass, for cron: predicts images that no earlier pass has predicted, as one batch. Continues a batch
    that was killed. Without new images it does nothing.

    Args:
        inbox: A folder, or s3://BUCKET/PREFIX.
        model: The folder of a bundle, such as artifacts/bundles/combined. In a checkout also a version of the
            registry: champion, NAME#champion or NAME@v1.0.0.
        out: The folder of all batches, outside the inbox.
        limit: The largest number of images in the batch. Further images wait for the next pass.
        last: How many of the last images are compared with the Val images of the bundle.
        engine: What runs the networks: ONNX Runtime on the CPU, or torch on the GPU if there is one.

    Examples:
        cxr inbox arriving/ --model artifacts/bundles/combined --out batches
        cxr inbox s3://hospital/xrays --model champion --out batches --limit 100
    """
    from flows.commands.predict import find_bundle
    from tasks.prediction.inbox import process

    batches = process(inbox, out, find_bundle(model), limit, last, engine)
    for batch in batches:
        print(f"{out / batch.name}: {batch.describe()}")
    if not batches:
        print("nothing new")
