"""diffusers' schedulers by short names, and how a checkpoint's own becomes another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

# Those that StableDiffusionInpaintPipeline runs with, and that draw nothing but from the samples' own generators.
SCHEDULERS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "dpm-solver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm-solver++-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm-solver++-single": ("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver++"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "kdpm2-ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
_CLASSES: Final = {class_name for class_name, _ in SCHEDULERS.values()}


def check_scheduler(config: Mapping[str, Any], name: str | None) -> None:
    """Raises ValueError where :func:`make_scheduler` couldn't, without importing diffusers."""
    if name is not None and name not in SCHEDULERS:
        raise ValueError(f"inpaint.diffusion.scheduler {name!r} is none of {', '.join(SCHEDULERS)}")
    own = config.get("_class_name")
    if name is None and own not in _CLASSES:
        raise ValueError(
            f"the checkpoint's own scheduler, {own}, isn't among those known here; set inpaint.diffusion.scheduler "
            f"to one of {', '.join(SCHEDULERS)}"
        )


def make_scheduler(config: Mapping[str, Any], name: str | None) -> Any:
    """The scheduler of a checkpoint's ``scheduler_config.json``, or the one of ``name`` with its configuration.

    Raises ValueError for a class or a name that isn't among :data:`SCHEDULERS`.
    """
    check_scheduler(config, name)
    import diffusers  # an optional extra that takes seconds; the driver needs the names alone

    own = str(config.get("_class_name"))
    if own in _CLASSES:
        scheduler = getattr(diffusers, own).from_config(config)
        # What the pipeline does to old configurations.
        if getattr(scheduler.config, "steps_offset", 1) != 1:
            scheduler.register_to_config(steps_offset=1)
        if getattr(scheduler.config, "skip_prk_steps", True) is False:
            scheduler.register_to_config(skip_prk_steps=True)
        config = scheduler.config
    if name is None:
        return scheduler
    class_name, changes = SCHEDULERS[name]
    return getattr(diffusers, class_name).from_config(config, **changes)
