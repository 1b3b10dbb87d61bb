"""The arguments of one experiment, as dataclasses for `HfArgumentParser`, and the settings that make it this one."""

import copy
import hashlib
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from hf_common.foreign import first_line, short

from ..losses import loss_needs, parse_loss_spec
from ..models import MODELS, saved_config
from ..noise.base import NOISE_VERSION, SAMPLINGS
from ..noise.kinds import KINDS
from ..noise.semantic import CONTAMINATED
from ..noise.spec import NoiseSpec
from ..reports.results import changed_arguments, training_settings
from ..training.arguments import RobustTrainingArguments, refuse_data_parallel

AUGMENTATIONS = {
    "none": {},
    "crop": {"crop_padding": 4},
    "crop_flip": {"crop_padding": 4, "horizontal_flip": True},
}


@dataclass
class DataArguments:
    """Which images, and which labels are made wrong."""

    dataset: str = field(
        default="digits",
        metadata={"help": "Hub id, folder, or 'digits' (embedded, no download)."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Config of the data set, e.g. symmetric_40."})
    image_column_name: str | None = field(default=None, metadata={"help": "Default: the only image column."})
    label_column_name: str = field(default="label", metadata={"help": "Column of the given labels."})
    test_split_name: str = field(default="test", metadata={"help": "Split with clean labels to score on."})
    noise: NoiseSpec | str | None = field(  # read once: from then on a NoiseSpec
        default=None,
        metadata={
            "help": "Noise put on clean training labels: symmetric_40, asymmetric_30, semantic_40, instance_20."
        },
    )
    noise_seed: int = field(default=0, metadata={"help": "Seed of the noise."})
    noise_sampling: str = field(
        default="quota", metadata={"help": "quota: the exact rate in each class; bernoulli: each image by itself."}
    )
    noise_contaminated: bool = field(
        default=False,
        metadata={
            "help": "semantic noise as the code of several papers makes it: later classes flip earlier flips back."
        },
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Keep the first so many training images."})
    max_test_samples: int | None = field(default=None, metadata={"help": "Keep the first so many test images."})
    augmentation: str | None = field(
        default=None,
        metadata={
            "help": f"One of {', '.join(AUGMENTATIONS)}. Default: crop_flip, as in the papers on CIFAR; none for "
            "digits, whose mirror images are no digits."
        },
    )

    def __post_init__(self):
        if self.noise is not None:
            self.noise = NoiseSpec.parse(self.noise)
        if self.noise_sampling not in SAMPLINGS:
            raise ValueError(f"noise_sampling must be one of {list(SAMPLINGS)}; got {self.noise_sampling!r:.120}")
        if self.noise_contaminated and self.noise_sampling != "quota":
            raise ValueError(
                f"noise_contaminated=True is allowed with noise_sampling='quota' alone; got {self.noise_sampling!r}"
            )
        if self.noise_seed < 0:
            raise ValueError(f"noise_seed must be 0 or more; got {self.noise_seed}")
        if self.augmentation is None:
            self.augmentation = "none" if self.dataset == "digits" else "crop_flip"
        if self.augmentation not in AUGMENTATIONS:
            raise ValueError(f"augmentation must be one of {list(AUGMENTATIONS)}; got {self.augmentation!r:.120}")

    @property
    def noise_name(self) -> str:
        """What the results call the noise: the one that was added, or else the one that the config is named after."""
        if self.noise is not None:
            return CONTAMINATED * self.noise_contaminated + str(self.noise)
        return self.dataset_config if self.names_noise() else "clean"

    def names_noise(self) -> bool:
        """Whether the config is named after a noise."""
        kind = (self.dataset_config or "clean").partition("_")[0]
        return kind in KINDS and kind != "clean"


@dataclass
class ModelArguments:
    """Which network."""

    model: str = field(
        default="cnn_small",
        metadata={"help": f"One of {', '.join(MODELS)}, or a folder or Hub id of an image classifier."},
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "Fields of the model config, e.g. batch_norm=false."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code of a model from the Hub."})


@dataclass
class ExperimentArguments(RobustTrainingArguments):
    """`RobustTrainingArguments` of a script: train, evaluate, log and save at every epoch."""

    output_dir: str | None = field(default="runs/train_robust", metadata={"help": "Where everything is written."})
    do_train: bool = field(default=True, metadata={"help": "Train."})
    do_eval: bool = field(default=True, metadata={"help": "Score on the clean test split."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint."})
    # Batches are small uint8 tensors: pinning costs more than it saves, and warns where there is no accelerator.
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Pin memory in data loaders."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints kept; one is enough to resume."})
    push_to_hub: bool = field(
        default=False,
        metadata={
            "help": "Upload the finished run to --hub_model_id as one commit: model, code, image processor, results, "
            "figures, card. A run that is finished already is uploaded as it is."
        },
    )
    hub_model_id: str | None = field(default=None, metadata={"help": "user/name of the model on the Hub."})
    hub_private_repo: bool | None = field(
        default=None,
        metadata={
            "help": "Make the repository a private one, or a public one; one that is there already has to agree."
        },
    )
    hub_revision: str | None = field(
        default=None, metadata={"help": "Branch of the repository, made if need be. Default: main."}
    )
    transition_matrix: str | None = field(
        default=None,
        metadata={
            "help": "For the losses forward and backward: a noise (symmetric_40), 'true' (from the clean labels), a "
            ".npy or .json file, or the results.json of a run, whose estimate is taken."
        },
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "'last' for the newest complete checkpoint in output_dir, or a checkpoint folder in it."},
    )

    def __post_init__(self):
        asked = changed_arguments(self)  # before anything is filled in here
        if self.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end=True would choose the model by its score on the test split. Allowed: False."
            )
        if not self.do_eval:
            self.eval_strategy = "no"
        super().__post_init__()
        self.not_default = asked


def run_settings(data: DataArguments, model: ModelArguments, args: ExperimentArguments) -> dict:
    """Everything that a result depends on, as JSON values. Two runs with equal settings are the same run."""
    settings = {
        **asdict(data),
        "noise": data.noise_name,
        "noise_version": NOISE_VERSION,
        **asdict(model),
        **training_settings(args),
    }
    if args.transition_matrix is not None and isinstance(path := matrix_source(args.transition_matrix), Path):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        settings["other_arguments"]["transition_matrix"] = f"sha256:{digest}"  # the file may change, or be moved
    return settings


def matrix_source(matrix: str) -> Literal["true"] | Path | NoiseSpec:
    """What `transition_matrix` names: the clean labels, a file, or a noise. A `ValueError` if it is none of these."""
    if matrix == "true":
        return matrix
    path = Path(matrix)
    return path if path.suffix in (".json", ".npy") else NoiseSpec.parse(matrix)


def check_arguments(data: DataArguments, model: ModelArguments, args: ExperimentArguments) -> None:
    """Raise a `ValueError` for what can't be run, as far as it can be told without the data."""
    refuse_data_parallel(args)
    noise = None if data.noise is None else str(data.noise)
    if noise is not None and data.dataset_config is not None and data.names_noise():
        raise ValueError(
            f"noise={noise!r:.120} with dataset_config={data.dataset_config!r:.120}, whose labels are noisy by its "
            "name: noise on noise has neither rate. Take the clean config, or leave the noise out"
        )
    _check_recipe(args)
    if data.noise_contaminated and (data.noise is None or data.noise.kind != "semantic"):
        raise ValueError(f"noise_contaminated=True is allowed with semantic noise alone; got noise={noise!r:.120}")
    if not args.do_train and (noise is not None or model.model in MODELS):
        raise ValueError(
            f"do_train=False scores a trained model on clean labels; got model={model.model!r:.120} and "
            f"noise={noise!r:.120}"
        )
    if args.push_to_hub and not args.do_train:
        raise ValueError("push_to_hub=True uploads what was trained; got do_train=False")
    needs, matrix = loss_needs(args.loss), args.transition_matrix
    if args.do_train and (matrix is None) == ("transition_matrix" in needs):
        raise ValueError(
            f"transition_matrix={matrix!r:.120} with loss={args.loss!r:.120}: the losses forward and backward need "
            "one, others take none"
        )
    if matrix is not None and isinstance(path := matrix_source(matrix), Path) and not path.is_file():
        raise ValueError(f"transition_matrix: there is no file {matrix!r:.120}")
    if "views" in needs and args.do_train and not AUGMENTATIONS[data.augmentation]:
        raise ValueError(
            f"loss={args.loss!r:.120} compares two augmented views of an image, augmentation={data.augmentation!r} "
            f"makes none; allowed: {[name for name, steps in AUGMENTATIONS.items() if steps]}"
        )
    if model.model not in MODELS:
        saved_config(model.model, trust_remote_code=model.trust_remote_code)  # a wrong name is said before any work


def _check_recipe(args: ExperimentArguments) -> None:
    """Raise a `ValueError` for numbers with which nothing can be trained."""
    if not args.do_train:
        return
    if args.per_device_train_batch_size < 1:
        raise ValueError(f"per_device_train_batch_size must be 1 or more; got {args.per_device_train_batch_size}")
    if args.max_steps == 0 or (args.max_steps < 0 and not 0 < args.num_train_epochs < math.inf):
        raise ValueError(
            f"num_train_epochs must be larger than 0, or max_steps 1 or more; got {args.num_train_epochs} and "
            f"{args.max_steps}"
        )
    for name in ("learning_rate", "weight_decay", "max_grad_norm"):
        value = getattr(args, name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a finite number of 0 or more; got {value}")
    if args.save_only_model:
        raise ValueError(
            "save_only_model=True would write checkpoints from which no killed run can go on; the trained model lies "
            "in output_dir by itself. Allowed: False."
        )


def with_trained_loss(model: ModelArguments, args: ExperimentArguments) -> ExperimentArguments:
    """The arguments with the loss of the network's training, where it is only scored and no loss was asked for."""
    if args.do_train or "loss" in args.not_default or model.model in MODELS:
        return args
    config = saved_config(model.model, trust_remote_code=model.trust_remote_code)
    trained_with = config.to_dict().get("robust_loss")
    if trained_with is None:
        return args
    args = copy.copy(args)  # `replace` would run TrainingArguments' set-up of devices twice
    try:
        args.loss = trained_with["spec"]
        parse_loss_spec(args.loss)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"model {short(repr(model.model), 120)}: robust_loss of its config is {short(repr(trained_with), 80)}, "
            f"which is no loss: {short(first_line(error), 80)}"
        ) from None
    return args
