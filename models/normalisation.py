"""Batch normalisation over the batches of all processes that train one network."""

from typing import Any

import torch
from torch import Tensor, distributed, nn


class _OverAll(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        return _OverAll.forward(_context, gradients[0])


def over_all(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes; its gradient is the sum of their gradients."""
    total: Tensor = _OverAll.apply(tensor)  # type: ignore[no-untyped-call]
    return total


class SyncBatchNorm(nn.BatchNorm2d):
    """Like torch.nn.SyncBatchNorm on GPUs, but for any device; (N, C, H, W) in each process, same shape out.

    Every process must have at least one image.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        wide = x.float()
        count = torch.tensor([wide[:, 0].numel()], dtype=torch.float32, device=x.device)
        sums = over_all(torch.cat([wide.sum(dim=(0, 2, 3)), count]))
        mean, total = sums[:-1] / sums[-1], sums[-1]
        centred = wide - mean[:, None, None]
        # From centred values: the mean of squares minus the squared mean would cancel numerically.
        variance = over_all(centred.square().sum(dim=(0, 2, 3))) / total
        self._follow(mean.detach(), variance.detach() * total / (total - 1))
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked += 1


def synchronised(network: nn.Module) -> nn.Module:
    """The network with synchronised batch normalisation; its weights and their names are unchanged."""
    if next(network.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call, no-any-return]
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                synced = SyncBatchNorm(child.num_features, child.eps, child.momentum)
                synced.load_state_dict(child.state_dict())
                setattr(parent, name, synced)
    return network
