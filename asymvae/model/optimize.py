"""Which form each layer takes, by device and dtype: what ``model.optimize()`` decides, and what it was decided by.

Measured on two cores of an AMD EPYC (Zen 4: 0.19 TFLOP/s in float32, 0.43 in bfloat16), by layer, torch 2.13:

- float32: Winograd's way takes 0.4 to 0.65 of a direct convolution's time with 768 to 192 channels on both sides, and
  is no gain below 128. The whole network's rounding is no larger than with oneDNN's channels_last convolutions.
- bfloat16: the processor multiplies twice as fast, and Winograd's way, which stays in float32, is ahead only where
  512 channels or more come and go (0.85 of the time at 768, the same at 384); elsewhere upsamplings are folded.

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

_LEAST_CHANNELS = {torch.float32: 128, torch.bfloat16: 512}  # on both sides, for Winograd's way on a CPU
_SAME, _HALVING = ((3, 3), (1, 1), (1, 1)), ((4, 4), (2, 2), (1, 1))  # kernel, stride, padding


def rearrange(network: nn.Module) -> None:
    """Give every layer of ``network`` the form that is fastest on its device, made of its weights as they are."""
    restore(network)
    upsampling: set[nn.Module] = set()  # a parent comes before its parts
    for module in list(network.modules()):  # forms become modules of it
        if isinstance(module, Upsample):
            upsampling.add(module.conv)
            if _pays(module.conv.weight, module.conv.weight.device.type):
                module.conv.form = WinogradUp(module.conv.weight.detach())
            else:
                module.fold()
        elif isinstance(module, Conv) and module not in upsampling:
            module.form = _form(module)
        elif isinstance(module, GroupNorm):
            module.fused = fused_norm.has_kernels(module.weight.device, module.weight.dtype)
        elif isinstance(module, Attention):
            _check_attention(module)


def form_bytes(network: nn.Module, device: str) -> int:
    """Bytes that :func:`rearrange` would add to ``network`` on a device of that type, ``cpu`` or ``cuda``."""
    total = 0
    upsampling: set[nn.Module] = set()
    for module in network.modules():
        if isinstance(module, Upsample):
            weight = module.conv.weight
            upsampling.add(module.conv)
            a_pair = 4 * 4 * 25 if _pays(weight, device) else 16 * weight.element_size()
        elif isinstance(module, Conv) and module not in upsampling and _pays(module.weight, device):
            weight = module.weight
            a_pair = 4 * 36 if _shape(module) == _SAME else 4 * 4 * 25 if _shape(module) == _HALVING else 0
        else:
            continue
        total += a_pair * weight.shape[0] * weight.shape[1]
    return total


def restore(network: nn.Module) -> None:
    """Take every layer's form away."""
    for module in network.modules():
        if isinstance(module, Conv):
            module.form = None
        elif isinstance(module, Upsample):
            module.folded = None
        elif isinstance(module, GroupNorm):
            module.fused = False


def _pays(weight: Tensor, device: str) -> bool:
    """Whether Winograd's way does, for a convolution of this weight."""
    least = _LEAST_CHANNELS.get(weight.dtype)
    return device == "cpu" and least is not None and min(weight.shape[:2]) >= least


def _form(conv: Conv) -> WinogradForm | None:
    weight = conv.weight.detach()
    if not _pays(weight, weight.device.type):
        return None
    if _shape(conv) == _SAME:
        return WinogradConv(weight)
    if _shape(conv) == _HALVING:
        return WinogradDown(weight)
    return None  # 1x1, and the encoder's 3x3 of stride 2, where nothing is to be won


def _shape(conv: Conv) -> tuple[tuple[int, ...], tuple[int, ...], str | tuple[int, ...]]:
    return conv.kernel_size, conv.stride, conv.padding


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
        if isinstance(module, Conv) and module.form is not None:
            yield f"{name}: {type(module.form).__name__}"
        elif isinstance(module, Upsample) and module.folded is not None:
            yield f"{name}: folded"
        elif isinstance(module, GroupNorm) and module.fused:
            yield f"{name}: fused"
