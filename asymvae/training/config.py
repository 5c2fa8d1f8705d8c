"""Every setting of ``jobs.train``. What each does to the result is said as in :mod:`asymvae.config`."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from asymvae.config import InputSettings, JobSettings, Names, Section, Urls, setting

_IMAGES = InputSettings.model_fields


class TrainInput(Section):
    urls: Urls = setting(..., "shards: a URL or a list; braces {00000..00999} and globs are expanded", "yes")
    format: Literal["auto", "webdataset", "parquet"] = setting("auto", "auto goes by the file's ending", "yes")
    image: Names = setting(_IMAGES["image"].default, "the image's field (longest suffix that matches) or column", "yes")
    max_pixels: int = setting(_IMAGES["max_pixels"].default, "a larger image is left out", "yes", ge=1)


class TrainOutput(Section):
    url: str = setting(..., "folder of the run: checkpoints, state, losses, pictures; local or s3://, gs://", "no")
    dtype: Literal["float32", "float16", "bfloat16"] = setting("float32", "of the finished checkpoint", "yes")


class NetworkSettings(Section):
    """Widths from the image's size to the latent's, as in a checkpoint's config.json."""

    encoder: str | None = setting(
        None,
        "checkpoint (AutoencoderKL or asymmetric; hub id, folder, URL) whose encoder is taken as it is; "
        "by default one is trained",
        "yes",
    )
    encoder_subfolder: str | None = setting(None, "of that repository or folder, such as vae", "yes")
    down_block_out_channels: tuple[int, ...] = setting(
        (128, 256, 512, 512), "of the encoder; a taken encoder has its own", "yes"
    )
    layers_per_down_block: int = setting(2, "resnets a block of the encoder", "yes", ge=1)
    up_block_out_channels: tuple[int, ...] = setting(
        (192, 384, 768, 768), "of the decoder; (b, 2b, 4b, 4b) is what the condition branch fits", "yes"
    )
    layers_per_up_block: int = setting(3, "resnets a block of the decoder, less one", "yes", ge=1)
    latent_channels: int = setting(4, "of the latent; a taken encoder has its own", "yes", ge=1)
    norm_num_groups: int = setting(32, "of every group normalisation", "yes", ge=1)

    @model_validator(mode="after")
    def _fits(self) -> NetworkSettings:
        first = self.up_block_out_channels[0] if self.up_block_out_channels else 32
        wanted = (first, 2 * first, 4 * first, 4 * first)
        if self.up_block_out_channels != wanted:
            raise ValueError(
                f"up_block_out_channels is {list(self.up_block_out_channels)}; the condition branch needs "
                f"[b, 2b, 4b, 4b], such as {list(wanted)}"
            )
        if len(self.down_block_out_channels) != 4:
            raise ValueError("down_block_out_channels must have 4 entries, as up_block_out_channels: both sides are f8")
        for width in (*self.down_block_out_channels, *self.up_block_out_channels):
            if width % self.norm_num_groups:
                raise ValueError(f"norm_num_groups ({self.norm_num_groups}) doesn't divide the width {width}")
        return self


class CropSettings(Section):
    size: int = setting(256, "side of a training crop, in pixels", "yes", ge=32, multiple_of=8)
    short_side: tuple[int, int] = setting(
        (256, 512), "an image is reduced so that its shorter side has a random length between these", "yes"
    )
    per_image: int = setting(1, "crops of an image each time it is decoded", "yes", ge=1)
    shuffle_shards: int = setting(4, "shards held and shuffled at once, as the bytes they came in", "yes", ge=1)

    @field_validator("short_side")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 0 < value[0] <= value[1]:
            raise ValueError(f"short_side is {list(value)}; it must be [least, most]")
        return value


class AutoencoderSettings(Section):
    steps: int = setting(0, "of encoder and decoder together; 0 with network.encoder", "yes", ge=0)
    linear_start: bool = setting(
        False, "begin as the best linear transform of pixel blocks instead of at random: minutes instead of days", "yes"
    )
    batch_size: int = setting(8, "crops a step", "yes", ge=1)
    learning_rate: float = setting(1e-4, "of AdamW after warm-up; it ends at 0 along a cosine", "yes", gt=0)
    kl_weight: float = setting(1e-6, "of the KL divergence, a sum, beside the sum of the error", "yes", ge=0)


class DecoderSettings(Section):
    steps: int = setting(..., "of the asymmetric decoder over the frozen encoder", "yes", ge=1)
    batch_size: int = setting(8, "crops a step", "yes", ge=1)
    learning_rate: float = setting(1e-4, "of AdamW after warm-up; it ends at 0 along a cosine", "yes", gt=0)
    full_masks: float = setting(0.5, "share of crops that are hole altogether", "yes", ge=0, le=1)
    empty_masks: float = setting(
        0.0,
        "share of crops without a hole: the paper has none, images that pass through the network have",
        "yes",
        ge=0,
        le=1,
    )
    lpips_weights: Urls = setting((), "files of LPIPS' weights (VGG16 and its linear layers); none: no LPIPS", "yes")
    lpips_weight: float = setting(1.0, "of LPIPS beside the mean absolute error", "yes", ge=0)
    adversarial_from: int | None = setting(
        None, "steps after which the PatchGAN takes part; by default never", "yes", ge=0
    )
    adversarial_weight: float = setting(0.8, "of the PatchGAN's gradient beside the others', at the last layer", "yes")

    @model_validator(mode="after")
    def _shares(self) -> DecoderSettings:
        if self.full_masks + self.empty_masks > 1:
            raise ValueError(
                f"full_masks ({self.full_masks}) and empty_masks ({self.empty_masks}) are more than all crops together"
            )
        return self


class RunSettings(Section):
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto: cuda where there is one", "rounding")
    precision: Literal["float32", "bfloat16"] = setting("float32", "bfloat16: autocast, weights stay float32", "yes")
    threads: int = setting(1, "torch's on a CPU, and as many that decode", "rounding", ge=1)
    save_every: int = setting(500, "steps between two states; what a crash can lose", "no", ge=1)


class TrainJob(JobSettings):
    """Train an asymmetric VAE, or its decoder over an encoder that is there, and write a diffusers checkpoint."""

    input: TrainInput
    output: TrainOutput
    network: NetworkSettings = NetworkSettings()
    crops: CropSettings = CropSettings()
    autoencoder: AutoencoderSettings = AutoencoderSettings()
    decoder: DecoderSettings
    warmup_steps: int = setting(500, "of each stage, over which the learning rate rises from 0", "yes", ge=0)
    average: float = setting(
        0.999, "decay of the averaged weights, which are what is kept; 0: no average", "yes", ge=0, lt=1
    )
    run: RunSettings = RunSettings()
    seed: int = setting(0, "of weights, crops, masks and noise", "yes", ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> TrainJob:
        if (self.autoencoder.steps > 0) == (self.network.encoder is not None):
            raise ValueError("set either network.encoder, whose encoder is kept, or autoencoder.steps, to train one")
        # a setting that would do nothing is a mistake
        if self.autoencoder.linear_start and not self.autoencoder.steps:
            raise ValueError("autoencoder.linear_start is for a new encoder; with network.encoder leave it out")
        begin = self.decoder.adversarial_from
        if begin is not None and begin >= self.decoder.steps:
            raise ValueError(
                f"decoder.adversarial_from ({begin}) is not below decoder.steps ({self.decoder.steps}): the PatchGAN "
                "would never take part; lower it, or leave it out"
            )
        return self
