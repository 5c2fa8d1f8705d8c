"""Laplace's equation in the holes of a batch: known cells are Dirichlet values, the borders Neumann.

Preconditioned conjugate gradients; the preconditioner is one multigrid V-cycle over 2x2 aggregates, which works for
holes of any shape (the unknowns of a coarse level are the aggregates that touch the hole). The coarse operator is
half of the Galerkin product: piecewise-constant interpolation doubles the energy of smooth functions in two
dimensions, and half of it is again the five-point stencil (Braess, "Towards algebraic multigrid for elliptic
problems of second order", Computing 55, 1995, section 4, on scaling such corrections).

Everything is float32 and per sample: a sample that has converged is frozen, so that its result does not hang on how
long its neighbours take.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_OMEGA = 0.8  # Jacobi damping: the smoothing optimum of the five-point stencil
_SWEEPS = 2
_CHECK_EVERY = 4  # reading the residual on the host waits for the device, so not at every step


@dataclass(slots=True)
class _Level:
    """One grid's operator on its hole cells. ``east``/``south``: weights of the edges to those neighbours."""

    hole: Tensor  # (N, 1, H, W) of {0, 1}
    diagonal: Tensor  # (N, 1, H, W); 1 outside the hole
    east: Tensor  # (N, 1, H, W - 1)
    south: Tensor  # (N, 1, H - 1, W)

    def apply(self, u: Tensor) -> Tensor:
        out = self.diagonal * u
        out[..., :, 1:] -= self.east * u[..., :, :-1]
        out[..., :, :-1] -= self.east * u[..., :, 1:]
        out[..., 1:, :] -= self.south * u[..., :-1, :]
        out[..., :-1, :] -= self.south * u[..., 1:, :]
        return out

    def smooth(self, u: Tensor, right: Tensor) -> Tensor:
        for _ in range(_SWEEPS):
            u = u + _OMEGA * self.hole * (right - self.apply(u)) / self.diagonal
        return u


def _finest(hole: Tensor) -> _Level:
    height, width = hole.shape[-2:]
    neighbours = hole.new_full((1, 1, height, width), 4.0)
    neighbours[..., 0, :] -= 1
    neighbours[..., -1, :] -= 1
    neighbours[..., :, 0] -= 1
    neighbours[..., :, -1] -= 1
    return _Level(
        hole=hole,
        # A lone cell in a 1x1 grid has no neighbour; its equation is 0 = 0, and 1 keeps the division defined.
        diagonal=torch.where(hole > 0, neighbours, 1.0).clamp_min_(1.0),
        east=hole[..., :, :-1] * hole[..., :, 1:],
        south=hole[..., :-1, :] * hole[..., 1:, :],
    )


def _sum_blocks(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2) * 4


def _coarsen(fine: _Level) -> _Level:
    height, width = fine.hole.shape[-2:]
    even = (0, width % 2, 0, height % 2)
    hole = F.pad(fine.hole, even)
    diagonal = F.pad(fine.diagonal * fine.hole, even)
    # Edges as full grids, so that blocks line up: the one from a block's first column to its second is inside it.
    east = F.pad(fine.east, (0, 1 + width % 2, 0, height % 2))
    south = F.pad(fine.south, (0, width % 2, 0, 1 + height % 2))
    inner_east, outer_east = east[..., :, 0::2], east[..., :, 1::2]
    inner_south, outer_south = south[..., 0::2, :], south[..., 1::2, :]
    inner = inner_east[..., 0::2, :] + inner_east[..., 1::2, :] + inner_south[..., :, 0::2] + inner_south[..., :, 1::2]
    coarse_hole = F.max_pool2d(hole, 2)
    coarse_diagonal = (_sum_blocks(diagonal) - 2 * inner) / 2
    coarse_east = (outer_east[..., 0::2, :] + outer_east[..., 1::2, :])[..., :, :-1] / 2
    coarse_south = (outer_south[..., :, 0::2] + outer_south[..., :, 1::2])[..., :-1, :] / 2
    # Where a level is one aggregate without a Dirichlet neighbour (the whole image is hole) the diagonal is 0.
    diagonal_or_one = torch.where((coarse_hole > 0) & (coarse_diagonal > 1e-6), coarse_diagonal, 1.0)
    return _Level(coarse_hole, diagonal_or_one, coarse_east, coarse_south)


def _v_cycle(levels: list[_Level], depth: int, right: Tensor) -> Tensor:
    level = levels[depth]
    u = level.smooth(torch.zeros_like(right), right)
    if depth + 1 < len(levels):
        height, width = right.shape[-2:]
        residual = level.hole * (right - level.apply(u))
        coarse = _v_cycle(levels, depth + 1, _sum_blocks(F.pad(residual, (0, width % 2, 0, height % 2))))
        correction = coarse.repeat_interleave(2, -2).repeat_interleave(2, -1)[..., :height, :width]
        u = u + level.hole * correction
    return level.smooth(u, right)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(1, 2, 3), keepdim=True)


def solve(values: Tensor, hole: Tensor, *, tolerance: float, max_iterations: int) -> tuple[Tensor, Tensor]:
    """Fill ``values`` where ``hole`` is 1 with the solution of Laplace's equation.

    Args:
        values: (N, C, H, W), any float dtype. What it holds in the hole is never read.
        hole: (N, 1, H, W) of {0, 1}.
        tolerance: a sample is solved when its estimated error (the preconditioned residual, which is the V-cycle's
            estimate of what is still missing) is nowhere larger than ``tolerance`` times its largest known value.
        max_iterations: of conjugate gradients.

    Returns:
        (filled, converged): (N, C, H, W) in the dtype of ``values``, known cells untouched; (N,) bool. A sample that
        is all hole has nothing to go by: its fill is 0, and it counts as converged.
    """
    hole32 = hole.to(torch.float32)
    known = torch.where(hole > 0, 0.0, values.to(torch.float32))
    finest = _finest(hole32)
    levels = [finest]
    while max(levels[-1].hole.shape[-2:]) > 1:
        levels.append(_coarsen(levels[-1]))

    right = torch.zeros_like(known)
    right[..., :, 1:] += known[..., :, :-1]
    right[..., :, :-1] += known[..., :, 1:]
    right[..., 1:, :] += known[..., :-1, :]
    right[..., :-1, :] += known[..., 1:, :]
    residual = right * hole32
    bound = tolerance * known.abs().amax(dim=(1, 2, 3), keepdim=True)

    u = torch.zeros_like(known)
    direction = torch.zeros_like(known)
    last_residual = residual
    last_rho = torch.zeros_like(bound)
    active = torch.ones_like(bound)
    for iteration in range(max_iterations + 1):
        estimate = _v_cycle(levels, 0, residual)
        active = active * (estimate.abs().amax(dim=(1, 2, 3), keepdim=True) > bound)
        if iteration == max_iterations or (iteration % _CHECK_EVERY == 0 and not bool(active.any())):
            break
        rho = _dot(residual, estimate)
        # Polak-Ribiere: one step's memory more, and inexact symmetry of the V-cycle does no harm.
        beta = torch.where(last_rho > 0, (rho - _dot(last_residual, estimate)) / last_rho.clamp_min(1e-30), 0.0)
        direction = estimate + beta * direction
        image = finest.apply(direction) * hole32
        curvature = _dot(direction, image)
        step = active * torch.where(curvature > 0, _dot(residual, direction) / curvature.clamp_min(1e-30), 0.0)
        u = u + step * direction
        last_residual, last_rho = residual, rho
        residual = residual - step * image
    filled = torch.where(hole > 0, u.to(values.dtype), values)
    return filled, (active == 0).flatten()
