"""`RobustTrainer`: the `transformers` Trainer with a robust loss, exact over the accumulation window and processes."""

import functools
import math
from collections.abc import Callable
from typing import Any

import datasets
import torch
from torch import nn
from transformers import (
    BaseImageProcessor,
    DataCollator,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SequenceFeatureExtractor,
    TrainerCallback,
)
from transformers.trainer_utils import HPSearchBackend, TrainOutput

from hf_common.processes import from_first_process

from ..data.memory import collate_batch
from ..data.padded import PaddedSamples
from ..data.transform import ImageTransform
from ..losses import RobustLoss, get_loss
from .arguments import DEFAULT_LOSS, RobustTrainingArguments, refuse_data_parallel
from .checkpoints import (
    SaveAfterEvaluation,
    last_good_checkpoint,
    load_loss_state,
    naming,
    refuse_changed_weights,
    resumable_checkpoint,
    save_loss_state,
    save_progress,
)
from .diagnostics import first_array, with_built_in
from .needs import (
    LossStepCallback,
    base_model,
    check_train_dataset,
    class_indices,
    image_name,
    named_outputs,
    penalty,
    refuse_scattered,
    refuse_text_labels,
    with_index,
)
from .order import needs_padding, train_sampler
from .publishing import PushingTrainer
from .restore import restore_weights

Items = torch.Tensor | int | None


class RobustTrainer(PushingTrainer):
    """A [`~transformers.Trainer`] whose training loss is `args.loss`, for any classifier that returns logits (B, K).

    The loss is summed over the batch and divided by the number of labels in the whole accumulation window, over all
    processes, so that batch 64, 4 x 16 accumulated and 2 processes of 32 make the same step, a short last window
    included, for any map-style data set. Two things are outside that: batch normalisation, whose statistics are those
    of each process's micro-batch, and on several processes data sets without a length and other orders than the
    random one, of which accelerate repeats samples to fill the last batch. Evaluation reports accuracy and plain
    cross-entropy beside the robust loss, all three over the whole data set.

    What a loss needs beside logits and labels (see [`RobustLoss`]) is supplied: the samples' indices, a second
    augmented view, the learning rate, and the L1 norm of the parameters, which counts once an optimizer step. What it
    remembers is saved with each checkpoint and resumed. The loss, without that, is kept as `robust_loss` in the
    model's config: `get_loss(model.config.robust_loss)`.

    Args:
        args (`RobustTrainingArguments`): its `label_names[0]` is the batch's name of the labels, integers of any type;
            -100 is ignored.
        train_dataset, eval_dataset: samples that the collator takes, as for `Trainer`; also pairs `(input, label)` and
            PIL images, which `image_transform` turns into model input.
        loss (`RobustLoss`, *optional*): instead of `args.loss` and `args.class_weights`; for a loss that takes more
            than a spec, `get_loss("forward", transition_matrix=T)`.
        image_transform (`ImageTransform`, *optional*): turns the uint8 batches of [`LabelledImages`] into model
            input on the training device; random only while training.
        compute_metrics: called beside the built-in metrics; its result wins where names are equal. Not combined
            with the built-in ones if `preprocess_logits_for_metrics` is given, which hides the logits from them.

    The other arguments are those of `Trainer`. Raises `FloatingPointError` at the first step with a logit that is not
    finite, naming the step and the last good checkpoint, and `ValueError` before the first step where the training set
    can't give what the loss needs.
    """

    args: RobustTrainingArguments
    model: Any
    _signature_columns: list[str]  # type: ignore[assignment]  # None in Trainer before it is set

    _last_loss = torch.zeros(())  # of the batch before

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: RobustTrainingArguments | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
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
        # As Trainer chooses: only tokenizers and feature extractors bring a collator of their own.
        collates = data_collator is None and not isinstance(
            processing_class, (PreTrainedTokenizerBase, SequenceFeatureExtractor)
        )
        self._loss_of_args = loss is None
        if loss is None:
            args.fill_in()  # which may have been given another loss since they were made
        self.loss = get_loss(args.loss or DEFAULT_LOSS, class_weights=args.class_weights) if loss is None else loss
        self._made_of = args.loss, args.class_weights
        self.image_transform = image_transform
        refuse_text_labels((train_dataset, eval_dataset), data_collator, args.label_names[0])
        self._index: torch.Tensor | None = None  # of the batch at hand
        self._first_window = True
        self._progress: dict | None = None  # what a checkpoint that training goes on from says of its losses
        if train_dataset is not None:
            train_dataset = with_index(train_dataset)
            check_train_dataset(train_dataset, self.loss, image_transform, args)
        if preprocess_logits_for_metrics is None:
            compute_metrics = with_built_in(compute_metrics)
        super().__init__(
            model=model,
            args=args,
            data_collator=collate_batch if collates else data_collator,
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
        self._image_name = image_name(self.model)
        if collates:
            self.data_collator = functools.partial(collate_batch, image_name=self._image_name)
        self._take_loss()
        self.add_callback(LossStepCallback(self))
        self.add_callback(SaveAfterEvaluation())

    def _take_loss(self) -> None:
        """Note the loss in the model, and hold it to the model and the processes."""
        self._taken = self.loss
        self._note_loss(self.model)
        model = base_model(self.model)
        if isinstance(model, PreTrainedModel) and model.config.num_labels is not None:
            self.loss.check_num_classes(model.config.num_labels)
        if self.args.world_size > 1:
            self.loss.set_gather(self._gather_rows)

    def _follow_loss(self) -> None:
        """Take the loss that `args` name by now, or that was set in its place."""
        if self._loss_of_args and self.loss is not self._taken:
            self._loss_of_args = False
        if self._loss_of_args and self._made_of != (self.args.loss, self.args.class_weights):
            self._make_loss()
        elif self.loss is not self._taken:
            if self.train_dataset is not None:
                check_train_dataset(self.train_dataset, self.loss, self.image_transform, self.args)
            self._take_loss()

    def _make_loss(self) -> None:
        """The loss of `args` as they are now."""
        self.args.fill_in()
        self.loss = get_loss(self.args.loss or DEFAULT_LOSS, class_weights=self.args.class_weights)
        self._made_of = self.args.loss, self.args.class_weights
        if self.train_dataset is not None:
            check_train_dataset(self.train_dataset, self.loss, self.image_transform, self.args)
        self._take_loss()

    def _note_loss(self, model: nn.Module | None) -> None:
        if isinstance(inner := base_model(model), PreTrainedModel):
            inner.config.robust_loss = self.loss.to_dict()

    def _hp_search_setup(self, trial: Any) -> None:
        super()._hp_search_setup(trial)
        if self.hp_search_backend is None or trial is None:
            return
        space = self.hp_space(trial) if self.hp_search_backend == HPSearchBackend.OPTUNA else trial
        self.args.derive_anew(space)
        if self._loss_of_args:
            self._make_loss()
        elif "loss" in space:
            raise ValueError("a search over loss needs a trainer that makes its loss: leave out its argument loss")

    def call_model_init(self, trial: Any = None) -> nn.Module:
        model = super().call_model_init(trial)
        self._note_loss(model)
        return model

    def _gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        # Processes may have batches of different size; the padding is dropped again by their numbers of rows.
        counts = self.accelerator.gather(torch.tensor([len(rows)], device=rows.device)).tolist()
        padded = self.accelerator.gather(self.accelerator.pad_across_processes(rows))
        return torch.cat([part[:count] for part, count in zip(padded.chunk(len(counts)), counts, strict=True)])

    def compute_loss(
        self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: Items = None
    ) -> Any:
        name = self.label_names[0]
        if inputs.get(name) is None:
            raise ValueError(
                f"the batch has no {name!r}, which a robust loss needs; it has {sorted(inputs)}. The data set's column"
                " of labels is 'label', or as label_names says"
            )
        inputs = dict(inputs)
        inputs["labels"] = class_indices(inputs.pop(name))
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self._last_loss = loss.detach()
        return (loss, named_outputs(outputs)) if return_outputs else loss

    def _loss_of_outputs(self, outputs: Any, labels: Any, num_items_in_batch: Items = None) -> torch.Tensor:
        logits = named_outputs(outputs)["logits"]
        if not torch.isfinite(logits).all():
            raise FloatingPointError(self._not_finite_message())
        self.loss.check_num_classes(logits.shape[-1])
        training = self.model.training
        self.loss.train(training)
        extras: dict[str, Any] = {"epoch": self._current_epoch()} if training else {}
        if training and "index" in self.loss.needs:
            extras["index"] = self._index
        whole, cut = penalty(self.loss, self.model.parameters()) if training else (0.0, 0.0)
        if num_items_in_batch is None:
            return self.loss(logits, labels, **extras) + whole + cut
        items = torch.as_tensor(num_items_in_batch, device=logits.device)
        items = items.masked_fill(items == 0, 1)  # of a window of nothing but ignored labels, whose sum is 0
        loss = self.loss(logits, labels, reduction="sum", **extras)
        if training and self.loss.l1:
            # Each batch adds its share of the window, so that an optimizer step adds the whole once.
            own = self.loss.num_items(labels)
            loss = loss + own * whole
            if isinstance(cut, torch.Tensor):
                # No one adds up over processes what each shard's owner has; all have a share in it.
                loss = loss + self.accelerator.gather(own.reshape(1)).sum() / self.accelerator.num_processes * cut
        return loss / items

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Items:
        name = self.label_names[0]
        if not batch_samples or batch_samples[0].get(name) is None:
            return super()._get_num_items_in_batch(batch_samples, device)
        batches = [{**batch, "labels": class_indices(batch[name])} for batch in batch_samples]
        if self.loss.class_weights is None:
            return super()._get_num_items_in_batch(batches, device)
        if self._first_window:  # the model has not said yet how many classes there are
            largest = max(int(batch["labels"].max()) for batch in batches)
            if largest >= (given := len(self.loss.class_weights)):
                raise ValueError(
                    f"class_weights must have one row a class: got {given} for {largest + 1} classes or more, since a "
                    f"label is {largest}"
                )
            self._first_window = False
        weight = sum(self.loss.num_items(batch["labels"].to(device)) for batch in batches)
        return self.accelerator.gather(weight).sum() if self.args.world_size > 1 else weight

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if isinstance(labels, torch.Tensor):
            labels = class_indices(labels)
        if isinstance(logits, torch.Tensor) and logits.ndim == 1:  # a tensor of one row, of which Trainer took the row
            logits = logits[None]
        return loss, logits, labels

    def _not_finite_message(self) -> str:
        good = last_good_checkpoint(self.args.output_dir) or "none"
        step = self.state.global_step + self.model.training  # at an evaluation, the step just made
        way = "Its values were NaN before" if self._last_loss.isnan() else "Try a lower learning_rate"
        where = f"step {step} (epoch {self.state.epoch or 0:.2f})"
        return f"logits are not finite at {where} with loss {self.loss.spec!r}; last good checkpoint: {good}. {way}."

    def _prepare_inputs(self, inputs: dict) -> dict:
        inputs = super()._prepare_inputs(inputs)
        self._index = inputs.pop("index", None)
        if self.image_transform is None:
            return inputs
        name = self._image_name
        if name not in inputs:
            raise ValueError(
                f"image_transform needs the images as {name!r}; the batch has {sorted(inputs)}. Rename the data set's "
                "column, or leave image_transform out"
            )
        images = inputs[name]
        if images.ndim == 5:  # (B, V, ...): views that the data set has drawn, one after the other as losses take them
            images = images.transpose(0, 1).flatten(0, 1)
            inputs[name] = self.image_transform(images)
            return inputs
        if not self.model.training:
            inputs[name] = self.image_transform(images)
            return inputs
        if self.image_transform.random and self._index is None:
            raise ValueError("image_transform draws by each sample's 'index', which the batch lacks")
        draws: dict[str, Any] = {"index": self._index, "epoch": self._current_epoch()}
        pixels = self.image_transform(images, **draws)
        if "views" in self.loss.needs:
            pixels = torch.cat([pixels, self.image_transform(images, **draws, view=1)])
        inputs[name] = pixels
        return inputs

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """As `Trainer.train`; `resume_from_checkpoint=True` is the last checkpoint that was written to the end.

        A training that is resumed gives the weights and the record of one that was never stopped, to the last bit on
        the CPU.

        Raises:
            ValueError: before the first step, where there is no such checkpoint, another number of processes wrote it,
                or it does not hold what the model or the loss needs; naming what is missing.
        """
        self._follow_loss()
        refuse_scattered(self.loss, self.is_deepspeed_enabled)
        self._progress = None
        if resume_from_checkpoint:
            sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
            asked, folder, processes = resume_from_checkpoint, self.args.output_dir, self.args.world_size
            resume_from_checkpoint, self._progress = from_first_process(
                lambda: resumable_checkpoint(asked, folder, processes, sharded), self.args.process_index, processes
            )
        return super().train(resume_from_checkpoint or None, trial, ignore_keys_for_eval)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:  # shards, by names, none of which may be missing
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            restore_weights(self.model if model is None else model, resume_from_checkpoint)
            refuse_changed_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            restore_weights(self.model, str(self.state.best_model_checkpoint))
            refuse_changed_weights(str(self.state.best_model_checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        losses = self.accelerator.gather(self._tr_loss.detach().reshape(1)).tolist()
        if self.args.should_save:
            save_loss_state(self.loss, output_dir)
            total, step = self._total_loss_scalar, self._globalstep_last_logged
            save_progress(output_dir, logged_step=step, losses=losses, total=total)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # the first process says next that the checkpoint is complete

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with naming(checkpoint, "state of the random numbers"):
            super()._load_rng_state(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with naming(checkpoint, "state of the optimizer or the scheduler"):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            load_loss_state(self.loss, checkpoint)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # `Trainer` would make one step more where the checkpoint is of the last step, within an epoch.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def go_on_with_losses(self) -> None:
        """With the losses of the checkpoint that training goes on from, which `Trainer` forgets."""
        if self._progress is not None:
            self._tr_loss += self._progress["losses"][self.args.process_index]
            self._total_loss_scalar = self._progress["total"]
            self._globalstep_last_logged = self._progress["logged_step"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._progress is not None and "train_runtime" in logs:
            # The mean over the whole training, as if it was never stopped; the times are of this call.
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, start_time)

    def _finalize_training(self, *args, **kwargs):
        if self.args.world_size > 1:  # Trainer would add the first process's own
            self._tr_loss = self.accelerator.gather(self._tr_loss.reshape(1)).mean()
        output = super()._finalize_training(*args, **kwargs)
        return output._replace(training_loss=output.metrics["train_loss"])

    def _current_epoch(self) -> int:
        # state.epoch is fractional within an epoch, whole at its end, and restored by a resume.
        return math.floor(self.state.epoch or 0)

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        sampler = train_sampler(dataset, self.args, self._train_batch_size, self._current_epoch)
        return super()._get_train_sampler(dataset) if sampler is None else sampler

    def _get_dataloader(  # type: ignore[override]  # what Trainer adds by other names is passed on
        self, dataset, description, batch_size, sampler_fn=None, is_training=False, **kwargs
    ):
        if is_training and needs_padding(dataset, self.args):
            if isinstance(dataset, datasets.Dataset):  # as Trainer does with those alone
                dataset = self._remove_unused_columns(dataset, description=description)
            dataset = PaddedSamples(dataset, self.label_names[0])
        # `dataloader_drop_last` is of training: Trainer would drop images from evaluations too.
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

    def evaluation_loop(self, *args, **kwargs):
        self._follow_loss()
        output: Any = super().evaluation_loop(*args, **kwargs)
        if f"{(prefix := kwargs.get('metric_key_prefix', 'eval'))}_cross_entropy" in output.metrics:
            # Trainer averages the losses of batches; where several processes share an uneven last one, that counts
            # some images twice. This is the loss of the very logits that the other metrics are made of.
            logits = torch.as_tensor(first_array(output.predictions)).double()
            loss = self.loss.eval()(logits, torch.as_tensor(output.label_ids)).item()
            output.metrics[f"{prefix}_loss"] = loss
        return output

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "index" not in self._signature_columns:
            self._signature_columns.append("index")

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        for group in optimizer.param_groups:  # a plain number, as a checkpoint takes, whoever has chosen it
            if "weight_decay" in group:
                group["weight_decay"] = float(group["weight_decay"])
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        if self.args.decay_bias_and_norm:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)
