"""The loop of one stage: crops in, steps, losses and states out; a resumed one takes the same steps."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from asymvae.batch import normalised
from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.training.config import TrainJob
from asymvae.training.crops import Crops, Position
from asymvae.training.folder import RunFolder
from asymvae.training.stage import Losses, Stage

# Told after every step: stage, steps done, steps in all, and every _LOOK_EVERY steps the losses as numbers.
Progress = Callable[[str, int, int, dict[str, float]], None]

_LOOK_EVERY = 10  # reading a loss makes a GPU wait
_MOST_GRADIENT = 1.0


class TrainingError(RuntimeError):
    """Training can't go on; the last state stays. The message names the setting."""


class DivergedError(TrainingError):
    """The loss is no number any more. The last state, which is sound, stays."""


class StageRun:
    def __init__(
        self, job: TrainJob, stage: Stage, crops: Crops, *, steps: int, learning_rate: float, folder: RunFolder
    ) -> None:
        self.job, self.stage, self.crops, self.folder = job, stage, crops, folder
        self.steps, self.learning_rate = steps, learning_rate
        weights = stage.trained()
        stage.model.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        self.optimiser = torch.optim.AdamW(weights, learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
        self.average = AveragedModel(stage.model, multi_avg_fn=_average(job.average))
        self.step, self.position = 0, Position()
        self._rows: list[dict[str, Any]] = []

    def restore(self) -> bool:
        """Go on from the folder's state of this stage; False where there is none."""
        state = self.folder.load_state(self.stage.name)
        self.folder.drop_after(self.stage.name, 0 if state is None else state["step"])
        if state is None:
            return False
        self.stage.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.stage.load_state_dict(state["stage"])
        self.step, self.position = state["step"], Position(**state["position"])
        return True

    def run(self, progress: Progress) -> AsymmetricAutoencoderKL:
        """All steps that are left; the averaged model. Raises TrainingError, and NoImagesError of the crops."""
        job = self.job
        with contextlib.closing(self.crops.batches(self.position, threads=job.run.threads)) as batches:
            while self.step < self.steps:
                started = time.perf_counter()
                pixels, position = next(batches)
                try:
                    losses = self._step(normalised(torch.from_numpy(pixels).to(self.stage.model.device)))
                except torch.OutOfMemoryError as error:
                    raise self._too_large() from error
                self.step, self.position = self.step + 1, position
                self._note(losses, time.perf_counter() - started, progress)
                if self.step % job.run.save_every == 0 or self.step == self.steps:
                    self._save()
        averaged = self.average.module
        assert isinstance(averaged, AsymmetricAutoencoderKL)
        return averaged if job.average else self.stage.model

    def _step(self, image: Tensor) -> Losses:
        rate = self.learning_rate * schedule(self.step, self.steps, self.job.warmup_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        bfloat16 = self.job.run.precision == "bfloat16"
        with torch.autocast(image.device.type, torch.bfloat16, enabled=bfloat16):
            # the seed of a step, not of the run: a resumed run draws what the first would have drawn
            losses = self.stage.losses(image, self.step, (self.job.seed, len(self.stage.name), self.step))
        self.optimiser.zero_grad(set_to_none=True)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.stage.trained(), _MOST_GRADIENT)
        self.optimiser.step()
        self.average.update_parameters(self.stage.model)
        return {name: value.detach() for name, value in {**losses, **self.stage.after_step()}.items()}

    def _note(self, losses: Losses, seconds: float, progress: Progress) -> None:
        rate = self.optimiser.param_groups[0]["lr"]
        self._rows.append(
            {"stage": self.stage.name, "step": self.step, "learning_rate": rate, "seconds": seconds, **losses}
        )
        told: dict[str, float] = {}
        if self.step % _LOOK_EVERY == 0 or self.step == self.steps:
            told = {name: float(value) for name, value in losses.items()}
            if not math.isfinite(told["loss"]):
                raise self._diverged()
        progress(self.stage.name, self.step, self.steps, told)

    def _save(self) -> None:
        """Losses before the state: what a crash between the two leaves is written again, under the same names."""
        rows = [
            {name: float(value) if isinstance(value, Tensor) else value for name, value in row.items()}
            for row in self._rows
        ]
        numbers = (value for row in rows for value in row.values() if isinstance(value, float))
        if not all(map(math.isfinite, numbers)) or not all(w.isfinite().all() for w in self.stage.trained()):
            raise self._diverged()
        self.folder.write_losses(self.stage.name, self.step, rows)
        self.folder.write_picture(self.stage.name, self.step, self.stage.shown)
        self.folder.save_state(
            self.stage.name,
            {
                "model": self.stage.model.state_dict(),
                "average": self.average.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "stage": self.stage.state_dict(),
                "step": self.step,
                "position": asdict(self.position),
            },
        )
        self._rows.clear()

    def _too_large(self) -> TrainingError:
        name = self.stage.name
        return TrainingError(
            f"the network and a batch of {self.crops.batch_size} crops don't fit the device in stage {name}: lower "
            f"{name}.batch_size, and the learning rate with it, or crops.size, in another output.url"
        )

    def _diverged(self) -> DivergedError:
        name = self.stage.name
        return DivergedError(
            f"stage {name} has diverged by step {self.step}, its losses or weights are no numbers any more: lower "
            f"{name}.learning_rate or raise warmup_steps, in another output.url; the last state stays in this one"
        )


def schedule(step: int, steps: int, warmup: int) -> float:
    """Share of the learning rate at ``step``: up from 0 over ``warmup`` steps, then down to 0 along a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def _average(decay: float) -> Callable[[Any, Any, Any], None]:
    """Exponential, with a decay that begins at 0: or the random start would weigh on a short run's result."""

    @torch.no_grad()
    def update(averages: list[Tensor], currents: list[Tensor], count: Tensor | int) -> None:
        share = 1 - min(decay, (1 + float(count)) / (10 + float(count)))
        torch._foreach_lerp_(averages, currents, share)

    return update
