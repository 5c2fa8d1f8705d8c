"""Compiles the kernels of fused_norm for GPUs that needn't be there, with the assembler that triton brings, and prints
(kernel, capability, type of the map, constants, memory instructions) as JSON lines."""

from __future__ import annotations

import json
import re
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from asymvae.model import fused_norm_kernels as kernels

FLOATS = ("means", "squares", "centre", "scale", "shift")
LIKE_X = ("x", "out", "residual", "weight", "bias", "conv_bias")
BLOCKS = {"BLOCK_ROWS": 16, "BLOCK_CHANNELS": 128}
KERNELS: dict[str, dict[str, Any]] = {
    "moments": BLOCKS,
    "merge": {"HAS_CONV_BIAS": True, "BLOCK_CHUNKS": 128, "BLOCK_WIDTH": 8},
    "apply": {"SILU": True, **BLOCKS},
    "add": BLOCKS,
}
# Triton makes a constant of each integer that is 1: a map of one pixel, of one channel, one group.
ONES: list[dict[str, int]] = [{"pixels": 1, "groups": 1}, {"pixels": 1, "channels": 1, "groups": 1}]


def memory_instructions(name: str, capability: int, dtype: str, constants: dict[str, int]) -> list[str]:
    kernel = getattr(kernels, name)
    names = kernel.arg_names
    fixed = {**KERNELS[name], **{key: value for key, value in constants.items() if key in names}}
    types = dict.fromkeys(FLOATS, "*fp32") | dict.fromkeys(LIKE_X, f"*{dtype}") | {"eps": "fp32"}
    signature = {key: "constexpr" if key in fixed else types.get(key, "i32") for key in names}
    divisible = [key for key in names if signature[key].startswith("*") or key in ("channels", "rows")]
    source = ASTSource(
        kernel,
        signature,
        {(names.index(key),): value for key, value in fixed.items()},
        {(names.index(key),): [["tt.divisibility", 16]] for key in divisible if key not in fixed},
    )
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    assert made.asm["cubin"]
    return sorted(set(re.findall(r"(?:ld|st|atom|red)\.global[\w.:]*", made.asm["ptx"])))


def main() -> None:
    for name in KERNELS:
        for capability in (80, 90, 100):
            for dtype in ("bf16", "fp16", "fp32"):
                print(json.dumps([name, capability, dtype, {}, memory_instructions(name, capability, dtype, {})]))
        for ones in ONES:
            print(json.dumps([name, 90, "bf16", ones, memory_instructions(name, 90, "bf16", ones)]))


if __name__ == "__main__":
    main()
