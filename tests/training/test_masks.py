import numpy as np
import pytest

from asymvae.training.masks import random_hole, training_mask


def test_half_of_the_masks_are_all_hole() -> None:
    rng = np.random.default_rng(0)
    masks = [training_mask(rng, 64, 96) for _ in range(400)]
    assert all(mask.shape == (64, 96) and mask.dtype == np.bool_ for mask in masks)
    assert 0.44 < np.mean([mask.all() for mask in masks]) < 0.58
    assert not any(training_mask(rng, 64, 64, full=0).all() for _ in range(50))


@pytest.mark.parametrize("size", [64, 128, 512])
def test_the_hole_covers_the_same_share_at_any_size(size: int) -> None:
    """.44 is the mean of 2000 masks at 256 px; the published generator's is .46 of strokes, .21 of boxes."""
    rng = np.random.default_rng(1)
    shares = [random_hole(rng, size, size).mean() for _ in range(300)]
    assert min(shares) > 0
    assert np.mean(shares) == pytest.approx(0.445, abs=0.04)


def test_a_seed_decides_the_mask() -> None:
    first, again = (random_hole(np.random.default_rng(7), 128, 128) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first != random_hole(np.random.default_rng(8), 128, 128)).any()


@pytest.mark.parametrize("shape", [(1, 1), (8, 300), (257, 64)])
def test_any_shape(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    assert all(random_hole(rng, *shape).any() for _ in range(50))
