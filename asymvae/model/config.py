"""The configuration of an asymmetric autoencoder: the fields of diffusers' ``config.json``, typed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class AutoencoderConfig(Mapping[str, Any]):
    """Read as attributes (``config.latent_channels``) or as a mapping (``config["latent_channels"]``).

    ``block_out_channels`` and ``force_upcast`` are no constructor arguments; diffusers' pipelines ask for them.
    Raises ValueError where the block lists don't agree.
    """

    in_channels: int
    out_channels: int
    down_block_types: tuple[str, ...]
    down_block_out_channels: tuple[int, ...]
    layers_per_down_block: int
    up_block_types: tuple[str, ...]
    up_block_out_channels: tuple[int, ...]
    layers_per_up_block: int
    act_fn: str
    latent_channels: int
    norm_num_groups: int
    sample_size: int
    scaling_factor: float
    block_out_channels: tuple[int, ...]
    force_upcast: bool = False

    def __post_init__(self) -> None:
        for side, block, types, channels in (
            ("down", "DownEncoderBlock2D", self.down_block_types, self.down_block_out_channels),
            ("up", "UpDecoderBlock2D", self.up_block_types, self.up_block_out_channels),
        ):
            unknown = sorted(set(types) - {block})
            if unknown:
                raise ValueError(f"{side}_block_types holds {unknown}; only {block!r} is known")
            if len(types) != len(channels) or not types:
                raise ValueError(
                    f"{side}_block_types has {len(types)} entries and {side}_block_out_channels {len(channels)}; "
                    "give both, one entry a block"
                )

    @property
    def encoder_factor(self) -> int:
        """Image pixels a latent cell, a side, when encoding (8 in the published checkpoints)."""
        return 1 << (len(self.down_block_out_channels) - 1)

    @property
    def decoder_factor(self) -> int:
        """Image pixels a latent cell, a side, when decoding."""
        return 1 << (len(self.up_block_out_channels) - 1)

    def __getitem__(self, key: str) -> Any:
        if key in _FIELDS:
            return getattr(self, key)
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(_FIELDS)

    def __len__(self) -> int:
        return len(_FIELDS)


_FIELDS = tuple(field.name for field in fields(AutoencoderConfig))
