"""Writes a network as an ONNX graph from images to probabilities.

The graph is translated from the operations that `torch.fx` records, one ONNX node for each. torch's own
exporter is not used: it takes several seconds per network, and writes paths of this machine into the file.
Equal networks give identical bytes.
"""

import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import fx, nn
from torch.nn import functional

from models.networks import require_multiples
from tasks.support.cli import InputError

#: Version of ONNX's operators, and of its file format.
OPSET, FORMAT = 18, 10
#: Names of the graph's input and output.
IMAGE, PROBABILITIES = "image", "probabilities"


def write_graph(network: nn.Module, targets: int, image_size: int, path: Path) -> None:
    """Write the network, followed by a sigmoid, as an ONNX file.

    The input `image` is float32 (N, 1, S, S) in [0, 1], the output `probabilities` float32 (N, C, S, S). S is
    `image_size`, C the number of targets, N any number of images.

    Raises:
        InputError: the network uses an operation that has no entry in `MODULES` or `FUNCTIONS`.
    """
    graph = _Writer(network.eval()).graph(targets, image_size)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=FORMAT, producer_name="cxr"
    )
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


class _Tracer(fx.Tracer):
    """Records `require_multiples` as one operation: its conditions on sizes cannot be traced."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=(require_multiples,))


class _Writer:
    """Translates the recorded operations in order. A value has the name of the operation that computes it."""

    def __init__(self, network: nn.Module) -> None:
        self._operations = _Tracer().trace(network)
        self._modules = dict(network.named_modules())
        self._nodes: list[NodeProto] = []
        self._weights: dict[str, TensorProto] = {}

    def graph(self, targets: int, size: int) -> onnx.GraphProto:
        logits = ""
        for operation in self._operations.nodes:
            if operation.op == "output":
                logits = str(operation.args[0])
            elif operation.op != "placeholder" and operation.users:
                self._translate(operation)
        self._nodes.append(helper.make_node("Sigmoid", [logits], [PROBABILITIES], PROBABILITIES))
        (placeholder,) = self._operations.find_nodes(op="placeholder")
        self._nodes.insert(0, helper.make_node("Identity", [IMAGE], [placeholder.name], IMAGE))
        image = helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, ["N", 1, size, size])
        shape: list[str | int | None] = ["N", targets, size, size]
        probabilities = helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, shape)
        return helper.make_graph(
            self._nodes, "network", [image], [probabilities], list(self._weights.values())
        )

    def _translate(self, operation: fx.Node) -> None:
        if operation.op == "call_module":
            module = self._modules[str(operation.target)]
            translate = MODULES.get(type(module))
            found = translate(module) if translate else None
        else:
            function = FUNCTIONS.get(operation.target)
            found = function(*operation.args[1:], **operation.kwargs) if function else None
            module = None
        if found is None:
            raise InputError(
                f"the network's operation {operation.format_node()} has no translation to ONNX; "
                "add one in tasks/bundles/graph.py"
            )
        kind, attributes = found
        inputs = [
            *(value.name for value in operation.all_input_nodes),
            *self._stored(str(operation.target), module),
        ]
        self._nodes.append(helper.make_node(kind, inputs, [operation.name], operation.name, **attributes))

    def _stored(self, place: str, module: nn.Module | None) -> list[str]:
        """The names of a module's weights, which become part of the graph."""
        names = []
        for name in WEIGHTS if module is not None else ():
            tensor = getattr(module, name, None)
            if isinstance(tensor, torch.Tensor):
                names.append(f"{place}.{name}")
                self._weights[names[-1]] = numpy_helper.from_array(
                    tensor.detach().float().cpu().contiguous().numpy(), names[-1]
                )
        return names


#: Weights of modules, in the order in which ONNX's operators take them.
WEIGHTS = ("weight", "bias", "running_mean", "running_var")

#: Name and attributes of an ONNX operator.
Operator = tuple[str, Mapping[str, Any]]


def _convolution(module: nn.Module) -> Operator:
    assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    assert not isinstance(module.padding, str)
    assert not any(module.output_padding)
    kind = "ConvTranspose" if isinstance(module, nn.ConvTranspose2d) else "Conv"
    return kind, {
        "kernel_shape": list(module.kernel_size),
        "pads": [*module.padding, *module.padding],
        "strides": list(module.stride),
        "dilations": list(module.dilation),
        "group": module.groups,
    }


def _normalisation(module: nn.Module) -> Operator:
    assert isinstance(module, nn.BatchNorm2d)
    return "BatchNormalization", {"epsilon": module.eps}


def _max_pooling(module: nn.Module) -> Operator:
    assert isinstance(module, nn.MaxPool2d)
    side = module.kernel_size
    return "MaxPool", {"kernel_shape": [side, side], "strides": [module.stride, module.stride]}


MODULES: dict[type[nn.Module], Callable[[nn.Module], Operator]] = {
    nn.BatchNorm2d: _normalisation,
    nn.Conv2d: _convolution,
    nn.ConvTranspose2d: _convolution,
    nn.Identity: lambda _: ("Identity", {}),
    nn.MaxPool2d: _max_pooling,
    nn.ReLU: lambda _: ("Relu", {}),
    nn.Sigmoid: lambda _: ("Sigmoid", {}),
}

#: Functions by what `torch.fx` records. They get the arguments after the first.
FUNCTIONS: dict[Any, Callable[..., Operator]] = {
    operator.add: lambda _other: ("Add", {}),
    operator.mul: lambda _other: ("Mul", {}),
    functional.pixel_shuffle: lambda patch: ("DepthToSpace", {"blocksize": patch, "mode": "CRD"}),
    # For several channels, ONNX orders them differently; an X-ray has one.
    functional.pixel_unshuffle: lambda patch: ("SpaceToDepth", {"blocksize": patch}),
    torch.cat: lambda dim: ("Concat", {"axis": dim}),
}
