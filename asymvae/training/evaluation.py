"""Whether a checkpoint is any good: how well it reconstructs, and what its decoder keeps of the known pixels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from asymvae.batch import Batch, Item, collate, normalised
from asymvae.config import GeometrySettings, InpaintJob
from asymvae.faults import Fault
from asymvae.inpaint.none import NoFill
from asymvae.media.geometry import image_to_work, place
from asymvae.media.image import decode_image
from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.stages.decode import Decode
from asymvae.stages.measure import Measure
from asymvae.stages.prepare import Prepare
from asymvae.storage.filesystem import join, redact
from asymvae.storage.samples import BadSample, FieldNames, read_shard
from asymvae.storage.shards import Shard
from asymvae.training.evaluation_config import EvaluateJob
from asymvae.training.linear import FILE, BlockTransform
from asymvae.training.scores import ANY_KIND, NO_HOLE, Evaluation, Preservation, Reconstruction, Shown

_SHOWN: Final = 24  # rows of a contact sheet
_ERROR_TIMES: Final = 8

Progress = Callable[[str], None]  # told every sample's key, once it is measured


def load_model(job: EvaluateJob) -> AsymmetricAutoencoderKL:
    """The checkpoint, on the GPU if there is one. Raises what ``from_pretrained`` raises."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    dtype = job.model.dtype if job.model.dtype != "auto" else "bfloat16" if device == "cuda" else "float32"
    model = AsymmetricAutoencoderKL.from_pretrained(
        job.model.path,
        subfolder=job.model.subfolder,
        revision=job.model.revision,
        variant=job.model.variant,
        torch_dtype=getattr(torch, dtype),
        device=device,
    )
    if job.model.tiling is True:  # auto: an evaluation's images are small, and run whole
        model.enable_tiling()
    return model


def load_transform(job: EvaluateJob, factor: int) -> BlockTransform | None:
    """The linear transform to compare with, or None. Raises ValueError where it is none, or its blocks aren't the
    model's."""
    beside = join(job.model.path, *filter(None, [job.model.subfolder]), FILE)
    file = job.block_transform or beside
    try:
        transform = BlockTransform.load(file)
    except FileNotFoundError:
        if job.block_transform is None:
            return None
        raise
    except (SafetensorError, TypeError) as error:
        raise ValueError(f"{redact(file)} holds no block transform: {error}") from error
    if transform.factor != factor:
        raise ValueError(
            f"{redact(file)} is of {transform.factor} px blocks, the model's factor is {factor}: leave it out"
        )
    return transform


def bilinear(image: Tensor, factor: int) -> Tensor:
    """(N, 3, H, W) reduced ``factor`` times, antialiased, and enlarged again: what no autoencoder may be worse than."""
    height, width = image.shape[-2:]
    small = F.interpolate(image, (height // factor, width // factor), mode="bilinear", antialias=True)
    return F.interpolate(small, (height, width), mode="bilinear")


def evaluate(
    job: EvaluateJob,
    model: AsymmetricAutoencoderKL,
    shards: Sequence[Shard],
    transform: BlockTransform | None = None,
    *,
    pictures: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure ``model`` on every sample of ``shards``, at each of ``job.sizes``.

    The latent z is the mode of the whole image's posterior, as in the paper. A sample without a usable mask is bad,
    and its image counts all the same. ``pictures``: of the first samples with a hole, at the smallest size.

    Raises what the store raises; what is wrong with a sample is in ``bad``.
    """
    evaluation = Evaluation(model.config.encoder_factor)
    scales = [_Scale(job, size, model, transform, evaluation) for size in sorted(set(job.sizes))]
    names = FieldNames(job.input.image, job.input.mask, (), (), ("json",), job.input.key)
    for shard in shards:
        for row in read_shard(shard, names):
            key = shard.name if row.key is None else f"{shard.name}/{row.key}"
            evaluation.samples += row.index is not None
            if isinstance(row, BadSample):
                evaluation.bad[key, row.fault.code] = None
            else:
                for number, scale in enumerate(scales):
                    scale.measure(key, row.fields, show=pictures and number == 0)
            if progress is not None:
                progress(key)
    return evaluation


class _Scale:
    """All images at one size."""

    def __init__(
        self,
        job: EvaluateJob,
        size: int,
        model: AsymmetricAutoencoderKL,
        transform: BlockTransform | None,
        evaluation: Evaluation,
    ) -> None:
        self.job, self.size, self.model, self.transform, self.evaluation = job, size, model, transform, evaluation
        self.factor = model.config.encoder_factor
        # Not validated, since that would read the environment, and a geometry that is set there isn't meant.
        settings = InpaintJob.model_construct(
            input=job.input, mask=job.mask, geometry=GeometrySettings(mode="fit", max=size), composite="none"
        )
        self.prepare = Prepare(settings, NoFill(), self.factor)
        self.decode, self.measured = Decode(model), Measure()

    @torch.inference_mode()
    def measure(self, key: str, fields: Mapping[Any, bytes], *, show: bool) -> None:
        whole = self._whole(key, fields)
        if isinstance(whole, Fault):
            self.evaluation.bad[key, whole.code] = None
            return
        items = [whole, *self._masked(key, fields)]
        batch = collate(items, len(items), self.model.device, self.model.dtype)
        z = self.model.encode(batch.image[:1]).latent_dist.mode() * self.model.config.scaling_factor
        batch.z = z.expand(len(items), *z.shape[1:])
        plain = self.model.decode(z / self.model.config.scaling_factor).sample
        given = self.decode(batch).decoded
        assert given is not None
        if not bool(torch.isfinite(plain).all() and torch.isfinite(given).all()):
            self.evaluation.bad[key, Fault("non_finite").code] = None
            return
        pixels = normalised(batch.pixels[:1])
        methods = {"model": plain, "bilinear": bilinear(pixels, self.factor)}
        if self.transform is not None:
            methods["linear"] = self.transform.decode(self.transform.encode(pixels))
        mse = {name: self._mse(batch, decoded) for name, decoded in methods.items()}
        psnr = {name: _psnr(errors[0]) for name, errors in mse.items()}
        self.evaluation.reconstructions.append(Reconstruction(self.size, key, psnr))
        kinds = [NO_HOLE, *[_kind(fields)][: len(items) - 1]]
        errors = zip(kinds, mse["model"], self._mse(batch, given), strict=True)
        pairs = [Preservation(self.size, key, kind, *pair) for kind, *pair in errors]
        self.evaluation.preservations += pairs
        if show and len(items) > 1 and len(self.evaluation.shown) < _SHOWN:
            self.evaluation.shown.append(_show(pairs[1], psnr["model"], items[1], plain[0], given[1]))

    def _whole(self, key: str, fields: Mapping[Any, bytes]) -> Item | Fault:
        """The image with an empty mask."""
        if "image" not in fields:
            return Fault("missing_image")
        original = decode_image(fields["image"], max_pixels=self.job.input.max_pixels)
        if isinstance(original, Fault):
            return original
        height, width = original.pixels.shape[:2]
        at = place(height, width, None, mode="fit", margin=0, max_side=self.size, factor=self.factor)
        work = image_to_work(original.pixels, at)
        empty = np.zeros(work.shape[:2], np.bool_)
        return Item(index=0, key=key, variant=0, seed=0, image=work, mask=empty, valid=at.resized)

    def _masked(self, key: str, fields: Mapping[Any, bytes]) -> list[Item]:
        """The image with its own mask; nothing where that has no hole, or leaves nothing known."""
        own = {
            role: data for role, data in fields.items() if role != "json"
        }  # which says the kind here, and no settings
        planned = self.prepare(1, key, own)  # items of one index share a mask, and the whole image has another
        if isinstance(planned, Fault):
            self.evaluation.bad[key, planned.code] = None
            return []
        item = planned.items[0]
        hole = item.mask[: item.valid[0], : item.valid[1]]
        if hole.all():
            self.evaluation.unknown.append((self.size, key))
        return [item] if hole.any() and not hole.all() else []

    def _mse(self, batch: Batch, decoded: Tensor) -> list[float]:
        """``mse_known`` of each item; of the first, whose mask is empty, that is over the whole image."""
        measured = self.measured(replace(batch, decoded=decoded.expand_as(batch.image), metrics={}))
        errors: list[float] = measured.metrics["mse_known"].tolist()
        return errors


def _psnr(mse: float) -> float:
    return 10 * math.log10(4 / mse) if mse else math.inf


def _kind(fields: Mapping[Any, bytes]) -> str:
    """``mask_kind`` of the sample's JSON field, as the sample photographs have it."""
    try:
        content = json.loads(fields.get("json", b""))
    except ValueError:
        return ANY_KIND
    kind = content.get("mask_kind") if isinstance(content, dict) else None
    return kind if isinstance(kind, str) else ANY_KIND


def _show(preservation: Preservation, psnr: float, item: Item, plain: Tensor, given: Tensor) -> Shown:
    height, width = item.valid

    def levels(decoded: Tensor) -> NDArray[np.uint8]:
        pixels = decoded.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
        return pixels.permute(1, 2, 0)[:height, :width].cpu().numpy()

    original, made = item.image[:height, :width], levels(given)
    error = np.abs(made.astype(np.int16) - original) * _ERROR_TIMES
    hole = item.mask[:height, :width]
    return Shown(preservation, psnr, original, levels(plain), hole, made, error.clip(0, 255).astype(np.uint8))
