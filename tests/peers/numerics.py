"""What half precision costs, in decoded images: PSNR (dB) against the same in float64, on trained and random weights.

python -m tests.peers.numerics [--size 256] [--images 4] [--threads 1]     # float16 takes minutes on a CPU

Trained: the demonstration checkpoint on the photographs that it was not trained on (configs/samples). Random: the same
architecture, its weights drawn; images are then no pictures, and have no dB in the sense of a viewer, but rounding is
not damped as trained networks damp it. A row's PSNR is the mean over images of each one's, peak to peak 2; the least
stands beside it. Encoded in the row's dtype too, masked decodes with a quarter of the image as the hole.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from asymvae.benchmark.contenders import DEMO
from asymvae.media.image import Image, decode_image
from asymvae.model import AsymmetricAutoencoderKL
from asymvae.storage.samples import FieldNames, Sample, read_shard
from asymvae.storage.shards import list_shards
from asymvae.tables import markdown
from tests.model.small import randomise

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "configs/demo-checkpoint"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PARTS = ("decode", "decode(image, mask)")


@dataclass(frozen=True, slots=True)
class Row:
    weights: str
    part: str
    dtype: str
    optimized: bool
    psnr: tuple[float, ...]  # of each image, dB

    @property
    def mean(self) -> float:
        return sum(self.psnr) / len(self.psnr)


def pictures(size: int) -> list[Tensor]:
    """The middles of the held-out photographs, (1, 3, size, size) float64 in [-1, 1]; smaller ones are left out."""
    found = []
    for shard in list_shards(str(ROOT / "configs/samples/*.tar"), root=None, format="auto"):
        for row in read_shard(shard, FieldNames(("jpg",), (), (), (), ())):
            image = decode_image(row.fields["image"], max_pixels=10**7) if isinstance(row, Sample) else None
            if isinstance(image, Image) and min(image.pixels.shape[:2]) >= size:
                top, left = ((side - size) // 2 for side in image.pixels.shape[:2])
                cut = torch.from_numpy(image.pixels[top : top + size, left : left + size].copy())
                found.append(cut.permute(2, 0, 1)[None].double() / 127.5 - 1)
    return found


def load(weights: str) -> AsymmetricAutoencoderKL:
    if weights == "trained":
        return AsymmetricAutoencoderKL.from_pretrained(CHECKPOINT)
    drawn = AsymmetricAutoencoderKL(**DEMO).eval()
    randomise(drawn, 1)
    return drawn


@torch.inference_mode()
def measure(weights: str, images: Sequence[Tensor]) -> Iterator[Row]:
    """Of each dtype and part: the plain network and the optimized one, against the plain one in float64."""
    model = load(weights)
    exact = [_decoded(copy.deepcopy(model).double(), image) for image in images]
    for dtype in DTYPES:
        for optimized in (False, True):
            made = copy.deepcopy(model).to(DTYPES[dtype])
            made = made.optimize() if optimized else made
            found = [_decoded(made, image) for image in images]
            for part in PARTS:
                each = [_psnr(one[part], reference[part]) for one, reference in zip(found, exact, strict=True)]
                yield Row(weights, part, dtype, optimized, tuple(each))


def _decoded(model: AsymmetricAutoencoderKL, image: Tensor) -> dict[str, Tensor]:
    side = image.shape[-1]
    mask = torch.zeros(1, 1, side, side, dtype=torch.bool)
    mask[..., side // 4 : side * 3 // 4, side // 4 : side * 3 // 4] = True
    given = image.to(model.dtype)
    z = model.encode(given).latent_dist.mode()
    decoded = {PARTS[0]: model.decode(z).sample, PARTS[1]: model.decode(z, image=given, mask=mask).sample}
    return {part: sample.double() for part, sample in decoded.items()}


def _psnr(found: Tensor, expected: Tensor) -> float:
    """dB over the image, the peak being 2: the range of pixels, or of whatever random weights make."""
    peak = max(2.0, float(expected.max() - expected.min()))
    return float(10 * torch.log10(peak**2 / (found - expected).square().mean()))


def table(rows: Sequence[Row]) -> str:
    head = ("weights", "part", "dtype", "plain, dB", "optimized, dB")
    pairs = {(row.weights, row.part, row.dtype, row.optimized): row for row in rows}
    lines = []
    for row in (row for row in rows if not row.optimized):
        both = (row, pairs[row.weights, row.part, row.dtype, True])
        cells = [f"{one.mean:.1f} ({min(one.psnr):.1f} the least)" for one in both]
        lines.append([row.weights, row.part, row.dtype, *cells])
    return markdown(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--images", type=int, default=4, help="of those that are large enough, spread over them")
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    images = pictures(flags.size)
    images = images[:: max(1, len(images) // flags.images)][: flags.images]
    print(f"{len(images)} photographs, {flags.size} px, torch {torch.__version__}\n")
    print(table([row for weights in ("trained", "random") for row in measure(weights, images)]))


if __name__ == "__main__":
    main()
