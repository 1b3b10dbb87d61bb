"""`RobustTrainer`: the `transformers` Trainer with a robust loss, exact over the accumulation window and processes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
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
from .losses import get_loss
from .vision import EpochShuffleSampler, ImageTensorDataset, ImageTransform, collate_batch


@dataclass
class RobustTrainingArguments(TrainingArguments):
    """`TrainingArguments` with a robust loss; other defaults are the recipe of the papers on CIFAR-10 label noise.

    SGD with momentum 0.9, learning rate 0.01, weight decay 1e-4 on every parameter, cosine schedule, gradient norm
    clipped at 5, batch 128, 120 epochs (Ma et al. 2020 and its successors). `Trainer` steps the cosine schedule at
    each optimizer step where the papers' code steps it at each epoch.

    Args:
        loss (`str`, defaults to `"nce+rce"`): a loss name or weighted sum, see [`get_loss`]. NCE+RCE is, with NFL+RCE,
            the strongest of the losses of Ma et al. 2020 on CIFAR-10.
        optim_args (`str`, *optional*): by default `"momentum=0.9"` if the optimizer is SGD, nothing otherwise.
        decay_bias_and_norm (`bool`, defaults to `True`): decay biases and normalisation weights too, as the papers'
            code does; `False` is the usual rule of `Trainer`.
    """

    loss: str = field(default="nce+rce", metadata={"help": "Loss name or weighted sum: nce+rce, gce(q=0.7), ..."})
    decay_bias_and_norm: bool = field(
        default=True, metadata={"help": "Weight decay on every parameter, biases and normalisation included."}
    )
    optim: str = field(default="sgd", metadata={"help": "The optimizer."})
    optim_args: str | None = field(default=None, metadata={"help": "Default: momentum=0.9 under SGD."})
    learning_rate: float = field(default=0.01, metadata={"help": "The initial learning rate."})
    weight_decay: float = field(default=1e-4, metadata={"help": "Weight decay."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "The scheduler type."})
    max_grad_norm: float = field(default=5.0, metadata={"help": "Maximum gradient norm."})
    num_train_epochs: float = field(default=120, metadata={"help": "Total number of training epochs."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Training batch size per device."})
    # The parent's 8 would make evaluation slow; the result does not depend on it.
    per_device_eval_batch_size: int = field(default=512, metadata={"help": "Evaluation batch size per device."})

    def __post_init__(self):
        get_loss(self.loss)
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
    included (but for batch normalisation, whose statistics are those of each process's micro-batch). Evaluation
    reports accuracy and plain cross-entropy beside the robust loss, all three over the whole data set.

    Args:
        args (`RobustTrainingArguments`).
        image_transform (`ImageTransform`, *optional*): turns the uint8 batches of an [`ImageTensorDataset`] into model
            input on the training device; random only while training.
        compute_metrics: called beside the built-in metrics; its result wins where names are equal. Not combined
            with the built-in ones if `preprocess_logits_for_metrics` is given, which hides the logits from them.

    The other arguments are those of `Trainer`. Raises `FloatingPointError` at the first step with a logit that is not
    finite, naming the step and the last good checkpoint.
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
        self.loss = get_loss(args.loss)
        self.image_transform = image_transform
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

    def _loss_of_outputs(self, outputs, labels, num_items_in_batch=None) -> torch.Tensor:
        if labels is None:
            raise ValueError("the batch has no 'labels': a robust loss needs them; check the data set's column names")
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
        if not torch.isfinite(logits).all():
            raise FloatingPointError(self._not_finite_message())
        if num_items_in_batch is None:
            return self.loss(logits, labels)
        # A window of nothing but ignored labels has no items; its sum is 0.
        items = torch.as_tensor(num_items_in_batch, device=logits.device).clamp(min=1)
        return self.loss(logits, labels, reduction="sum") / items

    def _not_finite_message(self) -> str:
        checkpoint = last_good_checkpoint(self.args.output_dir)
        step = self.state.global_step + self.model.training  # at an evaluation, the step just made
        return (
            f"logits are not finite at step {step} (epoch {self.state.epoch or 0:.2f}) "
            f"with loss {self.args.loss!r}; last good checkpoint: {checkpoint or 'none'}. Try a lower learning_rate."
        )

    def _prepare_inputs(self, inputs: dict) -> dict:
        inputs = super()._prepare_inputs(inputs)
        index = inputs.pop("index", None)
        if self.image_transform is not None:
            draws = {"index": index, "epoch": self._current_epoch()} if self.model.training else {}
            inputs["pixel_values"] = self.image_transform(inputs["pixel_values"], **draws)
        return inputs

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

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix="eval", **kwargs):
        output = super().evaluation_loop(dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        if f"{metric_key_prefix}_cross_entropy" in output.metrics:
            # Trainer averages the losses of batches; where several processes share an uneven last one, that counts
            # some images twice. This is the loss of the very logits that the other metrics are made of.
            logits = torch.as_tensor(first_array(output.predictions)).double()
            loss = self.loss(logits, torch.as_tensor(output.label_ids)).item()
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
