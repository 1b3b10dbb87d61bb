"""The samplers of a study by name, each on the noise schedule that the model was trained with.

The short names are in `SCHEDULERS`; any other scheduler of diffusers is named by its class.
"""

import diffusers
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .axes import SCHEDULERS, no_scheduler

# Their "leading" spacing of n steps begins at timestep n (1000 // (n + 1)): at 950 for 50 steps, but at 500 for 500,
# where a sample is no pure noise, and 1000 steps fail.
WITHOUT_LEADING = (DPMSolverMultistepScheduler, UniPCMultistepScheduler)


def scheduler_class(name: str) -> type[SchedulerMixin]:
    """The class that a name in `SCHEDULERS` stands for, or the scheduler of diffusers of that name.

    Raises:
        ValueError: there is none.
    """
    cls = getattr(diffusers, SCHEDULERS.get(name, name), None)
    if not (isinstance(cls, type) and issubclass(cls, SchedulerMixin)):
        raise no_scheduler(name)
    return cls


def sampling_scheduler(name: str, config: dict, learn_sigma: bool) -> SchedulerMixin:
    """The scheduler of that name for a model that was trained with the noise schedule of `config`.

    Everything that the two classes both know is taken over, values that were defaults there included: other classes
    have other defaults (`HeunDiscreteScheduler` another noise schedule, `EulerDiscreteScheduler` another spacing of
    the timesteps), and a study compares samplers on the same ones. Two exceptions: DPM-Solver and UniPC, whose
    `leading` spacing does not reach the noisy end at many steps, have `trailing` in its place; a cell records its
    spacing, first and last timestep. `ddpm` is the paper's ancestral sampling: with the learned variance where the
    model has one. The others integrate the noise prediction alone.

    Args:
        name: as for [`scheduler_class`].
        config: the config of the pipeline's scheduler.
        learn_sigma: whether the model's output holds a learned variance.

    Raises:
        ValueError: an unknown name.
    """
    cls = scheduler_class(name)
    shared = {key: value for key, value in config.items() if key not in ("_use_default_values", "variance_type")}
    if cls is DDPMScheduler:
        given = config.get("variance_type") or "fixed_small"
        fixed = "fixed_small" if given.startswith("learned") else given
        return cls.from_config(shared, variance_type="learned_range" if learn_sigma else fixed)
    if cls in WITHOUT_LEADING and shared.get("timestep_spacing") == "leading":
        shared["timestep_spacing"] = "trailing"
    return cls.from_config(shared)
