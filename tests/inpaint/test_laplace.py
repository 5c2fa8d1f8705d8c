"""The solver against a direct sparse one, on holes that break solvers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import spsolve

from asymvae.inpaint import laplace

TOLERANCE = 1e-4


def direct(values: NDArray[np.float64], hole: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(C, H, W) with the hole filled by a sparse LU of the five-point stencil, in float64."""
    height, width = hole.shape
    number = np.full(hole.shape, -1)
    number[hole] = np.arange(hole.sum())
    rows, columns, weights = [], [], []
    right = np.zeros((int(hole.sum()), len(values)))
    for y, x in zip(*np.nonzero(hole), strict=True):
        neighbours = [(y, x + 1), (y, x - 1), (y + 1, x), (y - 1, x)]
        inside = [(v, u) for v, u in neighbours if 0 <= v < height and 0 <= u < width]
        rows.append(number[y, x])
        columns.append(number[y, x])
        weights.append(float(len(inside)))
        for v, u in inside:
            if hole[v, u]:
                rows.append(number[y, x])
                columns.append(number[v, u])
                weights.append(-1.0)
            else:
                right[number[y, x]] += values[:, v, u]
    matrix = coo_matrix((weights, (rows, columns))).tocsc()
    out = values.copy()
    out[:, hole] = spsolve(matrix, right).reshape(-1, len(values)).T
    return out


def shapes() -> dict[str, NDArray[np.bool_]]:
    rng = np.random.default_rng(0)
    box = np.zeros((64, 64), bool)
    box[20:40, 10:50] = True
    border = np.zeros((65, 97), bool)
    border[:, :70] = True
    one_known = np.ones((33, 47), bool)
    one_known[16, 20] = False
    stripes = np.zeros((48, 48), bool)
    stripes[::2] = True
    comb = np.ones((64, 64), bool)
    comb[::8] = False
    comb[:, ::16] = True
    rings = np.zeros((65, 65), bool)
    for k in range(0, 32, 4):
        rings[k : 65 - k, k : 65 - k] = True
        rings[k + 2 : 63 - k, k + 2 : 63 - k] = False
    line = np.ones((1, 40), bool)
    line[0, 0] = False
    return {
        "box": box,
        "border": border,
        "one known cell": one_known,
        "noise": rng.random((60, 52)) < 0.6,
        "dense noise": rng.random((60, 52)) < 0.97,
        "stripes": stripes,
        "comb": comb,
        "rings": rings,
        "line": line,
    }


@pytest.mark.parametrize("name", shapes())
def test_any_hole_is_solved_to_the_tolerance(name: str) -> None:
    hole = shapes()[name]
    values = np.random.default_rng(1).uniform(-1, 1, (3, *hole.shape))
    filled, converged = laplace.solve(
        torch.tensor(values, dtype=torch.float32)[None],
        torch.tensor(hole)[None, None].float(),
        tolerance=TOLERANCE,
        max_iterations=100,
    )
    assert converged.tolist() == [True]
    # The estimate that the solver stops on is within a small factor of the true error.
    assert np.abs(filled[0].numpy() - direct(values, hole)).max() < 4 * TOLERANCE


def test_what_the_hole_held_is_never_read() -> None:
    hole = torch.zeros(1, 1, 40, 40)
    hole[..., 5:30, 0:22] = 1
    values = torch.rand(1, 3, 40, 40)
    other = torch.where(hole > 0, torch.full_like(values, torch.nan), values)
    ours, _ = laplace.solve(values, hole, tolerance=TOLERANCE, max_iterations=100)
    theirs, _ = laplace.solve(other, hole, tolerance=TOLERANCE, max_iterations=100)
    assert torch.equal(ours, theirs)


def test_a_slow_neighbour_does_not_change_a_samples_fill() -> None:
    easy, hard = torch.zeros(1, 1, 64, 64), torch.ones(1, 1, 64, 64)
    easy[..., 30:33, 30:33] = 1
    hard[..., 0, 0] = 0
    values = torch.rand(2, 3, 64, 64)
    together, _ = laplace.solve(values, torch.cat([easy, hard]), tolerance=TOLERANCE, max_iterations=100)
    alone, _ = laplace.solve(values[:1], easy, tolerance=TOLERANCE, max_iterations=100)
    assert torch.allclose(together[0], alone[0], atol=1e-6)


def test_all_hole_is_zero_and_no_hole_is_untouched() -> None:
    values = torch.rand(2, 3, 24, 40)
    hole = torch.stack([torch.ones(1, 24, 40), torch.zeros(1, 24, 40)])
    filled, converged = laplace.solve(values, hole, tolerance=TOLERANCE, max_iterations=100)
    assert converged.tolist() == [True, True]
    assert torch.equal(filled[0], torch.zeros_like(values[0]))
    assert torch.equal(filled[1], values[1])


def test_too_few_iterations_are_told_per_sample() -> None:
    values = torch.rand(2, 1, 64, 64)
    hole = torch.zeros(2, 1, 64, 64)
    hole[0, :, 1:, 1:] = 1
    _, converged = laplace.solve(values, hole, tolerance=1e-6, max_iterations=2)
    assert converged.tolist() == [False, True]
