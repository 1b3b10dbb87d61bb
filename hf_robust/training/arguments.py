"""`RobustTrainingArguments`: those of `transformers` with a loss, and the papers' recipe as defaults."""

from collections.abc import Container
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from ..losses import RobustLoss, loss_needs, parse_loss_spec
from ..reports.results import changed_arguments
from .flags import RobustFlags


def default_weight_decay(loss: str) -> float:
    """The weight decay that was published with a loss: 1e-4, or 0 where the loss has an L1 norm of its own."""
    return 0.0 if "parameters" in loss_needs(loss) else 1e-4


def default_optim_args(optim: str) -> str | None:
    """The published momentum of 0.9 for SGD; other optimizers have their own defaults."""
    return "momentum=0.9" if optim == "sgd" else None


class _DefaultNumber(float):
    """A value that was filled in and not asked for: `dataclasses.replace` hands it on, and it is filled in anew."""


class _DefaultText(str):
    """As [`_DefaultNumber`]."""


DEFAULT_LOSS = "nce+rce"
FILLED_IN = {"weight_decay": _DefaultNumber, "optim_args": _DefaultText}


@dataclass
class RobustTrainingArguments(RobustFlags, TrainingArguments):  # type: ignore[misc]  # weight_decay may be asked for
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

    if TYPE_CHECKING:  # never None: they are filled in
        output_dir: str = ""
        label_names: list[str] = field(default_factory=list)

    hub_strategy: HubStrategy | str = field(
        default="end", metadata={"help": "When to push to the Hub. Allowed: end; a checkpoint is never pushed."}
    )

    def __post_init__(self):
        for name, kind in FILLED_IN.items():
            if isinstance(getattr(self, name), kind):
                setattr(self, name, None)
        self.not_default = changed_arguments(self)  # what was asked for, before anything is filled in
        self.loss = DEFAULT_LOSS if self.loss is None else self.loss
        parse_loss_spec(self.loss)
        self.fill_in()
        if self.class_weights is not None:
            RobustLoss("ce", class_weights=self.class_weights)  # raises for weights that can't be
        if self.label_smoothing_factor != 0:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor} can't be combined with "
                f"loss={self.loss!r:.120}: Trainer would drop it in silence. Allowed: 0."
            )
        if not self.average_tokens_across_devices:
            raise ValueError(
                "average_tokens_across_devices=False would weigh the labels of a short batch more than others when "
                "several processes train. Allowed: True."
            )
        if self.batch_eval_metrics:
            raise ValueError("batch_eval_metrics=True is not supported: metrics are those of all images. Use False.")
        if self.label_names is None:
            # The loss needs the labels even where the model's forward has no such argument, which is Trainer's guide.
            self.label_names = ["labels"]
        if len(self.label_names) != 1:
            raise ValueError(
                f"label_names must name one column, for a robust loss takes one label a sample; got {self.label_names}"
            )
        refuse_pushed_checkpoints(self)
        super().__post_init__()

    def derive_anew(self, changed: Container[str]) -> None:
        """Fill in again what hangs on other arguments, after a search has set those that are `changed`."""
        for name, kind in FILLED_IN.items():
            value = getattr(self, name)
            if name not in changed:
                setattr(self, name, value if name in self.not_default else None)
            elif value is not None:  # which a search has cast to the type of the old value
                setattr(self, name, kind.__mro__[1](value))
        self.fill_in()

    def fill_in(self) -> None:
        """Set what hangs on other arguments and was not asked for."""
        if self.weight_decay is None or isinstance(self.weight_decay, _DefaultNumber):
            self.weight_decay = _DefaultNumber(default_weight_decay(self.loss or DEFAULT_LOSS))
        if self.optim_args is None or isinstance(self.optim_args, _DefaultText):
            default = default_optim_args(self.optim)
            self.optim_args = None if default is None else _DefaultText(default)


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
