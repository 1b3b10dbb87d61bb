"""What a run is made of, from its arguments: images or texts, network, processor, loss, trainer."""

from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel, set_seed

from hf_common.arguments import parse_overrides

from ..data.labelled import LabelledSamples, LabelledSplits
from ..data.load import ImageSplits, add_noise, load_image_splits
from ..data.load_stream import StreamedSplits, load_stream
from ..data.text import TextSplits, load_text_splits, one_batch
from ..losses import RobustLoss, get_loss, loss_needs
from ..models import MODELS, load_model, saved_config
from ..noise.draw import transition_matrix
from ..noise.labels import realised_matrix
from ..noise.matrix_file import read_transition_matrix
from ..noise.spec import NoiseSpec
from ..training.arguments import DEFAULT_LOSS
from ..training.trainer import RobustTrainer
from .arguments import DataArguments, ExperimentArguments, ModelArguments, matrix_source
from .images import decoding_workers, evaluation_batch, prepared_images
from .streams import prepared_stream
from .texts import make_tokenizer, tokenized_splits


def load_splits(data: DataArguments, train: bool = True, test: bool = True) -> Any:
    """The samples that `data` names, without its noise; of training or test samples one, if not asked.

    [`LabelledSplits`], or [`StreamedSplits`] where they are streamed.
    """
    if data.streaming:
        return load_stream(
            data.dataset,
            data.dataset_config,
            image_column=data.image_column_name,
            label_column=data.asked_label_column,
            test_split=data.test_split_name if test else None,
            max_test_samples=data.max_test_samples,
            buffer=data.shuffle_buffer,
        )
    if data.text_column_name is not None:
        return load_text_splits(
            data.dataset,
            data.dataset_config,
            text_columns=data.text_column_name,
            label_column=data.asked_label_column,
            test_split=data.test_split_name if test else None,
            validation_split=data.validation_split if test else None,
            max_train_samples=data.max_train_samples if train else 1,
            max_test_samples=data.max_test_samples,
        )
    return load_image_splits(
        data.dataset,
        data.dataset_config,
        image_column=data.image_column_name,
        label_column=data.asked_label_column,
        test_split=data.test_split_name if test else None,
        validation_split=data.validation_split if test else None,
        keep_in_memory=data.keep_in_memory,
        skip_corrupt=data.skip_corrupt,
        max_train_samples=data.max_train_samples if train else 1,
        max_test_samples=data.max_test_samples,
    )


def noisy_train(data: DataArguments, splits: LabelledSplits) -> LabelledSamples:
    """The training samples with the noise that `data` names, if any."""
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


def make_trainer(
    data: DataArguments,
    model: ModelArguments,
    args: ExperimentArguments,
    splits: LabelledSplits | StreamedSplits,
    *,
    weights: str | None = None,
    evaluates: bool = True,
    skipped: int = 0,
) -> RobustTrainer:
    """The trainer of a run on `splits`, whose training labels have their noise.

    Args:
        weights: the checkpoint whose weights the network has; by default those that `model` says.
        evaluates: whether it has the test samples.
        skipped: batches of a stream that a resumed training throws away.
    """
    named = model if weights is None else replace(model, model=weights)
    if isinstance(splits, TextSplits):
        return _text_trainer(data, model, named, args, splits, evaluates)
    views = 2 if "views" in loss_needs(args.loss or DEFAULT_LOSS) else 1
    if isinstance(splits, StreamedSplits):
        group = args.world_size * args.per_device_train_batch_size
        images = prepared_stream(
            data, model, splits, views=views, seed=args.seed, group=group, skipped=skipped * group
        )
        # Each process reads the stream by itself and decodes its own images, in place of the first one for all.
        accelerator: Any = args.accelerator_config
        accelerator.dispatch_batches = False
    else:
        assert isinstance(splits, ImageSplits)
        images = prepared_images(data, model, splits, views=views, seed=args.seed)
    if args.dataloader_num_workers == 0 and "dataloader_num_workers" not in args.not_default:
        args.dataloader_num_workers = decoding_workers(images.splits.train)
    if "per_device_eval_batch_size" not in args.not_default:
        most = args.per_device_eval_batch_size
        args.per_device_eval_batch_size = evaluation_batch(images.splits.test, images.side, most)
    set_seed(args.seed)  # the initial weights' seed
    network = network_for(named, splits.label_names, args.do_train, image_size=images.side)
    return RobustTrainer(
        model=network,
        args=args,
        data_collator=images.collator,
        train_dataset=images.splits.train if args.do_train else None,
        eval_dataset=images.splits.test if evaluates else None,
        processing_class=images.processor,
        image_transform=images.transform,
        loss=make_loss(args, network, splits.train),
    )


def _text_trainer(
    data: DataArguments,
    model: ModelArguments,
    named: ModelArguments,
    args: ExperimentArguments,
    splits: TextSplits,
    evaluates: bool,
) -> RobustTrainer:
    tokenizer = make_tokenizer(model)
    set_seed(args.seed)  # the initial weights' seed
    network = network_for(named, splits.label_names, args.do_train, text=True)
    texts = tokenized_splits(data, splits, tokenizer, network)
    return RobustTrainer(
        model=network,
        args=args,
        data_collator=one_batch,
        train_dataset=texts.train if args.do_train else None,
        eval_dataset=texts.test if evaluates else None,
        processing_class=tokenizer,
        loss=make_loss(args, network, splits.train),
    )


def check_last_batch(network: nn.Module, num_images: int, args: ExperimentArguments) -> None:
    """Raise a `ValueError` where batch normalisation would meet a last training batch of one image."""
    batch = args.per_device_train_batch_size
    alone = args.world_size == 1 and num_images % batch == 1 and not args.dataloader_drop_last
    if alone and any(isinstance(module, nn.BatchNorm1d) for module in network.modules()):
        raise ValueError(
            f"per_device_train_batch_size={batch} leaves a last batch of one of the {num_images} training images, "
            "which batch normalisation can't normalise; choose another, or --dataloader_drop_last"
        )


def network_for(
    model: ModelArguments, names: list[str], do_train: bool, *, image_size: int | None = None, text: bool = False
) -> PreTrainedModel:
    """The network that `model` names for the classes; a `ValueError` where it can't be scored on them."""
    overrides = parse_overrides(model.config_overrides)
    if text:  # else a pipeline makes of each class a yes or no by itself, where a model was saved for that
        overrides = {"problem_type": "single_label_classification"} | overrides
    fixed = sorted({"image_size", "num_labels", "id2label", "label2id"} & set(overrides))
    if fixed:
        raise ValueError(f"config_overrides can't set {fixed}, which the data set gives")
    if model.model not in MODELS:
        config: Any = saved_config(model.model, trust_remote_code=model.trust_remote_code)
        own_names = [config.id2label[label] for label in range(config.num_labels)]
        if own_names != names and sorted(own_names) == sorted(names):
            raise ValueError(f"model {model.model!r} has the data set's classes in another order: {own_names}")
        if not do_train and len(own_names) != len(names):
            raise ValueError(f"model {model.model!r} has {len(own_names)} classes, the data set {len(names)}")
    return load_model(
        model.model,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        image_size=image_size,
        trust_remote_code=model.trust_remote_code,
        fresh_head=do_train,
        text=text,
        **overrides,
    )


def make_loss(args: ExperimentArguments, network: PreTrainedModel, train: Any) -> RobustLoss:
    """The loss that `args` names; of a trained network that is only scored, the one that it was trained with."""
    trained_with = network.config.to_dict().get("robust_loss")
    if not args.do_train and trained_with is not None and "loss" not in args.not_default:
        return get_loss(trained_with)  # with its class weights and transition matrix
    matrix = None
    if args.transition_matrix is not None:
        matrix = resolve_transition_matrix(args.transition_matrix, train, network.config.num_labels or 0)
    return get_loss(args.loss or DEFAULT_LOSS, class_weights=args.class_weights, transition_matrix=matrix)


def resolve_transition_matrix(name: str, train: LabelledSamples, num_classes: int) -> np.ndarray:
    """The (K, K) matrix that `--transition_matrix` names: see its help.

    Raises:
        ValueError: no such noise, a file without a matrix, or "true" where the clean labels are unknown.
    """
    source = matrix_source(name)
    if source == "true":
        if train.clean_labels is None:
            raise ValueError(
                "transition_matrix='true' needs clean labels beside the given ones; the data set has none"
            )
        return realised_matrix(train.clean_labels.numpy(), train.labels.numpy(), num_classes)
    if isinstance(source, NoiseSpec):
        return transition_matrix(source, num_classes)
    return read_transition_matrix(source, num_classes)
