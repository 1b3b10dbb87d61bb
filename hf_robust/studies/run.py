"""One experiment from arguments to `results.json`: data, noise, model, training, what was learned and memorised."""

import copy
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, TrainerState, set_seed

# From its module: the top-level name is a stub in older versions where torchvision is missing.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_common.arguments import parse_overrides
from hf_common.environment import hardware, versions
from hf_common.files import save_figure, write_json
from hf_common.processes import from_first_process
from hf_common.run_folder import (
    RESULTS,
    SETTINGS,
    begun,
    check_same_run,
    chosen_checkpoint,
    read_json,
    settings_difference,
)

from .. import LIBRARIES
from ..data.load import ImageSplits, add_noise, load_image_splits
from ..data.memory import ImageTensorDataset, ImageTransform
from ..losses import RobustLoss, get_loss, loss_needs
from ..models import MODELS, load_model, make_image_processor, saved_config
from ..noise.draw import transition_matrix
from ..noise.estimate import estimate_noise_rate, estimate_transition_matrix
from ..noise.labels import realised_matrix, realised_rate
from ..noise.spec import NoiseSpec
from ..reports.results import accuracy_summary, epoch_history, last_row
from ..training.arguments import (
    AUGMENTATIONS,
    DataArguments,
    ExperimentArguments,
    ModelArguments,
    is_file_name,
    run_settings,
)
from ..training.diagnostics import MemorisationCallback, ThroughputCallback, first_array
from ..training.trainer import RobustTrainer, check_hub_repo, complete_checkpoints, refuse_data_parallel
from .publish import FIGURES, draw_figures, push_run


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
    if args.push_to_hub and not args.do_train:
        raise ValueError("push_to_hub=True uploads what was trained; got do_train=False")
    needs, matrix = loss_needs(args.loss), args.transition_matrix
    if args.do_train and (matrix is None) == ("transition_matrix" in needs):
        raise ValueError(
            f"transition_matrix={matrix!r} with loss={args.loss!r}: the losses forward and backward need one, others "
            "take none"
        )
    if matrix is not None and matrix != "true":
        if not is_file_name(matrix):
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


def run_experiment(
    data: DataArguments, model: ModelArguments, args: ExperimentArguments, splits: ImageSplits | None = None
) -> dict:
    """Run one experiment in `args.output_dir` and return what it writes to `results.json`.

    Writes `settings.json` and `results.json`, and if it trains the model (safetensors), its image processor,
    checkpoints, and if it evaluates the figures `curves.png`, `noise.png` and, where wrong labels are known,
    `loss_histograms.png`. Where several processes run, each calls this; the first one decides and writes.

    With `args.push_to_hub` the run is uploaded at the end, see [`push_run`]; what would make that fail is said before
    anything else. A run that is finished already is then uploaded as it is, so that a failed upload is made good by
    the same call.

    Args:
        splits (`ImageSplits`, *optional*): what `load_splits(data)` gives, for callers that run several experiments.

    Raises:
        ValueError: bad arguments, or an output folder that holds another run, a finished one, or other files; nothing
            is overwritten.
        PermissionError, ConnectionError: `args.push_to_hub`, and the token may not, or the Hub can't be reached.
    """
    args = with_trained_loss(model, args)
    check_arguments(data, model, args)
    output_dir = Path(args.output_dir)
    settings = run_settings(data, model, args)
    processes = args.process_index, args.world_size
    if args.push_to_hub:
        from_first_process(lambda: check_hub_repo(args), *processes)
        results = from_first_process(lambda: finished_results(output_dir, settings), *processes)
        if results is not None:
            if args.process_index == 0:
                push_run(args)
            return results
    checkpoint = from_first_process(
        lambda: claim_output_dir(output_dir, settings, args.resume_from_checkpoint), *processes
    )

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
        write_json(output_dir / SETTINGS, settings)

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
        trainer.save_model(_internal_call=True)  # else it is pushed, without its results
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
        "memorisation": {key: value for key, value in last_row(history).items() if key.startswith("train_")},
        "history": history,
        "images_per_second": throughput.images_per_second,  # of this call; None if it trained nothing
        "train_images": len(train) if args.do_train else 0,
        "test_images": len(splits.test),
        "label_names": splits.label_names,
        "parameters": sum(p.numel() for p in network.parameters()),
        "remote_code": network.is_remote_code(),
        "hardware": hardware(args.device),
        "versions": versions(LIBRARIES),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if args.process_index == 0:
        for name, figure in draw_figures([results]).items():
            save_figure(figure, output_dir / FIGURES[name])
        write_json(output_dir / RESULTS, results)  # last: its presence says that the run is finished
    trainer.accelerator.wait_for_everyone()
    if args.push_to_hub and args.process_index == 0:
        push_run(args)
    return results


def finished_results(output_dir: Path, settings: dict) -> dict | None:
    """What the `results.json` of this very run holds; None if it is not finished. A `ValueError` for another run."""
    if not (output_dir / RESULTS).exists() or not (output_dir / SETTINGS).exists():
        return None
    results = read_json(output_dir / RESULTS)
    if difference := settings_difference(settings, results["settings"]):
        raise ValueError(f"output_dir {str(output_dir)!r} holds another run: {difference}; choose another")
    return results


def claim_output_dir(output_dir: Path, settings: dict, resume: str | None = None) -> str | None:
    """The checkpoint to go on from, or None for a start; a `ValueError` unless the folder is free for this run.

    Args:
        output_dir (`Path`): must be new, empty, or hold an unfinished run of these very settings.
        settings (`dict`): what [`run_settings`] gives.
        resume (`str`, *optional*): `"last"` or a checkpoint folder in `output_dir`; needed where checkpoints are.
    """
    started = begun(output_dir)
    if started:
        check_same_run(output_dir, settings)
        if (output_dir / RESULTS).exists():
            raise ValueError(
                f"output_dir {str(output_dir)!r} holds this very run, finished; read {RESULTS}, choose another, or "
                "upload it with --push_to_hub"
            )
    checkpoints = complete_checkpoints(output_dir) if started else []
    chosen = chosen_checkpoint(output_dir, checkpoints, resume, ["last", "true"])
    if chosen is None and resume is not None:
        raise ValueError(
            f"resume_from_checkpoint={resume!r}: {str(output_dir)!r} holds no complete checkpoint; start without it"
        )
    return None if chosen is None else str(chosen)


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
    if not is_file_name(name):
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
