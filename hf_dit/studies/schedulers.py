"""The samplers of a study by name, each on the noise schedule that the model was trained with.

The short names are in `SCHEDULERS` and, for flow matching, `FLOW_SCHEDULERS`; any other scheduler
of diffusers is named by its class.
"""

import diffusers
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..sampling.schedule import predicted_with
from .axes import FLOW_SCHEDULERS, SCHEDULERS, no_scheduler

# Of diffusion and of flows.
# Their "leading" spacing of n steps begins at timestep n (1000 // (n + 1)): at 950 for 50 steps, but at 500 for 500,
# where a sample is no pure noise, and 1000 steps fail.
SOLVERS = (DPMSolverMultistepScheduler, UniPCMultistepScheduler)


def default_scheduler(trained: SchedulerMixin) -> str:
    """The name of the sampler that a study takes where none is named, for a pipeline with this scheduler."""
    return "euler" if predicted_with(trained) == "flow" else "ddim"


def scheduler_class(name: str, trained: SchedulerMixin | None = None) -> type[SchedulerMixin]:
    """The class that a name stands for, or the scheduler of diffusers of that name.

    Args:
        trained: the scheduler of the pipeline, which says whether the names are those in `SCHEDULERS` or in
            `FLOW_SCHEDULERS`; None: either.

    Raises:
        ValueError: there is none.
    """
    known = FLOW_SCHEDULERS if trained is not None and predicted_with(trained) == "flow" else SCHEDULERS
    if known is FLOW_SCHEDULERS and name in SCHEDULERS and name not in known:
        raise no_scheduler(name, known)
    cls = getattr(diffusers, known.get(name, name), None)
    if not (isinstance(cls, type) and issubclass(cls, SchedulerMixin)):
        raise no_scheduler(name, known)
    return cls


def sampling_scheduler(name: str, trained: SchedulerMixin, learn_sigma: bool) -> SchedulerMixin:
    """The scheduler of that name for a model that was trained with what `trained`, its pipeline's scheduler, says.

    Everything that the two classes both know is taken over, values that were defaults there included: other classes
    have other defaults (`HeunDiscreteScheduler` another noise schedule, `EulerDiscreteScheduler` another spacing of
    the timesteps), and a study compares samplers on the same ones. Two exceptions: DPM-Solver and UniPC, whose
    `leading` spacing does not reach the noisy end at many steps, have `trailing` in its place; a cell records its
    spacing, first and last timestep. `ddpm` is the paper's ancestral sampling: with the learned variance where the
    model has one. The others integrate the noise prediction alone. Samplers of a flow have the pipeline's shift.

    Args:
        name: as for [`scheduler_class`].
        learn_sigma: whether the model's output holds a learned variance.

    Raises:
        ValueError: an unknown name.
    """
    cls, config = scheduler_class(name, trained), trained.config
    shared = {key: value for key, value in config.items() if key not in ("_use_default_values", "variance_type")}
    if predicted_with(trained) == "flow":
        shift = config.get("shift", config.get("flow_shift", 1.0))
        if cls in SOLVERS:
            flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
            return cls.from_config({"num_train_timesteps": config["num_train_timesteps"]}, **flow)
        return cls.from_config(shared | {"shift": shift})
    if cls is DDPMScheduler:
        given = config.get("variance_type") or "fixed_small"
        fixed = "fixed_small" if given.startswith("learned") else given
        return cls.from_config(shared, variance_type="learned_range" if learn_sigma else fixed)
    if cls in SOLVERS and shared.get("timestep_spacing") == "leading":
        shared["timestep_spacing"] = "trailing"
    return cls.from_config(shared)
