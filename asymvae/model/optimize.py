"""Which form each layer takes, by device and dtype: what ``model.optimize()`` decides, and what it was decided by.

Measured on two cores of an AMD EPYC (Zen 4: 0.19 TFLOP/s in float32, 0.43 in bfloat16), by layer, torch 2.13:

- float32: Winograd's way takes 0.4 to 0.65 of a direct convolution's time with 768 to 192 channels on both sides, and
  is no gain below 128. The whole network's rounding is no larger than with oneDNN's channels_last convolutions.
- bfloat16: the processor multiplies twice as fast, and Winograd's way, which stays in float32, is ahead only in 3x3
  convolutions of 512 channels or more on both sides (0.75 to 0.87 of the time at 768, 1.3 at 384). Upsamplings are
  folded: that is 0.6 of the time that Winograd's way takes for them.

On CUDA nothing was measured here: folding and the fused norm are as published measurements of related autoencoders
have them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from . import fused_norm
from .blocks import Attention
from .convolution import Conv, Upsample
from .norm import GroupNorm
from .winograd_forms import WinogradConv, WinogradDown, WinogradForm, WinogradUp

_SAME, _HALVING = ((3, 3), (1, 1), (1, 1)), ((4, 4), (2, 2), (1, 1))  # kernel, stride, padding
# For Winograd's way on a CPU: the least channels on both sides, by dtype and by form.
_LEAST_CHANNELS: dict[tuple[torch.dtype, type[WinogradForm]], int] = {
    (torch.float32, WinogradConv): 128,
    (torch.float32, WinogradDown): 128,
    (torch.float32, WinogradUp): 128,
    (torch.bfloat16, WinogradConv): 512,
}


def rearrange(network: nn.Module) -> None:
    """Give every layer of ``network`` the form that is fastest on its device, made of its weights as they are."""
    restore(network)
    device = next(network.parameters()).device
    for layer, form in list(_by_winograd(network, device.type)):
        layer.form = form(_weight(layer).detach())
    for module in network.modules():
        if isinstance(module, Upsample) and module.form is None:
            module.fold()
        elif isinstance(module, GroupNorm):
            module.fused = fused_norm.has_kernels(device, module.weight.dtype)
        elif isinstance(module, Attention):
            _check_attention(module)


def form_bytes(network: nn.Module, device: str) -> int:
    """Bytes that :func:`rearrange` would add to ``network`` on a device of that type, ``cpu`` or ``cuda``."""
    chosen = dict(_by_winograd(network, device))
    total = 0
    for layer, form in chosen.items():
        made, taken = _weight(layer).shape[:2]
        total += 4 * form.NUMBERS * made * taken
    for module in network.modules():
        if isinstance(module, Upsample) and module not in chosen:
            total += module.conv.weight.nbytes * 16 // 9
    return total


def restore(network: nn.Module) -> None:
    """Take every layer's form away."""
    for module in network.modules():
        if isinstance(module, Conv):
            module.form = None
        elif isinstance(module, Upsample):
            module.form = module.folded = None
        elif isinstance(module, GroupNorm):
            module.fused = False


def _by_winograd(network: nn.Module, device: str) -> Iterator[tuple[Conv | Upsample, type[WinogradForm]]]:
    """The layers for which Winograd's way pays on a device of that type, and the form that each takes."""
    upsampling = {module.conv for module in network.modules() if isinstance(module, Upsample)}
    for layer in network.modules():
        if device != "cpu" or layer in upsampling:
            continue
        form: type[WinogradForm]
        if isinstance(layer, Upsample):
            form = WinogradUp
        elif not isinstance(layer, Conv):
            continue
        elif (layer.kernel_size, layer.stride, layer.padding) == _SAME:
            form = WinogradConv
        elif (layer.kernel_size, layer.stride, layer.padding) == _HALVING:
            form = WinogradDown
        else:
            continue  # 1x1, and the encoder's 3x3 of stride 2, where nothing is to be won
        weight = _weight(layer)
        least = _LEAST_CHANNELS.get((weight.dtype, form))
        if least is not None and min(weight.shape[:2]) >= least:
            yield layer, form


def _weight(layer: Conv | Upsample) -> Tensor:
    return layer.conv.weight if isinstance(layer, Upsample) else layer.weight


def _check_attention(attention: Attention) -> None:
    weight = attention.to_q.weight
    if not weight.is_cuda:
        return
    # One head as wide as the channels: beyond 256 flash attention refuses it, and only this kernel is left before the
    # one that keeps every score in memory.
    sample = torch.empty((1, 1, 64, weight.shape[0]), dtype=weight.dtype, device=weight.device)
    parameters = torch.backends.cuda.SDPAParams(sample, sample, sample, None, 0.0, False, False)
    if not torch.backends.cuda.can_use_efficient_attention(parameters):
        warnings.warn(
            f"no fused attention for {weight.shape[0]} channels in {weight.dtype} here: its scores will take "
            "4 bytes times the latent's cells squared; see torch.backends.cuda.enable_mem_efficient_sdp",
            stacklevel=3,
        )


def forms(network: nn.Module) -> Iterator[str]:
    """The layers that have a form of their own, and which: for people."""
    for name, module in network.named_modules():
        if isinstance(module, Conv | Upsample) and module.form is not None:
            yield f"{name}: {type(module.form).__name__}"
        elif isinstance(module, Upsample) and module.folded is not None:
            yield f"{name}: folded"
        elif isinstance(module, GroupNorm) and module.fused:
            yield f"{name}: fused"
