"""The arguments of one experiment, what they must be, and the settings that make it this one."""

import copy
import hashlib
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from hf_common.foreign import first_line, short
from hf_common.run_folder import resume_choice

from ..losses import loss_needs, parse_loss_spec
from ..noise.base import NOISE_VERSION
from ..noise.from_matrix import PREFIX
from ..noise.spec import NoiseSpec
from ..reports.results import changed_arguments, training_settings
from ..training.arguments import DEFAULT_LOSS, RobustTrainingArguments, refuse_data_parallel
from .flags import (
    AUGMENTATIONS,
    LATER_FLAGS,
    NETWORKS,
    DataArguments,
    ExperimentFlags,
    ModelArguments,
    check_numbers,
)


@dataclass
class ExperimentArguments(ExperimentFlags, RobustTrainingArguments):  # type: ignore[misc]  # as its base
    """`RobustTrainingArguments` of a script: train, evaluate, log and save at every epoch."""

    def __post_init__(self):
        self.resume_from_checkpoint = resume_choice(self.resume_from_checkpoint)
        asked = changed_arguments(self)  # before anything is filled in here
        if self.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end=True would choose the model by its score on the test split. Allowed: False."
            )
        if not self.do_eval:
            self.eval_strategy = "no"
        super().__post_init__()
        self.not_default = asked


def given_data(data: DataArguments) -> dict:
    """The flags of the data; of `LATER_FLAGS` those that are given."""
    defaults = {field.name: field.default for field in fields(data)}
    return {name: value for name, value in asdict(data).items() if name not in LATER_FLAGS or value != defaults[name]}


def run_settings(data: DataArguments, model: ModelArguments, args: ExperimentArguments) -> dict:
    """Everything that a result depends on, as JSON values. Two runs with equal settings are the same run."""
    settings = {
        **given_data(data),
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
        return "true"
    path = Path(matrix.removeprefix(PREFIX))
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
    if data.noise_contaminated and (noise is None or NoiseSpec.parse(noise).kind != "semantic"):
        raise ValueError(f"noise_contaminated=True is allowed with semantic noise alone; got noise={noise!r:.120}")
    if not args.do_train and (noise is not None or model.model in NETWORKS):
        raise ValueError(
            f"do_train=False scores a trained model on clean labels; got model={model.model!r:.120} and "
            f"noise={noise!r:.120}"
        )
    if args.push_to_hub and not args.do_train:
        raise ValueError("push_to_hub=True uploads what was trained; got do_train=False")
    needs, matrix = loss_needs(args.loss or DEFAULT_LOSS), args.transition_matrix
    if args.do_train and (matrix is None) == ("transition_matrix" in needs):
        raise ValueError(
            f"transition_matrix={matrix!r:.120} with loss={args.loss!r:.120}: the losses forward and backward need "
            "one, others take none"
        )
    if matrix is not None and isinstance(path := matrix_source(matrix), Path) and not path.is_file():
        raise ValueError(f"transition_matrix: there is no file {matrix!r:.120}")
    if "views" in needs and args.do_train and data.text_column_name:
        raise ValueError(f"loss={args.loss!r:.120} compares two augmented views of an image; texts have none")
    if "views" in needs and args.do_train and data.augmentation in (None, "none"):
        raise ValueError(
            f"loss={args.loss!r:.120} compares two augmented views of an image, augmentation={data.augmentation!r} "
            f"makes none; allowed: {[name for name in AUGMENTATIONS if name != 'none']}"
        )
    if data.streaming:
        _check_stream(needs, args)
    if model.model in NETWORKS and data.text_column_name:
        raise ValueError(
            f"model={model.model!r} takes images; with text_column_name={data.text_column_name!r:.120} give a folder "
            "or Hub id of a model of texts"
        )
    if model.model not in NETWORKS:
        from ..models import saved_config  # AutoModel with it, which other checks need not wait for

        saved_config(model.model, trust_remote_code=model.trust_remote_code)  # a wrong name is said before any work


def _check_stream(needs: Collection[str], args: ExperimentArguments) -> None:
    """Raise a `ValueError` for what a stream can't give: its length, and images that are met again by their number."""
    if args.do_train and args.max_steps <= 0:
        raise ValueError(
            f"max_steps must be 1 or more where images are streamed, of unknown number; got {args.max_steps}"
        )
    if "index" in needs:
        raise ValueError(
            f"loss={args.loss!r:.120} remembers something of each training image, of which a stream does not tell one "
            "from another; allowed without streaming"
        )
    if args.transition_matrix == "true":
        raise ValueError("transition_matrix='true' needs the clean labels of all images; allowed without streaming")


def _check_recipe(args: ExperimentArguments) -> None:
    """Raise a `ValueError` for numbers with which nothing can be trained."""
    if not args.do_train:
        return
    check_numbers(args)
    if args.max_steps == 0 or (args.max_steps < 0 and not 0 < args.num_train_epochs < math.inf):
        raise ValueError(
            f"num_train_epochs must be larger than 0, or max_steps 1 or more; got {args.num_train_epochs} and "
            f"{args.max_steps}"
        )
    if args.save_only_model:
        raise ValueError(
            "save_only_model=True would write checkpoints from which no killed run can go on; the trained model lies "
            "in output_dir by itself. Allowed: False."
        )


def with_trained_loss(model: ModelArguments, args: ExperimentArguments) -> ExperimentArguments:
    """The arguments with the loss of the network's training, where it is only scored and no loss was asked for."""
    if args.do_train or "loss" in args.not_default or model.model in NETWORKS:
        return args
    from ..models import saved_config

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
