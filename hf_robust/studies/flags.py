"""The flags of one experiment as dataclasses, without the libraries that it runs on: see `hf_common.flags`."""

import math
from dataclasses import dataclass, field

from ..networks import NETWORKS
from ..noise.base import SAMPLINGS
from ..noise.from_matrix import is_matrix_name
from ..noise.kinds import KINDS
from ..noise.semantic import CONTAMINATED
from ..noise.spec import NoiseSpec, spec_patterns
from ..training.flags import RobustFlags

WHEN = ("no", "steps", "epoch")
AUGMENTATIONS = {
    "none": {},
    "crop": {"crop_padding": 4},
    "crop_flip": {"crop_padding": 4, "horizontal_flip": True},
    "random_resized_crop": {},
    "random_resized_crop_draft": {},
}
RESIZED_CROP = "random_resized_crop"  # drawn from each image before it is resized
DRAFTED_CROP = "random_resized_crop_draft"  # of JPEG files, at a lower scale where it is large enough: faster
RESIZED_CROPS = (RESIZED_CROP, DRAFTED_CROP)
# Flags that came after results without them had been written; they are part of a run's settings where they are given.
LATER_FLAGS = (
    "resolution", "keep_in_memory", "validation_split", "skip_corrupt", "streaming", "shuffle_buffer",
    "text_column_name", "max_seq_length",
)  # fmt: skip


# Flags of one run that a sweep replaces, and by what.
REPLACED_FLAGS = {
    "loss": "--losses",
    "noise": "--noises",
    "model": "--models",
    "seed": "--seeds",
    "noise_seed": "--seeds",
    "resume_from_checkpoint": "the same command again",
}


@dataclass
class DataArguments:
    """Which images or texts, and which labels are made wrong."""

    _argument_group_name = "images and labels"

    dataset: str = field(
        default="digits",
        metadata={"help": "Hub id, folder, table of image paths or texts, or 'digits'."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Config of the data set, e.g. symmetric_40."})
    image_column_name: str | None = field(default=None, metadata={"help": "Default: the only image column."})
    text_column_name: list[str] | None = field(
        default=None,
        metadata={
            "help": "Texts in place of images: their column, or the two of pairs.",
            "aliases": ["--text_column"],
        },
    )
    label_column_name: str | None = field(
        default=None, metadata={"help": "Column of the given labels. Default: label."}
    )
    test_split_name: str = field(default="test", metadata={"help": "Split with clean labels to score on."})
    validation_split: float | None = field(
        default=None, metadata={"help": "Score on this share of the training images."}
    )
    resolution: int | None = field(
        default=None,
        metadata={"help": "Side of the images. Default: as the model's processor, or their own."},
    )
    keep_in_memory: bool | None = field(
        default=None,
        metadata={"help": "Decode all at once. Default: if they have one size and fit."},
    )
    skip_corrupt: bool = field(default=False, metadata={"help": "Leave out images that cannot be read."})
    max_seq_length: int | None = field(
        default=None, metadata={"help": "Tokens of a text. Default: the tokenizer's limit, at most the model's."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read training images as they come; with --max_steps."})
    shuffle_buffer: int = field(default=1000, metadata={"help": "Streamed images that the next one is drawn from."})
    noise: NoiseSpec | str | None = field(  # read once: from then on a NoiseSpec
        default=None,
        metadata={
            "help": f"Put on clean labels, RR in percent: {spec_patterns()}.",
        },
    )
    noise_seed: int = field(default=0, metadata={"help": "Seed of the noise."})
    noise_sampling: str = field(
        default="quota", metadata={"help": "quota: exact in each class; bernoulli: each by itself."}
    )
    noise_contaminated: bool = field(
        default=False,
        metadata={"help": "semantic noise as some codes have it: flips flip back."},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Keep the first so many training images."})
    max_test_samples: int | None = field(default=None, metadata={"help": "Keep the first so many test images."})
    augmentation: str | None = field(
        default=None,
        metadata={"help": "none, crop, crop_flip, random_resized_crop[_draft]. Default: as fits the images."},
    )

    def __post_init__(self):
        if self.noise is not None:
            try:
                self.noise = NoiseSpec.parse(self.noise)
            except (ValueError, FileNotFoundError) as error:
                raise ValueError(f"noise: {str(error).removeprefix('spec: ')}") from None
        if self.noise_sampling not in SAMPLINGS:
            raise ValueError(f"noise_sampling must be one of {list(SAMPLINGS)}; got {self.noise_sampling!r:.120}")
        if self.noise_contaminated and self.noise_sampling != "quota":
            raise ValueError(
                f"noise_contaminated=True is allowed with noise_sampling='quota' alone; got {self.noise_sampling!r}"
            )
        if self.noise_seed < 0:
            raise ValueError(f"noise_seed must be 0 or more; got {self.noise_seed}")
        self.asked_label_column = self.label_column_name
        self.label_column_name = self.label_column_name or "label"
        self._check_text()
        if self.augmentation is None:
            usual = "crop_flip" if self.resolution is None else RESIZED_CROP
            usual = "none" if self.streaming and self.resolution is None else usual
            self.augmentation = "none" if self.dataset == "digits" or self.text_column_name else usual
        if self.resolution is not None and self.resolution < 1:
            raise ValueError(f"resolution must be 1 or more; got {self.resolution}")
        if self.validation_split is not None and not 0 < self.validation_split < 1:
            raise ValueError(f"validation_split must be a share in (0, 1); got {self.validation_split}")
        if self.augmentation not in AUGMENTATIONS:
            raise ValueError(f"augmentation must be one of {list(AUGMENTATIONS)}; got {self.augmentation!r:.120}")
        if self.streaming:
            self._check_stream()

    def _check_stream(self) -> None:
        """A `ValueError` for what needs all training images at once."""
        if self.shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer must be 1 or more; got {self.shuffle_buffer}")
        if self.text_column_name:
            raise ValueError("streaming=True is for images; texts are read at once: leave it out")
        for name in ("noise", "validation_split", "max_train_samples", "keep_in_memory", "skip_corrupt"):
            if (value := getattr(self, name)) not in (None, False):
                raise ValueError(
                    f"{name}={str(value)!r:.80} needs all training images beforehand; allowed without streaming"
                )
        if self.augmentation not in ("none", *RESIZED_CROPS):
            raise ValueError(
                f"augmentation must be none or {' or '.join(RESIZED_CROPS)} where images are streamed; got "
                f"{self.augmentation!r}"
            )
        if self.dataset == "digits":
            raise ValueError("dataset='digits' is not streamed: it lies in memory")

    def _check_text(self) -> None:
        """Raise a `ValueError` for what texts have not, or images."""
        if self.max_seq_length is not None and self.max_seq_length < 1:
            raise ValueError(f"max_seq_length must be 1 or more; got {self.max_seq_length}")
        if self.text_column_name is None:
            if self.max_seq_length is not None:
                raise ValueError(f"max_seq_length={self.max_seq_length} is of texts; text_column_name says which")
            return
        columns = self.text_column_name
        if len(columns) not in (1, 2) or len(set(columns)) < len(columns):
            raise ValueError(f"text_column_name must be one column or two; got {columns!r:.120}")
        if self.dataset == "digits":
            raise ValueError("dataset='digits' are images; text_column_name needs a data set of texts")
        for name in ("augmentation", "resolution", "image_column_name", "keep_in_memory", "skip_corrupt"):
            if (value := getattr(self, name)) not in (None, False, "none"):
                raise ValueError(f"{name}={value!r:.80} is of images; text_column_name={columns!r:.80} asks for texts")
        if self.keep_in_memory is False:
            raise ValueError("keep_in_memory=False is of images; texts are kept as they are")
        if isinstance(self.noise, NoiseSpec) and self.noise.noise.needs_images:
            raise ValueError(f"noise={str(self.noise)!r} looks at the pixels of images; texts have none")

    @property
    def noise_name(self) -> str:
        """What the results call the noise: the one that was added, or else the one that the config is named after."""
        if self.noise is not None:
            return CONTAMINATED * self.noise_contaminated + str(self.noise)
        return self.dataset_config if self.dataset_config is not None and self.names_noise() else "clean"

    def names_noise(self) -> bool:
        """Whether the config is named after a noise."""
        kind = (self.dataset_config or "clean").partition("_")[0]
        return (kind in KINDS and kind != "clean") or is_matrix_name(self.dataset_config or "")


@dataclass
class ModelArguments:
    """Which network."""

    _argument_group_name = "network"

    model: str = field(
        default="cnn_small",
        metadata={"help": f"One of {', '.join(NETWORKS)}, or a folder or Hub id of a classifier of images or texts."},
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "Fields of the model config, e.g. batch_norm=false."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code of a model from the Hub."})


@dataclass
class MatrixFlags:
    """What two of the losses need."""

    _argument_group_name = "loss"

    transition_matrix: str | None = field(
        default=None,
        metadata={
            "help": "For forward and backward: a noise, true (by the clean labels), .npy, .json, or a run's "
            "results.json, whose estimate is taken."
        },
    )


@dataclass
class RunFlags:
    """What is done, and when what is written."""

    _argument_group_name = "run"

    output_dir: str = field(default="runs/train_robust", metadata={"help": "Where everything is written."})
    do_train: bool = field(default=True, metadata={"help": "Train."})
    do_eval: bool = field(default=True, metadata={"help": "Score on the clean test split."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate.", "choices": list(WHEN)})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log.", "choices": list(WHEN)})
    save_strategy: str = field(
        default="epoch", metadata={"help": "When to save a checkpoint.", "choices": [*WHEN, "best"]}
    )
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints kept; one is enough to resume."})
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "last: output_dir's newest complete checkpoint; or a folder there."},
    )
    # Batches are small uint8 tensors: pinning costs more than it saves, and warns where there is no accelerator.
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Pin memory in data loaders."})


@dataclass
class HubFlags:
    """Whether and where the finished run is published."""

    _argument_group_name = "Hub"

    push_to_hub: bool = field(
        default=False,
        metadata={"help": "Upload the run to --hub_model_id when it is finished, or was before."},
    )
    hub_model_id: str | None = field(default=None, metadata={"help": "user/name of the model on the Hub."})
    hub_private_repo: bool | None = field(
        default=None,
        metadata={"help": "Private or public; as one that is there already."},
    )
    hub_revision: str | None = field(
        default=None, metadata={"help": "Branch of the repository, made if need be. Default: main."}
    )


@dataclass
class ExperimentFlags(HubFlags, RunFlags, MatrixFlags, RobustFlags):
    """All flags of an experiment that `TrainingArguments` has not, or with another default."""


def check_numbers(flags: ExperimentFlags) -> None:
    """Raise a `ValueError` for numbers of the recipe with which nothing can be trained."""
    if not flags.do_train:
        return
    if flags.per_device_train_batch_size < 1:
        raise ValueError(f"per_device_train_batch_size must be 1 or more; got {flags.per_device_train_batch_size}")
    for name in ("learning_rate", "weight_decay", "max_grad_norm"):
        value = getattr(flags, name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a finite number of 0 or more; got {value}")
