"""Every file of ``configs/`` is of its job, with no setting that the job doesn't know."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from asymvae.config import InpaintJob
from asymvae.config_latents import DecodeJob, PrecomputeJob
from asymvae.training.config import TrainJob
from asymvae.training.evaluation_config import EvaluateJob

CONFIGS = Path(__file__).parents[1] / "configs"
JOBS: dict[str, type[BaseModel]] = {
    "decode-latents.yaml": DecodeJob,
    "demo.yaml": InpaintJob,
    "evaluate-demo.yaml": EvaluateJob,
    "inpaint-diffusion.yaml": InpaintJob,
    "inpaint.yaml": InpaintJob,
    "precompute-latents.yaml": PrecomputeJob,
    "train-demo.yaml": TrainJob,
    "train-x-1-5.yaml": TrainJob,
}


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.name)
def test_a_configuration_is_of_its_job(file: Path) -> None:
    settings = yaml.safe_load(file.read_text())
    JOBS[file.name](**settings)
    with pytest.raises(ValidationError, match="odd"):
        JOBS[file.name](**settings, odd=1)
