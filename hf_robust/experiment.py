"""One experiment from arguments to `results.json`: data, noise, model, training, what was learned and memorised."""

import json
import platform
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import set_seed

# From its module: the top-level name is a stub in older versions where torchvision is missing.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .data import ImageSplits, add_noise, load_image_splits
from .diagnostics import MemorisationCallback, ThroughputCallback
from .files import write_json
from .losses import get_loss
from .models import MODELS, load_model, make_image_processor
from .noise import NoiseSpec
from .plots import plot_curves, save_figure
from .trainer import RobustTrainer, RobustTrainingArguments, complete_checkpoints
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
            NoiseSpec.parse(self.noise)
        if self.augmentation is None:
            self.augmentation = "none" if self.dataset == "digits" else "crop_flip"
        if self.augmentation not in AUGMENTATIONS:
            raise ValueError(f"augmentation must be one of {list(AUGMENTATIONS)}; got {self.augmentation!r}")

    @property
    def noise_name(self) -> str:
        """What the results call the noise: the one that was added, or else the data set's config."""
        return self.noise or self.dataset_config or "clean"


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
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "'last' for the newest complete checkpoint in output_dir, or a checkpoint folder."},
    )


# The training arguments that make a run what it is. `train_batch_size` beside them is the batch of an optimizer step
# over all processes and accumulation: how it is divided changes nothing.
IDENTITY = (
    "loss seed data_seed learning_rate weight_decay decay_bias_and_norm optim optim_args lr_scheduler_type "
    "lr_scheduler_kwargs warmup_steps max_grad_norm num_train_epochs max_steps bf16 fp16"
).split()


def run_settings(data: DataArguments, model: ModelArguments, args: ExperimentArguments) -> dict:
    """Everything that a result depends on, as JSON values."""
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    settings = {
        **asdict(data),
        **asdict(model),
        **{name: getattr(args, name) for name in IDENTITY},
        "loss": get_loss(args.loss).spec,
        "noise": data.noise_name,
        "train_batch_size": batch,
        "do_train": args.do_train,
    }
    return json.loads(json.dumps(settings, default=str))


def load_splits(data: DataArguments) -> ImageSplits:
    """The images that `data` names, without the noise that it names."""
    return load_image_splits(
        data.dataset,
        data.dataset_config,
        image_column=data.image_column_name,
        label_column=data.label_column_name,
        test_split=data.test_split_name,
        max_train_samples=data.max_train_samples,
        max_test_samples=data.max_test_samples,
    )


def run_experiment(
    data: DataArguments, model: ModelArguments, args: ExperimentArguments, splits: ImageSplits | None = None
) -> dict:
    """Run one experiment in `args.output_dir` and return what it writes to `results.json`.

    Writes `settings.json` and `results.json`, and if it trains the model (safetensors), its image processor,
    checkpoints and `curves.png`.
    Where several processes run, each calls this and the first one writes.

    Args:
        splits (`ImageSplits`, *optional*): what `load_splits(data)` gives, for callers that run several experiments.

    Raises:
        ValueError: bad arguments, or an output folder that holds another run or other files; nothing is overwritten.
    """
    output_dir = Path(args.output_dir)
    settings = run_settings(data, model, args)
    checkpoint = _checkpoint_to_resume(args)
    if args.process_index == 0:
        claim_output_dir(output_dir, settings, resuming=checkpoint is not None)

    splits = load_splits(data) if splits is None else splits
    num_classes = len(splits.label_names)
    train = splits.train
    if data.noise is not None:
        train = add_noise(
            train, data.noise, num_classes=num_classes, seed=data.noise_seed, sampling=data.noise_sampling
        )
    set_seed(args.seed)  # the initial weights' seed
    network = _load_network(model, splits)
    processor = _image_processor(model, train, network)
    trainer = RobustTrainer(
        model=network,
        args=args,
        train_dataset=train,
        eval_dataset=splits.test,
        processing_class=processor,
        image_transform=_image_transform(processor, train, data.augmentation, args.seed),
    )
    if args.do_train:
        _check_last_batch(network, len(train), args)
    if args.process_index == 0:
        write_json(output_dir / "settings.json", settings)

    images_per_second = None
    if args.do_train:
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        throughput = ThroughputCallback(len(train), -(-len(train) // batch))
        trainer.add_callback(throughput)
        if train.clean_labels is not None:
            trainer.add_callback(MemorisationCallback(trainer, train))
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        images_per_second = throughput.images_per_second
        trainer.save_model()
    if args.do_eval and not (args.do_train and args.eval_strategy == "epoch"):
        trainer.evaluate()

    history = epoch_history(trainer.state.log_history)
    results = {
        "settings": settings,
        "accuracy": accuracy_summary(history),
        "noise": noise_summary(train, num_classes),
        "memorisation": {key: value for key, value in history[-1].items() if key.startswith("train_")}
        if history
        else {},
        "history": history,
        "images_per_second": images_per_second,
        "train_images": len(train),
        "test_images": len(splits.test),
        "label_names": splits.label_names,
        "parameters": sum(p.numel() for p in network.parameters()),
        "processes": args.world_size,
        "hardware": hardware(args.device),
        "versions": versions(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if args.process_index == 0:
        if args.do_train and history:
            save_figure(plot_curves(results), output_dir / "curves.png")
        write_json(output_dir / "results.json", results)  # last: its presence says that the run is finished
    trainer.accelerator.wait_for_everyone()
    return results


def claim_output_dir(output_dir: Path, settings: dict, resuming: bool) -> None:
    """Raise a `ValueError` unless `output_dir` is new, empty, or holds an unfinished run of these very settings."""
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"output_dir {str(output_dir)!r} is a file")
    if not output_dir.exists() or not any(output_dir.iterdir()):
        return
    known = output_dir / "settings.json"
    if not known.exists():
        raise ValueError(f"output_dir {str(output_dir)!r} holds files that are no run of this script; choose another")
    before = json.loads(known.read_text())
    if before != settings:
        changed = [
            f"{key}={settings.get(key)!r} (it has {before.get(key)!r})"
            for key in sorted(before | settings)
            if before.get(key) != settings.get(key)
        ]
        raise ValueError(f"output_dir {str(output_dir)!r} holds another run: {', '.join(changed)}; choose another")
    if not resuming and ((output_dir / "results.json").exists() or complete_checkpoints(output_dir)):
        raise ValueError(
            f"output_dir {str(output_dir)!r} holds a run with these settings; go on with "
            "--resume_from_checkpoint last, or choose another"
        )


def _checkpoint_to_resume(args: ExperimentArguments) -> Path | None:
    wanted = args.resume_from_checkpoint
    if wanted is None:
        return None
    if wanted.lower() not in ("last", "true"):
        if not Path(wanted).is_dir():
            raise ValueError(f"resume_from_checkpoint must be 'last' or a checkpoint folder; got {wanted!r}")
        return Path(wanted)
    found = complete_checkpoints(args.output_dir)
    if not found:
        raise ValueError(f"resume_from_checkpoint={wanted!r}: {args.output_dir!r} holds no complete checkpoint")
    return found[0]


def _check_last_batch(network: nn.Module, num_images: int, args: ExperimentArguments) -> None:
    batch = args.per_device_train_batch_size
    alone = args.world_size == 1 and num_images % batch == 1 and not args.dataloader_drop_last
    if alone and any(isinstance(module, nn.BatchNorm1d) for module in network.modules()):
        raise ValueError(
            f"per_device_train_batch_size={batch} leaves a last batch of one of the {num_images} training images, "
            "which batch normalisation can't normalise; choose another, or --dataloader_drop_last"
        )


def _load_network(model: ModelArguments, splits: ImageSplits):
    return load_model(
        model.model,
        num_labels=len(splits.label_names),
        id2label=dict(enumerate(splits.label_names)),
        image_size=splits.train.images.shape[-1],
        trust_remote_code=model.trust_remote_code,
        **_parse_overrides(model.config_overrides),
    )


def _parse_overrides(text: str | None) -> dict:
    """`"batch_norm=false,width=64"` -> values as JSON reads them, or as strings."""
    overrides = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"config_overrides must be name=value,...; got {part!r} in {text!r}")
        try:
            overrides[name.strip()] = json.loads(value.strip().lower())
        except json.JSONDecodeError:
            overrides[name.strip()] = value.strip()
    return overrides


def _image_processor(model: ModelArguments, train: ImageTensorDataset, network):
    """The model's own processor where it brings one; else the training images' statistics and size."""
    if model.model not in MODELS:
        return AutoImageProcessor.from_pretrained(model.model, trust_remote_code=model.trust_remote_code)
    mean, std = train.channel_statistics()
    # A constant channel has no spread to divide by.
    return make_image_processor(mean, [s if s > 0 else 1.0 for s in std], train.images.shape[-1])


def _image_transform(processor, train: ImageTensorDataset, augmentation: str, seed: int) -> ImageTransform:
    size = processor.size.get("height") or processor.size.get("shortest_edge")
    if size is None:
        raise ValueError(f"the model's image processor has an unknown form of size: {processor.size}")
    return ImageTransform(
        processor.image_mean,
        processor.image_std,
        size=None if tuple(train.images.shape[-2:]) == (size, size) else size,
        seed=seed,
        **AUGMENTATIONS[augmentation],
    )


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


def noise_summary(train: ImageTensorDataset, num_classes: int) -> dict:
    """Realised share of wrong labels and counts by (clean, given) class; nothing where the clean ones are unknown."""
    if train.clean_labels is None:
        return {"rate": None}
    pairs = train.clean_labels * num_classes + train.labels
    counts = np.bincount(pairs.numpy(), minlength=num_classes**2).reshape(num_classes, num_classes)
    return {"rate": (train.labels != train.clean_labels).double().mean().item(), "counts": counts.tolist()}


def hardware(device: torch.device) -> str:
    """The device in words: the accelerator's name, or processor and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a result may depend on."""
    names = ("torch", "transformers", "datasets", "accelerate", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
