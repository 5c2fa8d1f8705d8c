"""python -m jobs.train: train an asymmetric VAE, or its decoder over an encoder that is there."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from asymvae.report.curves import draw_losses
from asymvae.storage.filesystem import join, redact, redact_text, replace
from asymvae.training.config import TrainJob
from asymvae.training.loop import TrainingError
from asymvae.training.train import Training
from jobs.arguments import fail, parse

_DESCRIPTION = """\
Train an asymmetric VAE on the images of input.urls, by the paper's recipe (arXiv 2306.04632), in two stages.

  autoencoder  encoder and decoder learn to reconstruct (mean absolute error and a small KL divergence). Left out
               where network.encoder names a checkpoint, such as Stable Diffusion's VAE, whose encoder is kept.
  decoder      the encoder is frozen; the asymmetric decoder learns to keep the known pixels that it is given:
               half of its masks are all hole, the others strokes and boxes. LPIPS and a PatchGAN join in where
               decoder.lpips_weights and decoder.adversarial_from are set.

Shards are as for jobs.inpaint; masks are drawn, not read. Below output.url: checkpoint/ (the result, which diffusers
loads too), autoencoder/ (of the first stage), losses/*.parquet (a row a step) and losses.png (their curves),
pictures/*.jpg (crops as they went in and came out), state/ (what the same command goes on from after an interruption
or a crash).
"""
_EPILOG = """\
examples:
  python -m jobs.train --config configs/train-demo.yaml       a small one in two hours on two cores
  python -m jobs.train --config configs/train-x-1-5.yaml      the paper's decoder over Stable Diffusion's encoder
  python -m jobs.evaluate --config configs/evaluate-demo.yaml --model.path=out/train-demo/checkpoint

exit codes:
  0  the checkpoint is written
  1  training diverged, did not fit the device, or its storage failed; the last state is kept
  2  the configuration is wrong; nothing was trained
  130  interrupted (Ctrl-C); the same command goes on from the last state
"""
_LINE_EVERY_S = 10.0


def read(arguments: Sequence[str]) -> tuple[TrainJob, argparse.Namespace]:
    """The job that the arguments describe. Exits with 2 where they are wrong."""
    flags = argparse.ArgumentParser(
        prog="python -m jobs.train",
        usage="%(prog)s --config FILE [--name.of.setting=value ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parse(TrainJob, flags, arguments)


def main(arguments: Sequence[str]) -> int:
    job, _ = read(arguments)
    out = redact(job.output.url)
    progress = _Progress()
    try:
        with progress:
            result = Training(job).run(progress.tell)
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        _draw_curves(job.output.url)
        return 1
    except (OSError, ValueError, ImportError) as error:
        if not progress.stage:
            fail(redact_text(str(error)))
        print(f"error: {redact_text(str(error))}; the same command goes on from the last state", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the last state is kept, and the same command goes on from there", file=sys.stderr)
        _draw_curves(job.output.url)
        return 128 + signal.SIGINT
    if result.skipped:
        left_out = ", ".join(f"{code} {count}" for code, count in sorted(result.skipped.items()))
        print(f"images left out, over all epochs: {left_out}", file=sys.stderr)
    print(f"checkpoint  {redact(result.checkpoint)}, scaling_factor {result.scaling_factor:.5f}")
    print(f"losses      {join(out, 'losses')}/*.parquet")
    _draw_curves(job.output.url)
    print(f"pictures    {join(out, 'pictures')}/*.jpg")
    return 0


def _draw_curves(url: str) -> None:
    """Write OUT/losses.png and say where; a run is as good without it."""
    try:
        if (picture := draw_losses(join(url, "losses"))) is not None:
            replace(join(url, "losses.png"), picture)
            print(f"curves      {redact(join(url, 'losses.png'))}")
    except (OSError, ValueError) as error:
        print(f"the curves can't be drawn: {redact_text(str(error))}", file=sys.stderr)


class _Progress:
    """A bar a stage on a terminal; elsewhere a line every ten seconds."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.stage, self.shown = "", 0.0
        self.losses: dict[str, float] = {}

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def tell(self, stage: str, step: int, steps: int, losses: dict[str, float]) -> None:
        if stage != self.stage:
            if self.bar is not None:
                self.bar.close()
            self.bar = tqdm(desc=stage, total=steps, initial=step - 1, unit="step", disable=None, dynamic_ncols=True)
            self.stage, self.first, self.began = stage, step, time.monotonic()
            self.losses = {}
        assert self.bar is not None
        self.bar.update()
        if losses:
            self.losses = losses
            self.bar.set_postfix_str(self._said())
        if self.bar.disable and self.losses and (time.monotonic() - self.shown >= _LINE_EVERY_S or step == steps):
            self.shown = time.monotonic()
            left = (self.shown - self.began) / max(step - self.first, 1) * (steps - step) / 60
            print(
                f"{stage}: step {step} of {steps}, {self._said()}, about {left:.0f} min left",
                file=sys.stderr,
                flush=True,
            )

    def _said(self) -> str:
        return ", ".join(f"{name} {value:.4g}" for name, value in self.losses.items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
