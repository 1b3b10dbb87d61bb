"""The flags of `hf-dit generate`, checked without the libraries that sample."""

import math
import os
from dataclasses import dataclass, field, fields
from typing import Any

from hf_common.arguments import parse_overrides

from ..studies.axes import DTYPES, FLOW_SCHEDULERS, SCHEDULERS, check_axes, check_sampling_flags

FORMATS = ("png", "parquet", "npz")
CLASS_SAMPLINGS = ("balanced", "drawn")
# Of DiT's sample_ddp.py (Peebles and Xie 2023, arXiv:2212.09748), whose FID of 2.27 is with these; batches of 32 too.
GUIDANCE_SCALE, STEPS, BATCH_SIZE = 1.5, 250, 32


@dataclass
class ImageArguments:
    """Which images there are: an image is a function of these, the sampling and its own number."""

    _argument_group_name = "images"

    model_name_or_path: str = field(metadata={"help": "A folder or Hub id of a pipeline."})
    num_images: int = field(default=50_000, metadata={"help": "How many (FID is by convention of 50,000)."})
    class_labels: list[str] | None = field(
        default=None, metadata={"help": "Ids or names; a number is an id. Default: all classes of the model."}
    )
    class_sampling: str = field(
        default="balanced",
        metadata={
            "help": "balanced: in turn, so that classes differ by one image at most; drawn: independently of each "
            "other, as in the code of DiT and SiT.",
            "choices": list(CLASS_SAMPLINGS),
        },
    )
    class_counts: list[int] | None = field(
        default=None,
        metadata={
            "help": "How often the classes are, one number each, as the images in the training data: labels come in "
            "these proportions. Default: equally often."
        },
    )
    seed: int = field(default=0, metadata={"help": "Of the noise, and of labels that are drawn."})

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise ValueError(f"--num_images must be 1 or more; got {self.num_images}")
        counts = self.class_counts
        if counts is not None and (min(counts) < 0 or sum(counts) == 0):
            raise ValueError(f"--class_counts must be 0 or more each, and not all 0; got {counts!s:.120}")
        if counts is not None and self.class_labels is not None and len(counts) != len(self.class_labels):
            raise ValueError(
                f"--class_counts must be one for each of {len(self.class_labels)} --class_labels; got {len(counts)}"
            )


@dataclass
class SamplerArguments:
    """How each image is sampled."""

    _argument_group_name = "sampling"

    guidance_scale: float | None = field(
        default=None,
        metadata={
            "help": f"1 is without guidance, 0 without classes. Default: {GUIDANCE_SCALE}, that of DiT's FID (1 for a "
            "model that was trained without label dropout)."
        },
    )
    num_inference_steps: int = field(default=STEPS, metadata={"help": "As for DiT's FID."})
    scheduler: str | None = field(
        default=None,
        metadata={
            "help": f"Of {', '.join(SCHEDULERS)}, or a scheduler class of diffusers. A flow takes "
            f"{', '.join(FLOW_SCHEDULERS)}. Default: ddim, for a flow euler. (DiT's FID is with ddpm.)"
        },
    )
    guidance_interval: list[float] | None = field(
        default=None, metadata={"help": "Two training timesteps, low and high: no guidance outside of these."}
    )
    cfg_channels: str = field(
        default="all",
        metadata={"help": "Channels of the noise that are guided: all, or the first n (3: as the paper)."},
    )
    attention: str | None = field(
        default=None, metadata={"help": "A spec as full, na7, na7x5d2, swa64, na7*11,full. Default: the model's own."}
    )
    batch_size: int = field(
        default=BATCH_SIZE, metadata={"help": "Images at once in a process, and in a file until all are there."}
    )
    dtype: str = field(default="float32", metadata={"help": "Of the weights.", "choices": list(DTYPES)})
    use_cpu: bool = field(default=False, metadata={"help": "Sample on the CPU where there is an accelerator too."})

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"--batch_size must be 1 or more; got {self.batch_size}")
        if self.num_inference_steps < 1:
            raise ValueError(f"--num_inference_steps must be 1 or more; got {self.num_inference_steps}")
        if self.guidance_scale is not None and not math.isfinite(self.guidance_scale):
            raise ValueError(f"--guidance_scale must be finite; got {self.guidance_scale}")
        scheduler = "ddim" if self.scheduler is None else self.scheduler
        check_axes([0.0], [1], [None], [scheduler])
        check_sampling_flags(0, self.cfg_channels, self.guidance_interval)


@dataclass
class OutputArguments:
    """In which forms the images are left."""

    _argument_group_name = "output"

    output_dir: str = field(default="runs/generate_dit", metadata={"help": "The folder of these images."})
    format: list[str] = field(
        default_factory=lambda: ["png"],
        metadata={
            "help": "One or more of png (png/000000.png, ...), parquet (a data set with labels) and npz (samples.npz "
            "for ADM's evaluator.py); or none, for scores alone."
        },
    )
    class_folders: bool = field(
        default=False, metadata={"help": "PNG files in a folder for each class, which is what imagefolder takes."}
    )
    images_per_shard: int = field(default=2_500, metadata={"help": "Rows of a Parquet file."})

    def __post_init__(self) -> None:
        if self.format != ["none"] and not (set(self.format) <= set(FORMATS) and len(set(self.format)) > 0):
            raise ValueError(f"--format must be of {', '.join(FORMATS)}, or none alone; got {' '.join(self.format)!r}")
        self.format = [] if self.format == ["none"] else list(dict.fromkeys(self.format))
        if self.class_folders and "png" not in self.format:
            raise ValueError("--class_folders is for --format png")
        if self.images_per_shard < 1:
            raise ValueError(f"--images_per_shard must be 1 or more; got {self.images_per_shard}")


@dataclass
class ScoreArguments:
    """How the images are scored, by a metric of `evaluate`."""

    _argument_group_name = "scores"

    score_metric: str | None = field(
        default=None,
        metadata={"help": "Folder, file or Hub id of a metric of evaluate that takes images (evaluate_metrics/cmmd)."},
    )
    score_config: str | None = field(default=None, metadata={"help": "Its configuration. Default: its own."})
    score_arguments: str | None = field(
        default=None,
        metadata={"help": "What else it is loaded with: name=value,... (encoder=dinov2, encoder=file.py:function)."},
    )
    score_references: str | None = field(
        default=None, metadata={"help": "A folder of real images, or their moments (a file, as the metric saves it)."}
    )
    save_moments: str | None = field(
        default=None, metadata={"help": "Write the moments of the images to this .safetensors file."}
    )

    def __post_init__(self) -> None:
        wanted = self.score_references is not None or self.save_moments is not None
        if (self.score_metric is not None) != wanted:
            raise ValueError("--score_metric goes with --score_references, --save_moments or both, and they with it")
        if self.score_metric is None and (self.score_config is not None or self.score_arguments is not None):
            raise ValueError("--score_config and --score_arguments need a --score_metric")
        if self.score_references is not None and not os.path.exists(self.score_references):
            raise ValueError(f"--score_references: there is no folder or file {self.score_references!r:.120}")
        if self.save_moments is not None and not self.save_moments.endswith(".safetensors"):
            raise ValueError(f"--save_moments must end with .safetensors; got {self.save_moments!r:.120}")
        parse_overrides(self.score_arguments, named="--score_arguments")


@dataclass
class GenerateArguments:
    """All of them; `from_flags` takes them by the names of the flags."""

    images: ImageArguments
    sampler: SamplerArguments
    output: OutputArguments
    scores: ScoreArguments

    def __post_init__(self) -> None:
        check_sampling_flags(self.images.seed, "all", None)
        if not self.output.format and self.scores.score_metric is None:
            raise ValueError("--format none leaves nothing without a --score_metric")

    @classmethod
    def from_flags(cls, **values: Any) -> "GenerateArguments":
        """`from_flags(model_name_or_path="runs/dit", num_images=1000)`; another name is a `TypeError`."""
        groups = (ImageArguments, SamplerArguments, OutputArguments, ScoreArguments)
        names = [{item.name for item in fields(group)} for group in groups]
        if unknown := sorted(values.keys() - set().union(*names)):
            raise TypeError(f"there is no flag {unknown[0]!r}")
        parts = [
            group(**{name: value for name, value in values.items() if name in own})
            for group, own in zip(groups, names, strict=True)
        ]
        return cls(*parts)
