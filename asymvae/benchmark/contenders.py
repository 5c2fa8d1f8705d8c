"""Who is measured: this project's network and diffusers', with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from asymvae.model import PUBLISHED, AsymmetricAutoencoderKL, AutoencoderConfig

Maker = Literal["ours", "plain", "diffusers"]

# That of configs/train-demo.yaml: the checkpoint that comes with the project.
DEMO: Final[dict[str, Any]] = PUBLISHED["x-1-5"] | {
    "down_block_out_channels": (16, 32, 64, 64),
    "layers_per_down_block": 1,
    "up_block_out_channels": (16, 32, 64, 64),
    "layers_per_up_block": 1,
    "norm_num_groups": 4,
}
NETWORKS: Final = PUBLISHED | {"demo": DEMO}
LAYOUTS: Final = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
OURS_LIES: Final = "channels_last"  # the memory format that model.optimize() chooses
_NAMES: Final = {"ours": "ours", "plain": "ours, plain", "diffusers": "diffusers"}


@dataclass(frozen=True, slots=True)
class Way:
    """A network as it is run: whose, in which dtype and memory format, and whether compiled.

    ``ours`` is the network after ``model.optimize()``, as jobs run it, and compiled by ``model.compile_for``; ``plain``
    is ours without, and like diffusers' compiled by ``torch.compile``.
    """

    maker: Maker
    dtype: str
    layout: str
    compiled: bool = False

    def __str__(self) -> str:
        return f"{_NAMES[self.maker]}, compiled" if self.compiled else _NAMES[self.maker]

    def cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(getattr(torch, self.dtype)).contiguous(memory_format=LAYOUTS[self.layout])


@dataclass(frozen=True)
class Network:
    """What every contender is given: a configuration, and weights, on whatever device."""

    name: str
    config: AutoencoderConfig
    state: Mapping[str, Tensor]

    @classmethod
    def random(cls, name: str, seed: int = 0, device: str = "cpu") -> Network:
        """One of NETWORKS with random weights, made on ``device``: as fast as trained ones."""
        with torch.device(device):
            return cls.of(f"{name}, random weights", random_model(name, seed))

    @classmethod
    def of(cls, name: str, model: AsymmetricAutoencoderKL) -> Network:
        return cls(name, model.config, model.state_dict())

    def make(self, way: Way, device: str) -> Any:
        """The network as ``way`` says, in eval mode. Raises ImportError where diffusers is wanted and isn't there."""
        derived = {"block_out_channels", "force_upcast"}  # fields that are no arguments
        arguments = {name: value for name, value in self.config.items() if name not in derived}
        kind = _class_of(way.maker)
        with torch.device("meta"):  # nothing is initialised that would be overwritten
            model = kind(**arguments).eval()
        dtype = getattr(torch, way.dtype)
        model.load_state_dict({name: tensor.to(device, dtype) for name, tensor in self.state.items()}, assign=True)
        return model.optimize() if way.maker == "ours" else model.to(memory_format=LAYOUTS[way.layout])


def random_model(name: str, seed: int = 0) -> AsymmetricAutoencoderKL:
    torch.manual_seed(seed)
    return AsymmetricAutoencoderKL(**NETWORKS[name])


def _class_of(maker: Maker) -> Callable[..., Any]:
    if maker != "diffusers":
        return AsymmetricAutoencoderKL
    import diffusers  # a dependency of the tests alone

    theirs: Callable[..., Any] = diffusers.AsymmetricAutoencoderKL
    return theirs


def diffusers_is_there() -> bool:
    try:
        _class_of("diffusers")
    except ImportError:
        return False
    return True
