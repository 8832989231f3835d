"""Predicts masks of any X-rays with a bundle: what `cxr predict` runs.

    from pathlib import Path
    from tasks.prediction.run import Options, predict

    summary = predict(["xrays/"], Path("artifacts/bundles/combined"), Path("results"), Options())

Imports neither torch nor pandas, unless torch is chosen as the engine.
"""
