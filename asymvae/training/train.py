"""A training run from its settings to a checkpoint: the autoencoder, unless its encoder is given, then the decoder."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from asymvae.batch import normalised
from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.storage.shards import Shard, input_root, list_shards
from asymvae.training.adversary import Adversary
from asymvae.training.config import AutoencoderSettings, DecoderSettings, TrainJob
from asymvae.training.crops import Crops, Pixels
from asymvae.training.folder import AUTOENCODER, CHECKPOINT, RunFolder
from asymvae.training.linear import BlockTransform
from asymvae.training.linear_start import start_linear
from asymvae.training.loop import Progress, StageRun
from asymvae.training.lpips import LPIPS
from asymvae.training.stage import AutoencoderStage, DecoderStage, Stage
from asymvae.training.start import new_model

# Batches that the linear start is fitted to, and those that scaling_factor is measured on.
_MEASURED_BATCHES = 100


@dataclass(frozen=True)
class TrainResult:
    """``skipped``: images that gave no crop, by why."""

    checkpoint: str
    scaling_factor: float
    skipped: dict[str, int]


class Training:
    def __init__(self, job: TrainJob) -> None:
        self.job = job
        self.folder = RunFolder(job.output.url)
        root = input_root(job.input.urls)
        self.shards: Sequence[Shard] = list_shards(job.input.urls, root=root, format=job.input.format)
        if job.run.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("run.device is cuda, and torch finds none here: set run.device=cpu, or auto")
        cuda = job.run.device != "cpu" and torch.cuda.is_available()
        self.device = torch.device("cuda" if cuda else "cpu")
        self.skipped: Counter[str] = Counter()

    def run(self, progress: Progress) -> TrainResult:
        """Raises what is wrong with the settings as ValueError or FileNotFoundError, before the first step."""
        torch.set_num_threads(self.job.run.threads)
        # float32 means float32; what autocast leaves in it beside bfloat16 may be coarser
        torch.backends.cudnn.allow_tf32 = self.job.run.precision != "float32"
        # before hours are spent on the first stage: a misspelt file is a wrong setting
        weights = self.job.decoder.lpips_weights
        lpips = LPIPS.load(*weights).to(self.device) if weights else None
        self.folder.open(self.job)
        if self.job.autoencoder.steps and not self.folder.has_checkpoint(AUTOENCODER):
            self._train_autoencoder(progress)
        model = self._train_decoder(lpips, progress)
        checkpoint = self.folder.write_checkpoint(CHECKPOINT, model.to(getattr(torch, self.job.output.dtype)))
        if (transform := self.folder.read_transform()) is not None:
            self.folder.write_transform(transform, CHECKPOINT)
        return TrainResult(checkpoint, model.config.scaling_factor, dict(self.skipped))

    def _train_autoencoder(self, progress: Progress) -> None:
        settings = self.job.autoencoder
        model = self._new_model()
        if settings.linear_start:
            start_linear(model, self._transform(model))
        stage = AutoencoderStage(model.to(self.device), settings)
        model = self._run(stage, settings, progress)
        model.config = dataclasses.replace(model.config, scaling_factor=1 / self._latent_std(model))
        self.folder.write_checkpoint(AUTOENCODER, model)

    def _train_decoder(self, lpips: LPIPS | None, progress: Progress) -> AsymmetricAutoencoderKL:
        settings = self.job.decoder
        first = self.job.autoencoder.steps > 0
        model = self.folder.load_checkpoint(AUTOENCODER) if first else self._new_model()
        adversary = None
        if settings.adversarial_from is not None:
            torch.manual_seed(self.job.seed)  # its weights are drawn here, in a resumed run as well
            adversary = Adversary(settings.learning_rate, self.device)
        stage = DecoderStage(model.to(self.device), settings, lpips, adversary)
        return self._run(stage, settings, progress)

    def _new_model(self) -> AsymmetricAutoencoderKL:
        return new_model(self.job.network, sample_size=self.job.crops.size, seed=self.job.seed)

    def _run(
        self, stage: Stage, settings: AutoencoderSettings | DecoderSettings, progress: Progress
    ) -> AsymmetricAutoencoderKL:
        crops = Crops(self.shards, self.job.input, self.job.crops, batch_size=settings.batch_size, seed=self.job.seed)
        steps, learning_rate = settings.steps, settings.learning_rate
        run = StageRun(self.job, stage, crops, steps=steps, learning_rate=learning_rate, folder=self.folder)
        run.restore()
        model = run.run(progress)
        self.skipped.update(crops.skipped)
        return model

    def _transform(self, model: AsymmetricAutoencoderKL) -> BlockTransform:
        transform = self.folder.read_transform()
        if transform is None:
            transform = BlockTransform.fit(
                self._measured(), components=model.config.latent_channels, factor=model.config.encoder_factor
            )
            self.folder.write_transform(transform)
        return transform

    def _latent_std(self, model: AsymmetricAutoencoderKL) -> float:
        """Of all latents' values together, as latent-diffusion measured its scaling_factor (1 / std)."""
        moments = torch.zeros(3, dtype=torch.float64)
        with torch.no_grad():
            for pixels in self._measured():
                image = normalised(torch.from_numpy(pixels).to(model.device))
                z = model.encode(image).latent_dist.mode().double().cpu()
                moments += torch.stack([torch.tensor(float(z.numel())), z.sum(), z.square().sum()])
        count, total, squares = moments.tolist()
        return float((squares / count - (total / count) ** 2) ** 0.5)

    def _measured(self) -> Iterator[Pixels]:
        """Crops of the training images, other ones than are trained on."""
        crops = Crops(
            self.shards,
            self.job.input,
            self.job.crops,
            batch_size=self.job.autoencoder.batch_size,
            seed=self.job.seed + 1,
        )
        with contextlib.closing(crops.batches(threads=self.job.run.threads)) as batches:
            for pixels, _ in itertools.islice(batches, _MEASURED_BATCHES):
                yield pixels
