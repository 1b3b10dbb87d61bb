"""What the axes of studies and benchmarks may hold, known without the libraries that run them."""

import math
from collections.abc import Sequence

from hf_common.names import did_you_mean

# The samplers by name, and the class of diffusers that each is.
SCHEDULERS: dict[str, str] = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
# The same names for a model of flow matching, where they mean something.
FLOW_SCHEDULERS: dict[str, str] = {
    "euler": "FlowMatchEulerDiscreteScheduler",
    "heun": "FlowMatchHeunDiscreteScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
PHASES = ("forward", "forward+backward")  # of a benchmark
DTYPES = ("float32", "bfloat16", "float16")  # of the weights that sample


def check_axes(
    guidance_scales: Sequence[float],
    steps: Sequence[int],
    attentions: Sequence[str | None],
    schedulers: Sequence[str],
) -> None:
    """Raise a ValueError if an axis is empty, or holds a value twice or one that no pipeline can take."""
    axes = {
        "guidance_scales": guidance_scales,
        "steps": steps,
        "attentions": attentions,
        "schedulers": schedulers,
    }
    for name, values in axes.items():
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name} must be one or more different values; got {list(values)}")
    for scale in guidance_scales:
        if not math.isfinite(scale):
            raise ValueError(f"guidance_scales must be finite; got {scale}")
    for count in steps:
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"steps must be whole numbers of 1 or more; got {count!r:.120}")
    for name in schedulers:
        if name not in SCHEDULERS and not (name.isidentifier() and name[0].isupper()):  # as classes are written
            raise no_scheduler(name)


def check_sampling_flags(seed: int, cfg_channels: str, guidance_interval: Sequence[float] | None) -> None:
    """Raise a ValueError that names the flag for what no model could take."""
    if seed < 0:
        raise ValueError(f"--seed must be 0 or more; got {seed}")
    if cfg_channels != "all" and not (cfg_channels.isdecimal() and int(cfg_channels) > 0):
        raise ValueError(f"--cfg_channels must be all, or a number of 1 or more; got {cfg_channels!r}")
    interval = guidance_interval
    if interval is not None and (len(interval) != 2 or not 0 <= interval[0] <= interval[1] < math.inf):
        raise ValueError(f"--guidance_interval must be two numbers, 0 <= low <= high; got {interval}")


def no_scheduler(name: str, known: dict[str, str] = SCHEDULERS) -> ValueError:
    """The error for a name that stands for no scheduler."""
    of = " of a flow" if known is FLOW_SCHEDULERS else ""
    return ValueError(
        f"schedulers{of} must be among {', '.join(known)}, or classes of diffusers; got {name!r:.120}"
        f"{did_you_mean(name, known)}"
    )
