"""`RobustTrainer`: the `transformers` Trainer with a robust loss, exact over the accumulation window and processes."""

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import torch
from huggingface_hub import CommitInfo
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
from transformers.trainer_utils import HubStrategy

from hf_common.environment import hardware, versions
from hf_common.files import replace_text
from hf_common.hub import check_push, push_folder

from .. import LIBRARIES
from ..data.memory import EpochShuffleSampler, ImageTensorDataset, ImageTransform, collate_batch
from ..losses import RobustLoss, get_loss, loss_needs, parse_loss_spec
from ..reports.card import MODEL_FILES, python_arguments, render_card
from ..reports.results import (
    NEUTRAL,
    accuracy_summary,
    changed_arguments,
    epoch_history,
    last_row,
    training_settings,
    without_paths,
)
from .diagnostics import classification_metrics, first_array

LOSS_STATE = "loss.safetensors"


def default_weight_decay(loss: str) -> float:
    """The weight decay that was published with a loss: 1e-4, or 0 where the loss has an L1 norm of its own."""
    return 0.0 if "parameters" in loss_needs(loss) else 1e-4


def default_optim_args(optim: str) -> str | None:
    """The published momentum of 0.9 for SGD; other optimizers have their own defaults."""
    return "momentum=0.9" if optim == "sgd" else None


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
        hub_model_id (`str`, *optional*): `user/name`; needed to push.
        hub_strategy (`str`, defaults to `"end"`): no other is taken, nor `hub_always_push`: nothing is pushed before
            `push_to_hub()` or `save_model()`. What is pushed is one commit of a whole model, and never a checkpoint.
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
    hub_strategy: HubStrategy | str = field(
        default="end", metadata={"help": "When to push to the Hub. Allowed: end; a checkpoint is never pushed."}
    )

    def __post_init__(self):
        self.not_default = changed_arguments(self)  # what was asked for, before anything is filled in
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
        if self.optim_args is None:
            self.optim_args = default_optim_args(self.optim)
        if self.label_names is None:
            # The loss needs the labels even where the model's forward has no such argument, which is Trainer's guide.
            self.label_names = ["labels"]
        refuse_pushed_checkpoints(self)
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

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """On the first process, raise what would make a push fail. The repository itself is made by the push."""
        if self.is_world_process_zero():
            check_hub_repo(self.args, token=token, private=private)
            self.hub_model_id = self.args.hub_model_id

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card,
    ) -> CommitInfo | None:
        """Upload weights, config, code, processor and card to `args.hub_model_id`, as one commit.

        They are saved anew: nothing else of `output_dir` is sent, no checkpoint and nothing pickled. Every process
        has to call this, the first one pushes.

        Args:
            token, revision, private: by default `args.hub_token`, `args.hub_revision`, `args.hub_private_repo`.
            card: arguments of [`~RobustTrainer.create_model_card`].

        Returns:
            `CommitInfo`, on the first process.

        Raises:
            ValueError: `blocking` is False, or what [`check_push`] refuses.
            PermissionError, ConnectionError: as for [`push_folder`].
        """
        if not blocking:
            raise ValueError(
                "blocking=False is not supported: a push that fails later would fail unseen. Allowed: True"
            )
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        with tempfile.TemporaryDirectory() as folder:
            self.save_model(folder, _internal_call=True)
            if not self.is_world_process_zero():
                return None
            self.create_model_card(**card)
            shutil.copyfile(Path(self.args.output_dir) / "README.md", Path(folder) / "README.md")
            return push_folder(
                folder,
                self.args.hub_model_id,
                names=MODEL_FILES,
                token=self.args.hub_token if token is None else token,
                private=self.args.hub_private_repo if private is None else private,
                revision=self.args.hub_revision if revision is None else revision,
                commit_message=commit_message,
            )

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write `README.md` to `output_dir`: what the trainer knows, from its arguments, loss and log history.

        Args:
            language, license: of the card's metadata.
            tags: beside those that the card has anyway.
            model_name: the title. By default the last part of `hub_model_id`.
            finetuned_from: Hub id. By default the one that the model was loaded from.
            tasks: by default `image-classification` with an image processor, `text-classification` with a tokenizer.
            dataset_tags: Hub ids of the training data.
            dataset: their names.
            dataset_args: their configs, such as `symmetric_40`.
        """
        if not self.is_world_process_zero():
            return
        config = self.model.config if isinstance(self.model, PreTrainedModel) else None
        loaded_from = config.name_or_path if config is not None else ""
        if finetuned_from is None and loaded_from and not Path(loaded_from).exists():
            finetuned_from = loaded_from
        if tasks is None and isinstance(self.processing_class, BaseImageProcessor):
            tasks = "image-classification"
        elif tasks is None and isinstance(self.processing_class, PreTrainedTokenizerBase):
            tasks = "text-classification"
        name = model_name or (self.args.hub_model_id or Path(self.args.output_dir).resolve().name).split("/")[-1]
        arguments = {key: value for key, value in self.args.not_default.items() if key not in NEUTRAL}
        card = render_card(
            [self._results(finetuned_from, _first(dataset_tags) or _first(dataset), _first(dataset_args))],
            repo_id=self.args.hub_model_id or name,
            name=name,
            task=_first(tasks),
            reproduce=python_arguments({"loss": self.loss.spec} | without_paths(arguments)),
            metadata={"language": language, "license": license, "datasets": dataset_tags},
            tags=[tags] if isinstance(tags, str) else tags or [],
        )
        replace_text(Path(self.args.output_dir) / "README.md", card)

    def _results(self, base_model: str | None, dataset: str | None, noise: str | None) -> dict:
        """What is known of this training, as `results.json` of an experiment has it."""
        history = epoch_history(self.state.log_history)
        config = self.model.config.to_dict() if isinstance(self.model, PreTrainedModel) else {}
        settings = training_settings(self.args) | {"loss": self.loss.spec, "dataset": dataset, "noise": noise}
        return {
            "settings": without_paths(settings) | {"model": base_model or type(self.model).__name__},
            "accuracy": accuracy_summary(history),
            "noise": {"rate": None},
            "memorisation": {key: value for key, value in last_row(history).items() if key.startswith("train_")},
            "history": history,
            "images_per_second": None,
            "train_images": len(self.train_dataset) if isinstance(self.train_dataset, Sized) else None,
            "test_images": len(self.eval_dataset) if isinstance(self.eval_dataset, Sized) else None,
            "label_names": list(config.get("id2label", {}).values()),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "remote_code": isinstance(self.model, PreTrainedModel) and self.model.is_remote_code(),
            "hardware": hardware(self.args.device),
            "versions": versions(LIBRARIES),
        }


def _first(names: str | list[str] | None) -> str | None:
    return names[0] if isinstance(names, list) and names else names or None


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


def refuse_pushed_checkpoints(args: TrainingArguments) -> None:
    """Raise a `ValueError` for values of the Hub's flags that ask for more than whole models."""
    strategy = HubStrategy(args.hub_strategy)
    if strategy is not HubStrategy.END:
        raise ValueError(
            f"hub_strategy={strategy.value!r} would push checkpoints, which are partly pickled. Allowed: 'end'."
        )
    if args.hub_always_push:
        raise ValueError(
            "hub_always_push=True is about pushes of checkpoints, of which there are none. Allowed: False."
        )


def check_hub_repo(args: TrainingArguments, *, token: str | None = None, private: bool | None = None) -> None:
    """Raise now what would make a push of the model fail later: see [`check_push`]."""
    refuse_pushed_checkpoints(args)  # again: `args.set_push_to_hub` changes them late
    if args.hub_model_id is None:
        raise ValueError("hub_model_id must be of the form user/name to push to the Hub; got None")
    check_push(
        args.hub_model_id,
        names=MODEL_FILES,
        token=args.hub_token if token is None else token,
        private=args.hub_private_repo if private is None else private,
        revision=args.hub_revision,
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
