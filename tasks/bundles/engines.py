"""What runs a network: ONNX Runtime or torch. Neither is imported before it is used.

An engine maps images, float32 (N, 1, S, S) in [0, 1], to probabilities, float32 (N, C, S, S).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tasks.inference.masks import Floats
from tasks.support.cli import InputError
from tasks.support.cpus import available_cores

Engine = Callable[[Floats], Floats]

#: Maximum number of images per call, as in the stage evaluate.
BATCH = 32


def mirror_averaged(engine: Engine, images: Floats) -> Floats:
    """The average of the probabilities of images (N, 1, S, S) and of their mirror images."""
    mirrored = np.ascontiguousarray(images[..., ::-1])
    averaged: Floats = (engine(images) + engine(mirrored)[..., ::-1]) / np.float32(2)
    return averaged


def onnx_engine(graph: Path, threads: int = 0, shape: tuple[int, int] | None = None) -> Engine:
    """The network of an ONNX file, on the CPU.

    Args:
        threads: how many compute one call; 0 for one per core. Several threads may call it at a time.
        shape: the number of probabilities of each pixel, C, and the pixels on a side, S, that it must have.

    Raises:
        InputError: ONNX Runtime cannot read the file, or the network has another shape.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cores()
    options.use_deterministic_compute = True
    options.log_severity_level = 3  # errors
    # Otherwise waiting threads would spin and take cores away from those that read and write images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        # From bytes: the graph is one file, and must not refer to others.
        session = onnxruntime.InferenceSession(
            graph.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # a damaged file causes several kinds of errors
        if isinstance(error, OSError | MemoryError):
            raise
        raise InputError(f"{graph}: ONNX Runtime cannot read this file: {_first_line(error)}") from None
    if shape and (found := [one.shape[1:] for one in (*session.get_inputs(), *session.get_outputs())]) != (
        wanted := [[1, shape[1], shape[1]], [shape[0], shape[1], shape[1]]]
    ):
        raise InputError(f"{graph}: the network's input and output are {found}, not {wanted}")
    (image,), (output,) = session.get_inputs(), session.get_outputs()

    def run(images: Floats) -> Floats:
        (probabilities,) = session.run([output.name], {image.name: images})
        found: Floats = probabilities
        return found

    return run


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def torch_engine(folder: Path, precision: str, threads: int = 0, exact: bool = False) -> Engine:
    """The network that `tasks.networks.network.save_network` wrote, on the GPU if there is one.

    Args:
        precision, threads: as in params.yaml.
        exact: whether a GPU must not shorten the numbers that it multiplies (TF32), as it does by default.

    Raises:
        InputError: the folder does not hold such a network, or torch is not installed.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise InputError("torch is not installed; install it, or use the engine onnx") from None
    from safetensors import SafetensorError

    from tasks.networks.device import set_up
    from tasks.networks.network import load_network

    compute = set_up(0, precision, threads)
    try:
        network = load_network(folder, compute)
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: torch cannot read this network: {_first_line(error)}") from None

    @torch.no_grad()
    def run(images: Floats) -> Floats:
        tf32 = torch.backends.cudnn.allow_tf32 and not exact
        with compute.autocast(), torch.backends.cudnn.flags(deterministic=True, allow_tf32=tf32):
            probabilities = torch.sigmoid(network(compute.place(torch.from_numpy(images))).float())
        found: Floats = probabilities.cpu().numpy()
        return found

    return run
