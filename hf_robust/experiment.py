"""One experiment from arguments to `results.json`: data, noise, model, training, what was learned and memorised."""

import copy
import hashlib
import json
import math
import platform
import re
import time
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import PreTrainedModel, TrainerState, set_seed

# From its module: the top-level name is a stub in older versions where torchvision is missing.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .data import ImageSplits, add_noise, load_image_splits
from .diagnostics import MemorisationCallback, ThroughputCallback, first_array
from .estimate import estimate_noise_rate, estimate_transition_matrix
from .files import write_json
from .losses import RobustLoss, format_loss_spec, get_loss, loss_needs, parse_loss_spec
from .models import MODELS, load_model, make_image_processor, saved_config
from .noise import KINDS, SAMPLINGS, NoiseSpec, realised_matrix, realised_rate, transition_matrix
from .plots import plot_curves, plot_loss_histograms, plot_transition_matrices, save_figure
from .trainer import RobustTrainer, RobustTrainingArguments, complete_checkpoints, refuse_data_parallel
from .vision import ImageTensorDataset, ImageTransform

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
    noise: str | None = field(
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
            self.noise = str(NoiseSpec.parse(self.noise))
        if self.noise_sampling not in SAMPLINGS:
            raise ValueError(f"noise_sampling must be one of {list(SAMPLINGS)}; got {self.noise_sampling!r}")
        if self.noise_contaminated and self.noise_sampling != "quota":
            raise ValueError(
                f"noise_contaminated=True is allowed with noise_sampling='quota' alone; got {self.noise_sampling!r}"
            )
        if self.noise_seed < 0:
            raise ValueError(f"noise_seed must be 0 or more; got {self.noise_seed}")
        if self.augmentation is None:
            self.augmentation = "none" if self.dataset == "digits" else "crop_flip"
        if self.augmentation not in AUGMENTATIONS:
            raise ValueError(f"augmentation must be one of {list(AUGMENTATIONS)}; got {self.augmentation!r}")

    @property
    def noise_name(self) -> str:
        """What the results call the noise: the one that was added, or else the one that the config is named after."""
        config = self.dataset_config or "clean"
        named_after_noise = config.partition("_")[0] in (*KINDS, "human")
        contaminated = "contaminated_" if self.noise_contaminated else ""
        return contaminated + self.noise if self.noise else (config if named_after_noise else "clean")


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
        # What was asked for, before anything is filled in. (A second object with the defaults, to compare with later,
        # is no way: making one resets the state of the processes.)
        self.not_default = {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if getattr(self, item.name)
            != (item.default if item.default_factory is MISSING else item.default_factory())
        }
        if self.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end=True would choose the model by its score on the test split. Allowed: False."
            )
        if not self.do_eval:
            self.eval_strategy = "no"
        super().__post_init__()


# Always part of a run's settings. Any other training argument is if it has not its default, but for those of NEUTRAL,
# which change what is written, shown or fetched and not what is learned.
RECIPE = (
    "loss seed learning_rate weight_decay decay_bias_and_norm optim optim_args lr_scheduler_type max_grad_norm "
    "num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps do_train"
).split()
NEUTRAL = set(
    "output_dir do_predict resume_from_checkpoint log_level log_level_replica log_on_each_node "
    "logging_strategy logging_steps logging_first_step disable_tqdm report_to run_name project trackio_space_id "
    "trackio_bucket_id trackio_static_space_id save_strategy save_steps save_total_limit save_on_each_node "
    "save_only_model enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id hub_strategy "
    "hub_always_push hub_revision per_device_eval_batch_size eval_accumulation_steps dataloader_num_workers "
    "dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
    "dataloader_multiprocessing_context use_cpu local_rank ddp_backend ddp_timeout ddp_bucket_cap_mb "
    "skip_memory_metrics debug include_num_input_tokens_seen".split()
)


def run_settings(data: DataArguments, model: ModelArguments, args: ExperimentArguments) -> dict:
    """Everything that a result depends on, as JSON values. Two runs with equal settings are the same run."""
    others = {name: value for name, value in args.not_default.items() if name not in NEUTRAL and name not in RECIPE}
    if args.transition_matrix is not None and _is_file_name(args.transition_matrix):
        digest = hashlib.sha256(Path(args.transition_matrix).read_bytes()).hexdigest()
        others["transition_matrix"] = f"sha256:{digest}"  # the file may change, or be moved
    settings = {
        **asdict(data),
        "noise": data.noise_name,
        **asdict(model),
        **{name: getattr(args, name) for name in RECIPE},
        "loss": format_loss_spec(parse_loss_spec(args.loss)),
        "processes": args.world_size,
        "other_arguments": others,
    }
    return json.loads(json.dumps(settings, default=str))


def settings_difference(wanted: dict, found: dict) -> str:
    """`"loss='ce' (it has 'nce')"` and so on for every setting in which two runs differ; empty if they are one."""
    return ", ".join(
        f"{key}={wanted.get(key)!r} (it has {found.get(key)!r})"
        for key in sorted(wanted | found)
        if wanted.get(key) != found.get(key)
    )


def load_splits(data: DataArguments, train: bool = True) -> ImageSplits:
    """The images that `data` names, without the noise that it names; of the training images one, if `train` is not."""
    return load_image_splits(
        data.dataset,
        data.dataset_config,
        image_column=data.image_column_name,
        label_column=data.label_column_name,
        test_split=data.test_split_name,
        max_train_samples=data.max_train_samples if train else 1,
        max_test_samples=data.max_test_samples,
    )


def noisy_train(data: DataArguments, splits: ImageSplits) -> ImageTensorDataset:
    """The training images with the noise that `data` names, if any."""
    if data.noise is None:
        return splits.train
    return add_noise(
        splits.train,
        data.noise,
        splits.label_names,
        seed=data.noise_seed,
        sampling=data.noise_sampling,
        contaminated=data.noise_contaminated,
    )


def check_arguments(data: DataArguments, model: ModelArguments, args: ExperimentArguments) -> None:
    """Raise a `ValueError` for what can't be run, as far as it can be told without the data."""
    refuse_data_parallel(args)
    if data.noise_contaminated and (data.noise is None or NoiseSpec.parse(data.noise).kind != "semantic"):
        raise ValueError(f"noise_contaminated=True is allowed with semantic noise alone; got noise={data.noise!r}")
    if not args.do_train and (data.noise is not None or model.model in MODELS):
        raise ValueError(
            "do_train=False scores a trained model on clean labels; "
            f"got model={model.model!r} and noise={data.noise!r}"
        )
    needs, matrix = loss_needs(args.loss), args.transition_matrix
    if args.do_train and (matrix is None) == ("transition_matrix" in needs):
        raise ValueError(
            f"transition_matrix={matrix!r} with loss={args.loss!r}: the losses forward and backward need one, others "
            "take none"
        )
    if matrix is not None and matrix != "true":
        if not _is_file_name(matrix):
            NoiseSpec.parse(matrix)
        elif not Path(matrix).is_file():
            raise ValueError(f"transition_matrix: there is no file {matrix!r}")
    if "views" in needs and args.do_train and not AUGMENTATIONS[data.augmentation]:
        raise ValueError(
            f"loss={args.loss!r} compares two augmented views of an image, augmentation={data.augmentation!r} makes "
            f"none; allowed: {[name for name, steps in AUGMENTATIONS.items() if steps]}"
        )
    if model.model not in MODELS:
        saved_config(model.model, trust_remote_code=model.trust_remote_code)  # a wrong name is said before any work


def with_trained_loss(model: ModelArguments, args: ExperimentArguments) -> ExperimentArguments:
    """The arguments with the loss of the network's training, where it is only scored and no loss was asked for."""
    if args.do_train or "loss" in args.not_default or model.model in MODELS:
        return args
    config = saved_config(model.model, trust_remote_code=model.trust_remote_code)
    trained_with = config.to_dict().get("robust_loss")
    if trained_with is None:
        return args
    args = copy.copy(args)  # `replace` would run TrainingArguments' set-up of devices twice
    args.loss = trained_with["spec"]
    return args


def _is_file_name(matrix: str) -> bool:
    return Path(matrix).suffix in (".json", ".npy")


def run_experiment(
    data: DataArguments, model: ModelArguments, args: ExperimentArguments, splits: ImageSplits | None = None
) -> dict:
    """Run one experiment in `args.output_dir` and return what it writes to `results.json`.

    Writes `settings.json` and `results.json`, and if it trains the model (safetensors), its image processor,
    checkpoints, and if it evaluates the figures `curves.png`, `noise.png` and, where wrong labels are known,
    `loss_histograms.png`. Where several processes run, each calls this; the first one decides and writes.

    Args:
        splits (`ImageSplits`, *optional*): what `load_splits(data)` gives, for callers that run several experiments.

    Raises:
        ValueError: bad arguments, or an output folder that holds another run, a finished one, or other files; nothing
            is overwritten.
    """
    args = with_trained_loss(model, args)
    check_arguments(data, model, args)
    output_dir = Path(args.output_dir)
    settings = run_settings(data, model, args)
    checkpoint = from_first_process(args, lambda: claim_output_dir(output_dir, settings, args.resume_from_checkpoint))

    splits = load_splits(data, train=args.do_train) if splits is None else splits
    train = noisy_train(data, splits)
    state = None if checkpoint is None else TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    # Trainer would make one step more where the last checkpoint was written at the very end.
    trained = state is not None and state.global_step >= state.max_steps
    set_seed(args.seed)  # the initial weights' seed
    network = load_network(replace(model, model=checkpoint) if trained else model, splits, args.do_train)
    processor = load_processor(model, train)
    trainer = RobustTrainer(
        model=network,
        args=args,
        train_dataset=train if args.do_train else None,
        eval_dataset=splits.test,
        processing_class=processor,
        image_transform=image_transform(processor, seed=args.seed, **AUGMENTATIONS[data.augmentation]),
        loss=make_loss(args, network, train),
    )
    if args.do_train:
        check_last_batch(network, len(train), args)
    if args.process_index == 0:
        write_json(output_dir / "settings.json", settings)

    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    throughput = ThroughputCallback(len(train), -(-len(train) // batch))
    memorised = None if train.clean_labels is None else MemorisationCallback(trainer, train)
    if args.do_train:
        trainer.add_callback(throughput)
        if memorised is not None:
            trainer.add_callback(memorised)
        if trained:
            trainer.state = state
            trainer.load_loss_state(checkpoint)
        else:
            trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
    evaluated = {entry["step"] for entry in trainer.state.log_history if "eval_accuracy" in entry}
    if args.do_eval and trainer.state.global_step not in evaluated:
        trainer.evaluate()

    noise = {"rate": None}
    if args.do_train:
        logits = None if memorised is None else memorised.logits
        if logits is None:  # unknown clean labels, or a run that was resumed at its very end
            logits = first_array(trainer.predict(train, metric_key_prefix="train").predictions)
        noise = noise_summary(train, torch.as_tensor(logits).double().softmax(1).numpy())

    history = epoch_history(trainer.state.log_history)
    results = {
        "settings": settings,
        "accuracy": accuracy_summary(history),
        "noise": noise,
        "memorisation": {key: value for row in history[-1:] for key, value in row.items() if key.startswith("train_")},
        "history": history,
        "images_per_second": throughput.images_per_second,  # of this call; None if it trained nothing
        "train_images": len(train) if args.do_train else 0,
        "test_images": len(splits.test),
        "label_names": splits.label_names,
        "parameters": sum(p.numel() for p in network.parameters()),
        "hardware": hardware(args.device),
        "versions": versions(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if args.process_index == 0:
        if args.do_train and history:
            save_figure(plot_curves(results), output_dir / "curves.png")
            save_figure(plot_transition_matrices(results), output_dir / "noise.png")
            if any("loss_histogram" in row for row in history):
                save_figure(plot_loss_histograms(results), output_dir / "loss_histograms.png")
        write_json(output_dir / "results.json", results)  # last: its presence says that the run is finished
    trainer.accelerator.wait_for_everyone()
    return results


def from_first_process(args: ExperimentArguments, decide: Callable[[], Any]) -> Any:
    """What `decide()` gives on the first process, on all; a `ValueError` there is raised on all.

    Files are looked at once, so that no process can see another state of them than the others do.
    """
    answer: list = [None, None]
    if args.process_index == 0:
        try:
            answer[0] = decide()
        except ValueError as error:
            answer[1] = error
    if args.world_size > 1:
        broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def claim_output_dir(output_dir: Path, settings: dict, resume: str | None = None) -> str | None:
    """The checkpoint to go on from, or None for a start; a `ValueError` unless the folder is free for this run.

    Args:
        output_dir (`Path`): must be new, empty, or hold an unfinished run of these very settings.
        settings (`dict`): what [`run_settings`] gives.
        resume (`str`, *optional*): `"last"` or a checkpoint folder in `output_dir`; needed where checkpoints are.
    """
    name = repr(str(output_dir))
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"output_dir {name} is a file")
    # A kill while the first file was being written leaves its temporary name alone.
    started = output_dir.exists() and any(not path.match(".*.tmp") for path in output_dir.iterdir())
    checkpoints = complete_checkpoints(output_dir) if started else []
    if started:
        if not (output_dir / "settings.json").exists():
            raise ValueError(f"output_dir {name} holds files that are no run of this script; choose another")
        difference = settings_difference(settings, json.loads((output_dir / "settings.json").read_text()))
        if difference:
            raise ValueError(f"output_dir {name} holds another run: {difference}; choose another")
        if (output_dir / "results.json").exists():
            raise ValueError(f"output_dir {name} holds this very run, finished; read results.json or choose another")
        if checkpoints and resume is None:
            raise ValueError(f"output_dir {name} holds this run, begun; go on with --resume_from_checkpoint last")
    if resume is None:
        return None
    if resume.lower() in ("last", "true"):
        if not checkpoints:
            raise ValueError(
                f"resume_from_checkpoint={resume!r}: {name} holds no complete checkpoint; start without it"
            )
        return str(checkpoints[0])
    if Path(resume).resolve() not in [checkpoint.resolve() for checkpoint in checkpoints]:
        raise ValueError(
            f"resume_from_checkpoint must be 'last' or one of {[str(c) for c in checkpoints]}; got {resume!r}"
        )
    return resume


def check_last_batch(network: nn.Module, num_images: int, args: ExperimentArguments) -> None:
    """Raise a `ValueError` where batch normalisation would meet a last training batch of one image."""
    batch = args.per_device_train_batch_size
    alone = args.world_size == 1 and num_images % batch == 1 and not args.dataloader_drop_last
    if alone and any(isinstance(module, nn.BatchNorm1d) for module in network.modules()):
        raise ValueError(
            f"per_device_train_batch_size={batch} leaves a last batch of one of the {num_images} training images, "
            "which batch normalisation can't normalise; choose another, or --dataloader_drop_last"
        )


def load_network(model: ModelArguments, splits: ImageSplits, do_train: bool) -> PreTrainedModel:
    """The network that `model` names for the classes of `splits`; a `ValueError` where it can't be scored on them."""
    overrides = parse_overrides(model.config_overrides)
    fixed = sorted({"image_size", "num_labels", "id2label", "label2id"} & set(overrides))
    if fixed:
        raise ValueError(f"config_overrides can't set {fixed}, which the data set gives")
    names, size = splits.label_names, splits.train.images.shape[-1]
    if model.model not in MODELS:
        config = saved_config(model.model, trust_remote_code=model.trust_remote_code)
        own_names = [config.id2label[label] for label in range(config.num_labels)]
        if own_names != names and sorted(own_names) == sorted(names):
            raise ValueError(f"model {model.model!r} has the data set's classes in another order: {own_names}")
        if not do_train and len(own_names) != len(names):
            raise ValueError(f"model {model.model!r} has {len(own_names)} classes, the data set {len(names)}")
    return load_model(
        model.model,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        image_size=size,
        trust_remote_code=model.trust_remote_code,
        **overrides,
    )


def parse_overrides(text: str | None) -> dict:
    """`"batch_norm=false, depths=[2,2]"` -> values as JSON reads them (true and false in any case), or as strings."""
    overrides = {}
    for part in re.split(r",(?![^\[]*\])", text or ""):  # commas outside brackets
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not part.strip():
            continue
        if not equals:
            raise ValueError(f"config_overrides must be name=value,...; got {part!r} in {text!r}")
        try:
            overrides[name] = json.loads(value.lower() if value.lower() in ("true", "false") else value)
        except json.JSONDecodeError:
            overrides[name] = value
    return overrides


def load_processor(model: ModelArguments, train: ImageTensorDataset):
    """The model's own image processor where it brings one; else one of the training images' statistics and size."""
    height, width = train.images.shape[-2:]
    if height != width:
        raise ValueError(f"images must be square; those of the data set have {height}x{width} pixels")
    if model.model not in MODELS:
        return AutoImageProcessor.from_pretrained(model.model, trust_remote_code=model.trust_remote_code)
    mean, std = train.channel_statistics()
    # A constant channel has no spread to divide by.
    return make_image_processor(mean, [s if s > 0 else 1.0 for s in std], width)


def image_transform(processor, **augmentation) -> ImageTransform:
    """What `processor` does to a square RGB image, on whole batches on the device, with `augmentation` before it."""
    steps = processor.to_dict()
    size = steps["size"]
    sides = {size[key] for key in ("height", "width", "shortest_edge") if size.get(key)}
    crop = steps.get("crop_size") if steps.get("do_center_crop") else None
    crop = crop and ({crop["height"], crop["width"]} if isinstance(crop, dict) else {crop})
    filters = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
    known = (
        all(steps.get(step, True) for step in ("do_rescale", "do_normalize", "do_resize"))
        and len(sides) == 1
        and (crop is None or len(crop) == 1)
        and steps.get("resample") in filters
        and math.isclose(steps.get("rescale_factor", 1 / 255), 1 / 255)
    )
    if not known:
        raise ValueError(f"the model's image processor does what can't be done on whole batches here: {steps}")
    return ImageTransform(
        steps["image_mean"],
        steps["image_std"],
        size=sides.pop(),
        center_crop=crop and crop.pop(),
        interpolation=filters[steps["resample"]],
        **augmentation,
    )


def make_loss(args: ExperimentArguments, network: PreTrainedModel, train: ImageTensorDataset) -> RobustLoss:
    """The loss that `args` names; of a trained network that is only scored, the one that it was trained with."""
    trained_with = network.config.to_dict().get("robust_loss")
    if not args.do_train and trained_with is not None and "loss" not in args.not_default:
        return get_loss(trained_with)  # with its class weights and transition matrix
    matrix = args.transition_matrix
    if matrix is not None:
        matrix = resolve_transition_matrix(matrix, train, network.config.num_labels)
    return get_loss(args.loss, class_weights=args.class_weights, transition_matrix=matrix)


def resolve_transition_matrix(name: str, train: ImageTensorDataset, num_classes: int) -> np.ndarray:
    """The (K, K) matrix that `--transition_matrix` names: see its help.

    Raises:
        ValueError: no such noise, a file without a matrix, or "true" where the clean labels are unknown.
    """
    if name == "true":
        if train.clean_labels is None:
            raise ValueError(
                "transition_matrix='true' needs clean labels beside the given ones; the data set has none"
            )
        return realised_matrix(train.clean_labels.numpy(), train.labels.numpy(), num_classes)
    path = Path(name)
    if not _is_file_name(name):
        return transition_matrix(name, num_classes)
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    content = json.loads(path.read_text())
    if isinstance(content, dict):
        noise = content.get("noise")
        content = noise.get("estimated_matrix") if isinstance(noise, dict) else None
    try:
        return np.asarray(content, np.float64).reshape(num_classes, num_classes)
    except (TypeError, ValueError):
        raise ValueError(
            f"transition_matrix: {name!r} holds neither a matrix of {num_classes} classes nor a run's results with one"
        ) from None


def epoch_history(log_history: list[dict]) -> list[dict]:
    """`Trainer`'s log, one entry an evaluation: its epoch, loss, learning rate, test scores and training fits.

    After a resume in mid-epoch, that epoch's `train_loss` is the mean over the steps since the resume.
    """
    names = {
        "loss": "train_loss",
        "learning_rate": "learning_rate",
        "eval_loss": "test_loss",
        "eval_accuracy": "test_accuracy",
        "eval_cross_entropy": "test_cross_entropy",
        "train_clean_accuracy": "train_clean_accuracy",
        "train_given_accuracy": "train_given_accuracy",
        "train_memorised": "train_memorised",
        "train_recovered": "train_recovered",
        "train_separation_auc": "train_separation_auc",
        "loss_histogram": "loss_histogram",
    }
    by_step: dict[int, dict] = {}
    for entry in log_history:
        row = {names[key]: value for key, value in entry.items() if key in names}
        by_step.setdefault(entry.get("step", 0), {"epoch": entry.get("epoch", 0.0)}).update(row)
    return [row for _, row in sorted(by_step.items()) if "test_accuracy" in row]


def accuracy_summary(history: list[dict]) -> dict:
    """Test accuracy of the last epoch, and the best with its epoch (the earliest of equals)."""
    if not history:
        return {}
    best = max(history, key=lambda row: row["test_accuracy"])
    return {"last": history[-1]["test_accuracy"], "best": best["test_accuracy"], "best_epoch": best["epoch"]}


def noise_summary(train: ImageTensorDataset, probabilities: np.ndarray) -> dict:
    """The noise as it is and as predictions for the training images, class probabilities (N, K), tell it.

    `rate` and `matrix`: realised share of wrong labels, and their K x K matrix; None where the clean ones are unknown.
    `estimated_rate`, `estimated_matrix`: by confident learning, see `estimate`. From predictions of images that the
    model was trained on, it misses what the model has memorised.
    """
    given, num_classes = train.labels.numpy(), probabilities.shape[1]
    summary = {
        "rate": None,
        "matrix": None,
        "estimated_rate": estimate_noise_rate(probabilities, given),
        "estimated_matrix": estimate_transition_matrix(probabilities, given).tolist(),
    }
    if train.clean_labels is not None:
        clean = train.clean_labels.numpy()
        summary["rate"] = realised_rate(clean, given)
        summary["matrix"] = realised_matrix(clean, given, num_classes).tolist()
    return summary


def hardware(device: torch.device) -> str:
    """The device in words: the accelerator's name, or processor and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a result may depend on."""
    names = ("torch", "transformers", "datasets", "accelerate", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
