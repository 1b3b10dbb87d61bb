"""The arguments of a training: images, network, recipe. Nothing heavy is imported before it has to be."""

import math
import os
from dataclasses import dataclass, field, fields
from inspect import signature

from hf_common.arguments import parse_overrides
from hf_common.run_folder import resume_choice

from ..models.config import check_dit_config
from ..models.sizes import DIT_SIZES, dit_config

# Those of diffusers but `piecewise_constant`, which needs more than a name.
LR_SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
LR_SCHEDULERS_WITHOUT_END = ("constant", "constant_with_warmup")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow")
FLOW_TIMES = ("uniform", "logit_normal", "mode", "cosmap")
# Beside `prediction_type`: for diffusion, for a flow.
OF_DIFFUSION = ("snr_gamma", "rescale_betas_zero_snr", "ddpm_beta_schedule")
OF_FLOW = ("flow_times", "flow_logit_mean", "flow_logit_std", "flow_mode_scale", "flow_shift")
PRECISIONS = ("no", "fp16", "bf16")
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit")
TRACKERS = ("tensorboard", "wandb")
# The config entries that follow from the data or have a flag of their own.
FIXED = ("sample_size", "in_channels", "num_classes", "learn_sigma", "class_dropout_prob", "attention")


def beta_range(num_steps: int) -> tuple[float, float]:
    """First and last beta of a noise schedule of so many steps: those of 1000 steps (Ho et al. 2020), scaled.

    As in the diffusion code of DiT, so that a short schedule ends at noise too.
    """
    return 1e-4 * (1000 / num_steps), 0.02 * (1000 / num_steps)


@dataclass
class DataArguments:
    """Which images and classes, and how they are cut."""

    _argument_group_name = "images"

    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub id of a data set, or a local folder of one (Parquet files, for example)."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Config of the data set."})
    train_data_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of image files, a subfolder for each class ('imagefolder'). Subfolders called train, test "
            "or the like are taken for splits, of which train is trained on."
        },
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where data sets are cached."})
    image_column_name: str | None = field(default=None, metadata={"help": "Default: the only image column."})
    label_column_name: str | None = field(
        default=None,
        metadata={"help": "Default: the only column of class labels, or else the one called label or labels."},
    )
    unconditional: bool = field(default=False, metadata={"help": "Train without classes, whatever the data have."})
    resolution: int | None = field(
        default=None,
        metadata={"help": "Images become squares of this side. Default: as they are, if all have one size."},
    )
    center_crop: bool = field(
        default=True,
        metadata={"help": "Cut the middle square out of images that are no squares; else they're refused."},
    )
    random_flip: bool = field(
        default=False, metadata={"help": "Mirror half of the images from left to right, drawn at each visit (as DiT)."}
    )
    allow_upscale: bool = field(default=False, metadata={"help": "Enlarge images smaller than the resolution."})
    skip_corrupt: bool = field(default=False, metadata={"help": "Leave out images that can't be decoded."})
    keep_in_memory: bool | None = field(
        default=None,
        metadata={
            "help": "Decode all images at the start, or each at its visit, by --dataloader_num_workers. Default: "
            "the former if they take at most a quarter of the machine's memory. Latents are always on disk."
        },
    )
    max_train_samples: int | None = field(
        default=None,
        metadata={"help": "Train on so many images: the first of a shuffle that is the same for every --seed."},
    )

    def __post_init__(self):
        if (self.dataset_name is None) == (self.train_data_dir is None):
            raise ValueError(
                "one of dataset_name and train_data_dir must say what to train on; "
                f"got {self.dataset_name!r:.120} and {self.train_data_dir!r:.120}"
            )
        if self.train_data_dir is not None and not os.path.isdir(self.train_data_dir):
            raise ValueError(f"train_data_dir: there is no folder {self.train_data_dir!r:.120}")
        for name in ("resolution", "max_train_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if self.unconditional and self.label_column_name is not None:
            raise ValueError(f"unconditional takes no label_column_name; got {self.label_column_name!r:.120}")


@dataclass
class ModelArguments:
    """Which network, and in which space it works."""

    _argument_group_name = "network"

    model: str = field(
        default="dit-s-2",
        metadata={
            "help": f"A size to train from scratch ({', '.join(DIT_SIZES)}), or a folder or Hub id of a DiTModel or "
            "its pipeline to go on from; for another number of classes its label table is made anew."
        },
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "Other entries of a size's config: num_layers=4,conditioning=cross_attention"}
    )
    attention: str | None = field(
        default=None,
        metadata={
            "help": "full, na7, na7x5d2, swa64, na7*11,full, xformers:full ... Default: the model's own, or else full."
        },
    )
    learn_sigma: bool = field(
        default=True, metadata={"help": "Learn the variance too, by the variational bound; a flow has none."}
    )
    class_dropout_prob: float = field(
        default=0.1, metadata={"help": "Share of the labels that become the null class, which guidance needs."}
    )
    lora_rank: int | None = field(
        default=None,
        metadata={"help": "Train an adapter of this rank (LoRA) on a trained model, which stays as it is."},
    )
    lora_alpha: int | None = field(default=None, metadata={"help": "Scales the adapter. Default: its rank."})
    vae: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub id of an AutoencoderKL, to train on its latents. Default: on pixels."},
    )
    latent_cache_dir: str | None = field(
        default=None, metadata={"help": "Where latents are kept. Default: in the cache of datasets."}
    )

    def __post_init__(self):
        if not 0 <= self.class_dropout_prob < 1:
            raise ValueError(f"class_dropout_prob must lie in [0, 1); got {self.class_dropout_prob}")
        if self.lora_rank is not None and (self.lora_rank < 1 or self.model in DIT_SIZES):
            raise ValueError(
                f"lora_rank must be 1 or more, for a trained model; got {self.lora_rank} for model={self.model!r:.120}"
            )
        if self.lora_alpha is not None and (self.lora_rank is None or self.lora_alpha < 1):
            raise ValueError(f"lora_alpha must be 1 or more, beside a lora_rank; got {self.lora_alpha}")
        if self.config_overrides is not None and self.model not in DIT_SIZES:
            raise ValueError(
                f"config_overrides changes a size, one of {', '.join(DIT_SIZES)}; model={self.model!r:.120} has its "
                "config"
            )
        if self.config_overrides is not None:
            check_dit_config(dit_config(self.model, **model_overrides(self.config_overrides)))


def model_overrides(text: str | None) -> dict:
    """`"num_layers=4, mlp=swiglu"` -> entries of a `DiTModel`'s config, checked; see [`parse_overrides`]."""
    from ..models.dit import DiTModel

    allowed = [name for name in signature(DiTModel.__init__).parameters if name not in ("self", *FIXED)]
    overrides = parse_overrides(text, allowed)
    check_dit_config(overrides)  # some are words: what is no JSON is a string, and no number
    return overrides


def _can_track(tracker: str) -> bool:
    from accelerate import utils

    return {"tensorboard": utils.is_tensorboard_available, "wandb": utils.is_wandb_available}[tracker]()


@dataclass
class DiTTrainingArguments:
    """How to train. The defaults are DiT's own recipe (Peebles and Xie 2023, section 4), but for the EMA's warm-up."""

    _argument_group_name = "training"

    output_dir: str = field(default="runs/train_dit", metadata={"help": "Where everything is written."})
    seed: int = field(default=0, metadata={"help": "Of weights, order, noise, timesteps, flips and label drops."})
    train_batch_size: int = field(
        default=256,
        metadata={
            "help": "Images of one device in one forward pass. An optimizer step takes this number x processes x "
            "--gradient_accumulation_steps; how that product is split changes nothing but rounding. DiT: 256."
        },
    )
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Forward passes in an optimizer step."})
    num_epochs: float = field(default=100, metadata={"help": "Visits of each image."})
    max_train_steps: int | None = field(default=None, metadata={"help": "Optimizer steps; overrides --num_epochs."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Of AdamW."})
    lr_scheduler: str = field(default="constant", metadata={"help": f"One of {', '.join(LR_SCHEDULERS)}."})
    lr_warmup_steps: int = field(
        default=0,
        metadata={"help": "Optimizer steps of linear warm-up; all schedules but constant have one."},
    )
    optim: str = field(
        default="adamw_torch", metadata={"help": f"One of {', '.join(OPTIMIZERS)}; the last needs bitsandbytes."}
    )
    adam_beta1: float = field(default=0.9, metadata={"help": "Of AdamW."})
    adam_beta2: float = field(default=0.999, metadata={"help": "Of AdamW."})
    adam_weight_decay: float = field(default=0.0, metadata={"help": "Of AdamW."})
    adam_epsilon: float = field(default=1e-8, metadata={"help": "Of AdamW."})
    max_grad_norm: float | None = field(default=None, metadata={"help": "Clip the gradient's norm. Default: no."})
    use_ema: bool = field(default=True, metadata={"help": "Average the weights; the average is sampled and saved."})
    ema_max_decay: float = field(
        default=0.9999,
        metadata={
            "help": "The decay grows as 1 - (1 + step / ema_inv_gamma) ** -ema_power up to this one. DiT has it from "
            "the first step, so that short runs (fewer than some 50,000 steps) average in their initial weights."
        },
    )
    ema_inv_gamma: float = field(default=1.0, metadata={"help": "See --ema_max_decay."})
    ema_power: float = field(default=0.75, metadata={"help": "See --ema_max_decay."})
    mixed_precision: str | None = field(
        default=None, metadata={"help": "no, fp16 or bf16. Default: what accelerate is configured to."}
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Less memory for a third more time."})
    torch_compile: bool = field(
        default=False, metadata={"help": "Compile the blocks, which takes minutes once; weights differ by rounding."}
    )
    fsdp: bool = field(
        default=False,
        metadata={
            "help": "Shard weights, their average, gradients and optimizer states over the processes (FSDP2). The "
            "first one gathers the weights to save and to sample. Results differ by rounding alone, and checkpoints "
            "are of one kind: with --fsdp or without, any number of processes goes on from them."
        },
    )
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that draw the noise; 4 for a GPU."})
    prediction_type: str = field(
        default="epsilon",
        metadata={
            "help": "What the model predicts: epsilon, sample, v_prediction or flow (the velocity of a straight path "
            "from noise to data, as SiT and rectified flow).",
            "aliases": ["--objective"],
        },
    )
    snr_gamma: float | None = field(
        default=None, metadata={"help": "min-SNR weights of this gamma, for diffusion; 5 in the paper. Default: none."}
    )
    rescale_betas_zero_snr: bool = field(
        default=False,
        metadata={"help": "Let the last timestep be pure noise (zero terminal SNR); not for epsilon, not for flow."},
    )
    flow_times: str = field(
        default="uniform",
        metadata={"help": f"How times of a flow are drawn: {', '.join(FLOW_TIMES)} (the last three as SD3)."},
    )
    flow_logit_mean: float = field(default=0.0, metadata={"help": "Of logit_normal; above 0: more noise."})
    flow_logit_std: float = field(default=1.0, metadata={"help": "Of logit_normal."})
    flow_mode_scale: float = field(default=1.29, metadata={"help": "Of mode."})
    flow_shift: float = field(
        default=1.0,
        metadata={"help": "Moves times towards noise, in training and in the sampler that is saved; 3 in SD3."},
    )
    ddpm_num_steps: int = field(default=1000, metadata={"help": "Timesteps of the noise schedule."})
    ddpm_beta_schedule: str = field(default="linear", metadata={"help": f"One of {', '.join(BETA_SCHEDULES)}."})
    checkpointing_steps: int = field(default=1000, metadata={"help": "Steps between checkpoints; 0: only by time."})
    checkpointing_minutes: float = field(
        default=5,
        metadata={"help": "A checkpoint after so many minutes without one, which the next replaces; 0: no."},
    )
    checkpoints_total_limit: int = field(
        default=1, metadata={"help": "Checkpoints kept; one is enough to resume. 0: all."}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "last: from the newest checkpoint in output_dir; or a folder of one in it."},
    )
    logging_steps: int = field(default=50, metadata={"help": "Steps whose mean loss is one point of the curve."})
    report_to: str = field(default="none", metadata={"help": "tensorboard, wandb or none."})
    save_images_steps: int = field(
        default=1000, metadata={"help": "Steps between sample grids; there's always one at the end; 0: no other."}
    )
    sample_guidance_scales: list[float] = field(
        default_factory=lambda: [1.0, 4.0],
        metadata={"help": "Rows of the sample grids: 1 is the model without guidance, 0 without classes."},
    )
    num_sample_images: int = field(default=8, metadata={"help": "Columns of the sample grids."})
    sample_steps: int = field(default=50, metadata={"help": "DDIM steps of the sample grids."})
    use_cpu: bool = field(default=False, metadata={"help": "Train on the CPU even where there is an accelerator."})

    def __post_init__(self):
        self.resume_from_checkpoint = resume_choice(self.resume_from_checkpoint)
        self._check_numbers()
        self._check_names()
        if self.sample_steps > self.ddpm_num_steps:
            raise ValueError(
                f"sample_steps must be at most ddpm_num_steps={self.ddpm_num_steps}; got {self.sample_steps}"
            )
        self._check_objective()
        if self.report_to != "none" and not _can_track(self.report_to):
            raise ImportError(f"report_to={self.report_to!r:.120} needs a package: pip install {self.report_to}")

    def _check_numbers(self) -> None:
        for name, least in (
            ("seed", 0),
            ("train_batch_size", 1),
            ("gradient_accumulation_steps", 1),
            ("max_train_steps", 1),
            ("lr_warmup_steps", 0),
            ("dataloader_num_workers", 0),
            ("ddpm_num_steps", 2),
            ("checkpointing_steps", 0),
            ("checkpoints_total_limit", 0),
            ("logging_steps", 1),
            ("save_images_steps", 0),
            ("num_sample_images", 1),
            ("sample_steps", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be {least} or more; got {value}")
        for name in (
            "num_epochs",
            "learning_rate",
            "adam_epsilon",
            "ema_inv_gamma",
            "ema_power",
            "max_grad_norm",
            "snr_gamma",
            "flow_logit_std",
            "flow_shift",
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be more than 0 and finite; got {value}")
        for name in ("adam_beta1", "adam_beta2", "ema_max_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1); got {getattr(self, name)}")
        for name in ("adam_weight_decay", "checkpointing_minutes"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more and finite; got {getattr(self, name)}")
        if not self.sample_guidance_scales or not all(map(math.isfinite, self.sample_guidance_scales)):
            raise ValueError(
                f"sample_guidance_scales must be one or more finite numbers; got {self.sample_guidance_scales}"
            )
        if not math.isfinite(self.flow_logit_mean):
            raise ValueError(f"flow_logit_mean must be finite; got {self.flow_logit_mean}")
        low, high = -1.0, 2 / (math.pi - 2)  # where its times are in order, Esser et al. 2024, section 3.1
        if not low <= self.flow_mode_scale <= high:
            raise ValueError(f"flow_mode_scale must lie in [{low:g}, {high:.4g}]; got {self.flow_mode_scale}")

    def _check_names(self) -> None:
        for name, allowed in (
            ("lr_scheduler", LR_SCHEDULERS),
            ("mixed_precision", (None, *PRECISIONS)),
            ("optim", OPTIMIZERS),
            ("prediction_type", PREDICTION_TYPES),
            ("flow_times", FLOW_TIMES),
            ("ddpm_beta_schedule", BETA_SCHEDULES),
            ("report_to", (*TRACKERS, "none")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {list(allowed)}; got {getattr(self, name)!r:.120}")
        if self.fsdp and self.optim == "adamw_bnb_8bit":
            raise ValueError(f"fsdp shards the states of PyTorch's optimizers; got optim={self.optim!r}")
        if self.lr_warmup_steps and self.lr_scheduler == "constant":
            raise ValueError(
                f"lr_warmup_steps={self.lr_warmup_steps} has no effect on lr_scheduler='constant'; "
                "take 'constant_with_warmup'"
            )

    def _check_objective(self) -> None:
        flow, defaults = self.prediction_type == "flow", {item.name: item.default for item in fields(self)}
        for name in OF_DIFFUSION if flow else OF_FLOW:
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"{name} has no meaning for prediction_type={self.prediction_type!r}; got {getattr(self, name)}"
                )
        for name, times in (
            ("flow_logit_mean", "logit_normal"),
            ("flow_logit_std", "logit_normal"),
            ("flow_mode_scale", "mode"),
        ):
            if self.flow_times != times and getattr(self, name) != defaults[name]:
                raise ValueError(f"{name} is of flow_times={times!r}, not of {self.flow_times!r}")
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "rescale_betas_zero_snr needs prediction_type v_prediction or sample: at a timestep of pure noise, "
                "epsilon is the model's own input"
            )
        if flow:
            return
        if self.ddpm_beta_schedule != "squaredcos_cap_v2" and beta_range(self.ddpm_num_steps)[1] >= 1:
            raise ValueError(
                f"ddpm_num_steps must be 21 or more with ddpm_beta_schedule={self.ddpm_beta_schedule!r}, whose betas "
                f"grow as 1000 / ddpm_num_steps; got {self.ddpm_num_steps}"
            )

    @property
    def lr_needs_end(self) -> bool:
        """Whether the learning rate of a step depends on the number of all steps."""
        return self.lr_scheduler not in LR_SCHEDULERS_WITHOUT_END

    def global_batch(self, processes: int) -> int:
        """Images of an optimizer step of so many processes."""
        return self.train_batch_size * self.gradient_accumulation_steps * processes
