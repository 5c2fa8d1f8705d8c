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
from torch import nn

from . import fused_norm
from .blocks import Attention
from .convolution import Conv, Upsample
from .norm import GroupNorm
from .winograd_forms import WinogradConv, WinogradDown, WinogradForm, WinogradUp

_LEAST_CHANNELS = {torch.float32: 128, torch.bfloat16: 512}  # on both sides, for Winograd's way on a CPU


def rearrange(network: nn.Module) -> None:
    """Give every layer of ``network`` the form that is fastest on its device, made of its weights as they are."""
    restore(network)
    upsampling = {id(module.conv) for module in network.modules() if isinstance(module, Upsample)}
    for module in network.modules():
        if isinstance(module, Upsample):
            form = WinogradUp if _winograd_pays(module.conv) else None
            if form is not None:
                module.conv.form = form(module.conv.weight.detach())
            else:
                module.fold()
        elif isinstance(module, Conv) and id(module) not in upsampling and _winograd_pays(module):
            module.form = _form(module)
        elif isinstance(module, GroupNorm):
            module.fused = module.weight.is_cuda and fused_norm.has_kernels(module.weight.device, module.weight.dtype)
        elif isinstance(module, Attention):
            _check_attention(module)


def restore(network: nn.Module) -> None:
    """Take every layer's form away."""
    for module in network.modules():
        if isinstance(module, Conv):
            module.form = None
        elif isinstance(module, Upsample):
            module.folded = None
        elif isinstance(module, GroupNorm):
            module.fused = False


def _winograd_pays(conv: Conv) -> bool:
    least = _LEAST_CHANNELS.get(conv.weight.dtype)
    return conv.weight.device.type == "cpu" and least is not None and min(conv.weight.shape[:2]) >= least


def _form(conv: Conv) -> WinogradForm | None:
    weight = conv.weight.detach()
    shape = (conv.kernel_size, conv.stride, conv.padding)
    if shape == ((3, 3), (1, 1), (1, 1)):
        return WinogradConv(weight)
    if shape == ((4, 4), (2, 2), (1, 1)):
        return WinogradDown(weight)
    return None  # 1x1, and the encoder's 3x3 of stride 2, where nothing is to be won


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
