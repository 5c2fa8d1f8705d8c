"""python -m jobs.evaluate: how good a checkpoint is, on images that it was not trained on."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from asymvae.report.grid import draw_grid
from asymvae.storage import filesystem
from asymvae.storage.shards import list_shards
from asymvae.training.evaluation import evaluate, load_model, load_transform
from asymvae.training.evaluation_config import EvaluateJob
from asymvae.training.scores import Evaluation, tables
from jobs.arguments import fail, parse

_DESCRIPTION = """\
Measure the checkpoint model.path on the images of input.urls, which it should not have been trained on.

Two tables in Markdown, ready for a model card, each at every size of --sizes:

  reconstruction  mean PSNR of encode and decode, beside what is had for nothing: the image reduced by the model's
                  factor and enlarged again, and the best linear transform of pixel blocks, where one was saved
                  (block_transform.safetensors in the checkpoint's folder, or --block_transform=FILE)
  preservation    mean squared error over known pixels, decoded from the latent alone and with image and mask:
                  the ratio is what the asymmetric decoder is for (the paper, arXiv 2306.04632: 190)

Shards are as for jobs.inpaint. The kind of a mask is what the sample's JSON field calls mask_kind; without one all
masks are one row. --mask.dilate, feather and grid make the network's mask as they do there.
"""
_EPILOG = """\
examples:
  python -m jobs.evaluate --config configs/evaluate-demo.yaml
  python -m jobs.evaluate --config configs/evaluate-demo.yaml --model.path=out/train/checkpoint --picture=sheet.png
  python -m jobs.evaluate --input.urls='s3://bucket/held-out/*.tar' --model.path=out/train/checkpoint --sizes=512

It runs on the GPU if there is one (in bfloat16: --model.dtype=float32 measures the weights without its rounding).

exit codes:
  0  the tables are printed; bad samples are named below them
  2  nothing was measured (the configuration is wrong, or no image can be read), or the picture can't be written
  130  interrupted (Ctrl-C)
"""
_COLUMNS = ("original", "reconstruction", "hole", "with image and mask", "its error, x 8")
_LINE_EVERY_S = 10.0


def read(arguments: Sequence[str]) -> tuple[EvaluateJob, argparse.Namespace]:
    """The job that the arguments describe, and what is no setting. Exits with 2 where they are wrong."""
    flags = argparse.ArgumentParser(
        prog="python -m jobs.evaluate",
        usage="%(prog)s --config FILE [--name.of.setting=value ...] [--picture FILE]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument(
        "--picture", metavar="FILE", help="also draw the first samples with a hole, at the smallest size, as PNG"
    )
    return parse(EvaluateJob, flags, arguments)


def main(arguments: Sequence[str]) -> int:
    job, flag = read(arguments)
    name = filesystem.redact(job.model.path)
    try:
        shards = list_shards(job.input.urls, root=job.input.root, format=job.input.format)
        model = load_model(job)
        transform = load_transform(job, model.config.encoder_factor)
    except (OSError, ValueError, ImportError) as error:
        fail(filesystem.redact_text(str(error)))
    started = time.monotonic()
    try:
        with _Progress() as progress:
            evaluation = evaluate(
                job, model, shards, transform, pictures=flag.picture is not None, progress=progress.tell
            )
    except (OSError, ValueError) as error:  # the latter: a network that can't decode with image and mask says so
        fail(filesystem.redact_text(str(error)))
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 128 + signal.SIGINT
    if not evaluation.reconstructions:
        fail(f"none of the {evaluation.samples} samples has an image that can be read: look at input.image")
    print(f"`{name}`, weights {(model.weights_sha256 or '')[:12]}, {str(model.dtype).removeprefix('torch.')}\n")
    print(tables(evaluation))
    print(f"{evaluation.samples} samples in {time.monotonic() - started:.1f} s on {model.device}", file=sys.stderr)
    if flag.picture is not None:
        try:
            filesystem.replace(flag.picture, _picture(name, evaluation))
        except OSError as error:
            fail(f"--picture: {filesystem.redact_text(str(error))}")
        print(f"picture  {flag.picture}", file=sys.stderr)
    return 0


def _picture(name: str, evaluation: Evaluation) -> bytes:
    rows = []
    for shown in evaluation.shown:
        kept = shown.preservation
        said = f"{kept.kind}  ·  PSNR {shown.psnr:.1f} dB  ·  known pixels {kept.without:.2e} to {kept.given:.2e}"
        pictures = (shown.original, shown.plain, (shown.original, shown.hole), shown.given, shown.error)
        rows.append((kept.key, f"{said}, {kept.ratio:.0f} times", pictures))
    return draw_grid(f"{name}: nothing is pasted", _COLUMNS, rows)


class _Progress:
    """A count on a terminal; elsewhere a line every ten seconds."""

    def __enter__(self) -> _Progress:
        self.bar = tqdm(desc="evaluate", unit=" samples", disable=None, leave=False)
        self.samples, self.shown = 0, time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def tell(self, sample: str) -> None:
        self.samples += 1
        self.bar.update()
        if self.bar.disable and time.monotonic() - self.shown >= _LINE_EVERY_S:
            self.shown = time.monotonic()
            print(f"{self.samples} samples, the last {sample}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
