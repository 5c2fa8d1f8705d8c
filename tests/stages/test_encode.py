"""Encode: variants of a sample share their image, which is encoded once; and every row still gets its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from asymvae.batch import Batch, Item, collate, shared_rows
from asymvae.config import InpaintSettings
from asymvae.inpaint.base import load_inpainter
from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.pipeline.device import Device
from asymvae.pipeline.kinds.inpaint import InpaintKind
from asymvae.stages.decode import Decode
from asymvae.stages.encode import Encode
from tests.tiny import box_mask, job, picture, tiny_model


def item(index: int, variant: int = 0, seed: int = 0) -> Item:
    mask = box_mask(64, 64, index) > 0
    given = picture(64, 64, 90 + index)
    return Item(index, f"k{index}", variant, seed, picture(64, 64, index), mask, (64, 64), given=given)


def batch_of(*indices: int, size: int | None = None) -> Batch:
    items = [item(index, variant) for variant, index in enumerate(indices)]
    return collate(items, size or len(items), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    ("indices", "size", "expected"),
    [
        ([0, 1, 2], 4, None),  # all distinct: nothing to share
        ([0, 0, 0, 0], 4, ([0, 0, 0, 0], [0])),
        ([0, 0, 1], 4, ([0, 0, 1, 1], [0, 2])),
        ([3, 3, 4, 4, 5, 5], 8, ([0, 0, 1, 1, 2, 2, 2, 2], [0, 2, 4, 4])),
        ([0, 0, 1, 2, 3], 6, ([0, 0, 1, 2, 3, 3], [0, 2, 3, 4])),
        ([0, 0, 1, 2, 3, 4], 6, None),  # five samples would be padded to six
        ([0], 1, None),
    ],
)
def test_which_rows_share(indices: list[int], size: int, expected: tuple[list[int], list[int]] | None) -> None:
    assert shared_rows([item(index) for index in indices], size) == expected


class Counting(Encode):
    def __init__(self, model: AsymmetricAutoencoderKL, method: str) -> None:
        super().__init__(model, load_inpainter(InpaintSettings(method=method)))
        self.sizes: list[int] = []
        encode = model.encode

        def counted(x: Tensor) -> object:
            self.sizes.append(x.shape[0])
            return encode(x)

        model.encode = counted  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize("method", ["none", "given", "harmonic"])
@torch.inference_mode()
def test_variants_are_encoded_once_and_get_what_each_alone_would(method: str) -> None:
    encode = Counting(tiny_model(), method)
    shared = encode(batch_of(0, 0, 1, 1, 1, size=8))
    assert encode.sizes == [2]
    (need,) = encode.inpainter.needs
    assert shared.latents[need].shape[0] == shared.posteriors[need].mean.shape[0] == 8
    alone = encode(batch_of(0, 1))
    rows = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1])
    assert torch.equal(shared.latents[need], alone.latents[need][rows])
    assert torch.equal(shared.posteriors[need].parameters, alone.posteriors[need].parameters[rows])
    assert [bad.shape for _, bad in shared.failed] == [(8,)] * len(alone.failed)


@torch.inference_mode()
def test_variants_share_the_condition_and_decode_as_each_alone_would() -> None:
    model = tiny_model()
    sizes: list[int] = []
    encoder = model.decoder.condition_encoder
    encoder.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[0]))
    batch = Encode(model, load_inpainter(InpaintSettings(method="none")))(batch_of(0, 0, 1, 1, 1, size=8))
    batch.z = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    shared = Decode(model)(batch).decoded
    assert sizes == [2]
    batch.rows = batch.firsts = None
    plain = Decode(model)(batch).decoded
    assert sizes == [2, 8]
    assert shared is not None
    torch.testing.assert_close(shared, plain, atol=1e-5, rtol=0)


def test_a_sample_that_fails_in_encode_fails_in_all_its_variants_alone() -> None:
    hard = np.ones((64, 64), bool)
    hard[0, 0] = False
    rng = np.random.default_rng(0)
    work = [item(0, 0), item(0, 1)]
    for variant in (0, 1):
        made = item(1, variant)
        made.mask, made.image = hard, rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        work.append(made)
    settings = job("u", "o", "m", inpaint={"options": {"tolerance": 1e-6, "max_iterations": 4}})
    work[0].mask = work[1].mask = np.zeros((64, 64), bool)
    pending, _ = Device(tiny_model, InpaintKind(settings)).launch(work)
    assert [done.fault is not None for done in pending.result()] == [False, False, True, True]


def test_a_row_draws_what_its_own_seed_says_wherever_it_stands() -> None:
    items = [item(0, 0, seed=5), item(0, 1, seed=2**63 - 1), item(1, 0, seed=5)]
    batch = collate(items, 4, torch.device("cpu"), torch.float32)
    first, second, third, padding = (torch.randn(8, generator=one) for one in batch.generators())
    assert torch.equal(first, third)
    assert torch.equal(third, padding)
    assert not torch.equal(first, second)
    assert torch.equal(second, torch.randn(8, generator=torch.Generator().manual_seed(2**63 - 1)))
