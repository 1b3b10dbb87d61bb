"""`RobustTrainer`: the `transformers` Trainer with a robust loss, exact over the accumulation window and processes."""

import math
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BaseImageProcessor,
    DataCollator,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from .diagnostics import classification_metrics, first_array
from .losses import RobustLoss, get_loss, loss_needs, parse_loss_spec
from .vision import EpochShuffleSampler, ImageTensorDataset, ImageTransform, collate_batch

LOSS_STATE = "loss.safetensors"


def default_weight_decay(loss: str) -> float:
    """The weight decay that was published with a loss: 1e-4, or 0 where the loss has an L1 norm of its own."""
    return 0.0 if "parameters" in loss_needs(loss) else 1e-4


@dataclass
class RobustTrainingArguments(TrainingArguments):
    """`TrainingArguments` with a robust loss; other defaults are the recipe of the papers on CIFAR-10 label noise.

    SGD with momentum 0.9, learning rate 0.01, weight decay 1e-4 on every parameter, cosine schedule, gradient norm
    clipped at 5, batch 128, 120 epochs (Ma et al. 2020 and its successors). `Trainer` steps the cosine schedule at
    each optimizer step where the papers' code steps it at each epoch.

    Args:
        loss (`str`, *optional*): a loss name or weighted sum, see [`get_loss`]. By default `"nce+rce"`, which is, with
            `"nfl+rce"`, the strongest of the losses of Ma et al. 2020 on CIFAR-10.
        class_weights (`list[float]`, *optional*): one weight >= 0 a class; a loss is then the weighted mean over the
            accumulation window and all processes, as `F.cross_entropy` takes it over a batch.
        weight_decay (`float`, *optional*): by default 1e-4, or 0 if `loss` has an L1 norm of the parameters of its own
            (`anl_ce`, `jal_ce`, ...), each as published. With a loss object, say it.
        optim_args (`str`, *optional*): by default `"momentum=0.9"` if the optimizer is SGD, nothing otherwise.
        decay_bias_and_norm (`bool`, defaults to `True`): decay biases and normalisation weights too, as the papers'
            code does; `False` is the usual rule of `Trainer`.
    """

    loss: str | None = field(
        default=None, metadata={"help": "Loss name or weighted sum: gce(q=0.7), 10*nce+0.1*rce, ... Default: nce+rce."}
    )
    class_weights: list[float] | None = field(default=None, metadata={"help": "One weight >= 0 a class."})
    decay_bias_and_norm: bool = field(
        default=True, metadata={"help": "Weight decay on every parameter, biases and normalisation included."}
    )
    optim: str = field(default="sgd", metadata={"help": "The optimizer."})
    optim_args: str | None = field(default=None, metadata={"help": "Default: momentum=0.9 under SGD."})
    learning_rate: float = field(default=0.01, metadata={"help": "The initial learning rate."})
    weight_decay: float | None = field(
        default=None, metadata={"help": "Default: 1e-4; 0 for losses with an L1 norm of their own (anl_*, jal_*)."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "The scheduler type."})
    max_grad_norm: float = field(default=5.0, metadata={"help": "Maximum gradient norm."})
    num_train_epochs: float = field(default=120, metadata={"help": "Total number of training epochs."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Training batch size per device."})
    # The parent's 8 would make evaluation slow; the result does not depend on it.
    per_device_eval_batch_size: int = field(default=512, metadata={"help": "Evaluation batch size per device."})

    def __post_init__(self):
        self.loss = "nce+rce" if self.loss is None else self.loss
        parse_loss_spec(self.loss)
        if self.weight_decay is None:
            self.weight_decay = default_weight_decay(self.loss)
        if self.class_weights is not None:
            RobustLoss("ce", class_weights=self.class_weights)  # raises for weights that can't be
        if self.label_smoothing_factor != 0:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor} can't be combined with loss={self.loss!r}: "
                "Trainer would drop it in silence. Allowed: 0."
            )
        if not self.average_tokens_across_devices:
            raise ValueError(
                "average_tokens_across_devices=False would weigh the labels of a short batch more than others when "
                "several processes train. Allowed: True."
            )
        if self.batch_eval_metrics:
            raise ValueError("batch_eval_metrics=True is not supported: metrics are those of all images. Use False.")
        if self.optim == "sgd" and self.optim_args is None:
            self.optim_args = "momentum=0.9"
        if self.label_names is None:
            # The loss needs the labels even where the model's forward has no such argument, which is Trainer's guide.
            self.label_names = ["labels"]
        super().__post_init__()


class RobustTrainer(Trainer):
    """A [`~transformers.Trainer`] whose training loss is `args.loss`, for any classifier that returns logits (B, K).

    The loss is summed over the batch and divided by the number of labels in the whole accumulation window, over all
    processes, so that batch 64, 4 x 16 accumulated and 2 processes of 32 make the same step, a short last window
    included. Two things are outside that: batch normalisation, whose statistics are those of each process's
    micro-batch, and data sets other than [`ImageTensorDataset`] on several processes, of which accelerate repeats
    samples to fill the last batch. Evaluation reports accuracy and plain cross-entropy beside the robust loss, all
    three over the whole data set.

    What a loss needs beside logits and labels (see [`RobustLoss`]) is supplied: the samples' indices, a second
    augmented view, the learning rate, and the L1 norm of the parameters, which counts once an optimizer step. What it
    remembers is saved with each checkpoint and resumed. The loss, without that, is kept as `robust_loss` in the
    model's config: `get_loss(model.config.robust_loss)`.

    Args:
        args (`RobustTrainingArguments`).
        loss (`RobustLoss`, *optional*): instead of `args.loss` and `args.class_weights`; for a loss that takes more
            than a spec, `get_loss("forward", transition_matrix=T)`.
        image_transform (`ImageTransform`, *optional*): turns the uint8 batches of an [`ImageTensorDataset`] into model
            input on the training device; random only while training.
        compute_metrics: called beside the built-in metrics; its result wins where names are equal. Not combined
            with the built-in ones if `preprocess_logits_for_metrics` is given, which hides the logits from them.

    The other arguments are those of `Trainer`. Raises `FloatingPointError` at the first step with a logit that is not
    finite, naming the step and the last good checkpoint, and `ValueError` before the first step where the training set
    can't give what the loss needs.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: RobustTrainingArguments | None = None,
        data_collator: DataCollator | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class: BaseImageProcessor | PreTrainedTokenizerBase | None = None,
        model_init: Callable[[], PreTrainedModel] | None = None,
        image_transform: ImageTransform | None = None,
        loss: RobustLoss | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        optimizer_cls_and_kwargs: tuple | None = None,
        preprocess_logits_for_metrics: Callable | None = None,
    ):
        if not isinstance(args, RobustTrainingArguments):
            raise TypeError(f"args must be RobustTrainingArguments; got {type(args).__name__}")
        refuse_data_parallel(args)
        makes_batches = any(isinstance(dataset, ImageTensorDataset) for dataset in (train_dataset, eval_dataset))
        if data_collator is None and (makes_batches or image_transform is not None):
            data_collator = collate_batch
        self.loss = get_loss(args.loss, class_weights=args.class_weights) if loss is None else loss
        self.image_transform = image_transform
        self._index = None  # of the batch at hand
        if train_dataset is not None:
            self._check_needs(train_dataset)
        if preprocess_logits_for_metrics is None:
            compute_metrics = _beside_built_in(compute_metrics)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            compute_loss_func=self._loss_of_outputs,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        self._note_loss(self.model)
        if isinstance(self.model, PreTrainedModel):
            self.loss.check_num_classes(self.model.config.num_labels)
        if args.world_size > 1:
            self.loss.set_gather(self._gather_rows)
        self.add_callback(_LossStepCallback(self))

    def _check_needs(self, train_dataset) -> None:
        if self.image_transform is not None and self.image_transform.random and not _has_index(train_dataset):
            raise ValueError(
                "image_transform with crop_padding or horizontal_flip draws by each sample's 'index' in the training "
                "set, a column which train_dataset lacks; with datasets: train.add_column('index', range(len(train)))"
            )
        if "index" in self.loss.needs:
            if not _has_index(train_dataset):
                raise ValueError(
                    f"loss {self.loss.spec!r} needs an 'index' column, each sample's place 0..N-1 in the training "
                    "set, which train_dataset lacks; with datasets: train.add_column('index', range(len(train)))"
                )
        if "views" in self.loss.needs and not (self.image_transform is not None and self.image_transform.random):
            raise ValueError(
                f"loss {self.loss.spec!r} needs two augmented views of each image: give an image_transform with "
                "crop_padding or horizontal_flip"
            )

    def _note_loss(self, model: nn.Module | None) -> None:
        if isinstance(model, PreTrainedModel):
            model.config.robust_loss = self.loss.to_dict()

    def call_model_init(self, trial=None) -> nn.Module:
        model = super().call_model_init(trial)
        self._note_loss(model)
        return model

    def _gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        # Processes may have batches of different size; the padding is dropped again by their numbers of rows.
        counts = self.accelerator.gather(torch.tensor([len(rows)], device=rows.device)).tolist()
        padded = self.accelerator.gather(self.accelerator.pad_across_processes(rows))
        return torch.cat([part[:count] for part, count in zip(padded.chunk(len(counts)), counts, strict=True)])

    def _loss_of_outputs(self, outputs, labels, num_items_in_batch=None) -> torch.Tensor:
        if labels is None:
            raise ValueError("the batch has no 'labels': a robust loss needs them; check the data set's column names")
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
        if not torch.isfinite(logits).all():
            raise FloatingPointError(self._not_finite_message())
        training = self.model.training
        self.loss.train(training)
        extras = {"epoch": self._current_epoch()} if training else {}
        if training and "index" in self.loss.needs:
            extras["index"] = self._index
        if num_items_in_batch is None:
            penalty = self.loss.penalty(self.model.parameters()) if training else 0.0
            return self.loss(logits, labels, **extras) + penalty
        # A window of nothing but ignored labels has no items; its sum is 0.
        items = torch.as_tensor(num_items_in_batch, device=logits.device)
        items = items.masked_fill(items == 0, 1)
        loss = self.loss(logits, labels, reduction="sum", **extras)
        if training and self.loss.l1:
            # Each batch adds its share of the window, so that an optimizer step adds the whole once.
            loss = loss + self.loss.num_items(labels) * self.loss.penalty(self.model.parameters())
        return loss / items

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device):
        if self.loss.class_weights is None or not batch_samples or "labels" not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        weight = sum(self.loss.num_items(batch["labels"].to(device)) for batch in batch_samples)
        return self.accelerator.gather(weight).sum() if self.args.world_size > 1 else weight

    def _not_finite_message(self) -> str:
        checkpoint = last_good_checkpoint(self.args.output_dir)
        step = self.state.global_step + self.model.training  # at an evaluation, the step just made
        return (
            f"logits are not finite at step {step} (epoch {self.state.epoch or 0:.2f}) "
            f"with loss {self.loss.spec!r}; last good checkpoint: {checkpoint or 'none'}. Try a lower learning_rate."
        )

    def _prepare_inputs(self, inputs: dict) -> dict:
        inputs = super()._prepare_inputs(inputs)
        self._index = inputs.pop("index", None)
        if self.image_transform is None:
            return inputs
        images = inputs["pixel_values"]
        if not self.model.training:
            inputs["pixel_values"] = self.image_transform(images)
            return inputs
        draws = {"index": self._index, "epoch": self._current_epoch()}
        pixels = self.image_transform(images, **draws)
        if "views" in self.loss.needs:
            pixels = torch.cat([pixels, self.image_transform(images, **draws, view=1)])
        inputs["pixel_values"] = pixels
        return inputs

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        state = {name: tensor.cpu().contiguous() for name, tensor in self.loss.state_dict().items()}
        if state and self.args.should_save:
            save_file(state, Path(output_dir) / LOSS_STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.load_loss_state(checkpoint)

    def load_loss_state(self, checkpoint: str | Path) -> None:
        """Restore what the loss remembers from a checkpoint folder; a `ValueError` where that holds another's."""
        path = Path(checkpoint) / LOSS_STATE
        # Read into memory: a tensor of `load_file` may be the file's own pages.
        state = {name: tensor.clone() for name, tensor in load_file(path).items()} if path.exists() else {}
        # By name, for `load_state_dict` misses no buffer that has no value yet: ELR would begin anew in silence.
        if set(state) != _state_names(self.loss):
            kept = f"keeps {', '.join(sorted(state))}" if path.exists() else "is missing"
            wanted = ", ".join(sorted(_state_names(self.loss))) or "nothing"
            raise ValueError(
                f"checkpoint {checkpoint} can't be resumed with loss {self.loss.spec!r}, which remembers {wanted}: "
                f"its {LOSS_STATE} {kept}. It was saved with another loss or is incomplete."
            )
        self.loss.load_state_dict(state)

    def _current_epoch(self) -> int:
        # state.epoch is fractional within an epoch, whole at its end, and restored by a resume.
        return math.floor(self.state.epoch or 0)

    def _get_train_sampler(self, train_dataset=None):
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(train_dataset, ImageTensorDataset) or self.args.train_sampling_strategy != "random":
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        # One process takes the short last batch as it is; several must each get as many batches of full size.
        world_size = self.args.world_size
        multiple = world_size * self._train_batch_size if world_size > 1 else 1
        return EpochShuffleSampler(
            len(train_dataset), seed, self._current_epoch, multiple, drop_last=self.args.dataloader_drop_last
        )

    def _get_dataloader(self, dataset, description, batch_size, sampler_fn=None, is_training=False, **kwargs):
        # `dataloader_drop_last` is of training: Trainer would drop images from evaluations too.
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix="eval", **kwargs):
        output = super().evaluation_loop(dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        if f"{metric_key_prefix}_cross_entropy" in output.metrics:
            # Trainer averages the losses of batches; where several processes share an uneven last one, that counts
            # some images twice. This is the loss of the very logits that the other metrics are made of.
            logits = torch.as_tensor(first_array(output.predictions)).double()
            loss = self.loss.eval()(logits, torch.as_tensor(output.label_ids)).item()
            output.metrics[f"{metric_key_prefix}_loss"] = loss
        return output

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "index" not in self._signature_columns:
            self._signature_columns.append("index")

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        if self.args.decay_bias_and_norm:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)


class _LossStepCallback(TrainerCallback):
    def __init__(self, trainer: RobustTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0 and isinstance(self.trainer.train_dataset, Sized):  # else it was just restored
            self.trainer.loss.prepare(len(self.trainer.train_dataset))

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.loss.step(self.trainer.lr_scheduler.get_last_lr()[0])


def _state_names(loss: RobustLoss) -> set[str]:
    """The names in the `state_dict` of a loss that has seen a batch."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in loss.named_modules()
        for name in module._buffers.keys() - module._non_persistent_buffers_set
    }


def _has_index(dataset) -> bool:
    if isinstance(dataset, ImageTensorDataset):
        return True
    if isinstance(dataset, datasets.Dataset):
        return "index" in dataset.column_names
    return isinstance(dataset, Sized) and "index" in dataset[0]


def refuse_data_parallel(args: TrainingArguments) -> None:
    """Raise a `ValueError` where `Trainer` would spread one process's batches over several GPUs."""
    if args.n_gpu > 1:
        raise ValueError(
            f"one process sees {args.n_gpu} GPUs, which would make Trainer use DataParallel, where the loss is not "
            "exact. Start one process a GPU with `accelerate launch`, or set CUDA_VISIBLE_DEVICES to one GPU."
        )


def _beside_built_in(compute_metrics: Callable | None) -> Callable:
    def both(prediction: EvalPrediction) -> dict[str, float]:
        return classification_metrics(prediction) | (compute_metrics(prediction) if compute_metrics else {})

    return both


def complete_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints of `output_dir` that were written to the end, newest first.

    `Trainer` writes its state file last: a checkpoint whose state can't be read was cut off while being written.
    """
    complete = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        try:
            step = TrainerState.load_from_json(str(folder / "trainer_state.json")).global_step
        except (OSError, ValueError, TypeError):  # TypeError: written by a version with other fields
            continue
        complete.append((step, folder))
    return [folder for _, folder in sorted(complete, reverse=True)]


def last_good_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest complete checkpoint of `output_dir` whose weights are all finite; None if there is none."""
    for folder in complete_checkpoints(output_dir):
        files = sorted(folder.glob("*.safetensors"))
        if files and all(tensor.isfinite().all() for file in files for tensor in load_file(file).values()):
            return folder
    return None
