"""The flags that `RobustTrainingArguments` adds to those of `TrainingArguments`, or gives another default.

They stand here, where nothing heavy is imported, for commands to show and check before anything is loaded.
"""

from dataclasses import dataclass, field

from hf_common.flags import dataclass_flags


@dataclass
class LossFlags:
    """What the given labels cost."""

    _argument_group_name = "loss"

    loss: str | None = field(
        default=None, metadata={"help": "Loss name or weighted sum: gce(q=0.7), 10*nce+0.1*rce, ... Default: nce+rce."}
    )
    class_weights: list[float] | None = field(default=None, metadata={"help": "One weight >= 0 a class."})
    decay_bias_and_norm: bool = field(
        default=True, metadata={"help": "Weight decay on every parameter, biases and normalisation included."}
    )


@dataclass
class OptimizerFlags:
    """The papers' recipe."""

    _argument_group_name = "training"

    optim: str = field(default="sgd", metadata={"help": "The optimizer: sgd, adamw_torch, ..."})
    optim_args: str | None = field(default=None, metadata={"help": "Default: momentum=0.9 under SGD."})
    learning_rate: float = field(default=0.01, metadata={"help": "The initial learning rate."})
    weight_decay: float | None = field(
        default=None, metadata={"help": "Default: 1e-4; 0 for losses with an L1 norm of their own (anl_*, jal_*)."}
    )
    lr_scheduler_type: str = field(
        default="cosine", metadata={"help": "The schedule of the learning rate: cosine, linear, constant, ..."}
    )
    max_grad_norm: float = field(default=5.0, metadata={"help": "Maximum gradient norm."})
    num_train_epochs: float = field(default=120, metadata={"help": "Total number of training epochs."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Training batch size per device."})
    # The parent's 8 would make evaluation slow; the result does not depend on it. Commands take fewer large images.
    per_device_eval_batch_size: int = field(default=512, metadata={"help": "Evaluation batch size per device."})


@dataclass
class RobustFlags(OptimizerFlags, LossFlags):
    """All of them."""


def inherited_flags() -> set[str]:
    """The flags of transformers' `TrainingArguments`."""
    return dataclass_flags("transformers.training_args", "TrainingArguments")
