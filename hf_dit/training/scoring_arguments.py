"""How samples are scored while a model is trained, as flags."""

import math
from dataclasses import dataclass, field

from hf_common.arguments import parse_overrides


@dataclass
class ScoringArguments:
    """Whether and how samples are scored while the model is trained."""

    _argument_group_name = "scores of samples while training"

    eval_metric: str | None = field(
        default=None,
        metadata={
            "help": "A metric of evaluate that compares two sets of images, as evaluate.load takes it, its "
            "configuration after a comma: evaluate_metrics/cmmd. Default: no scores."
        },
    )
    eval_encoder: str | None = field(
        default=None, metadata={"help": "The metric's encoder: a name, Hub id or folder, or file.py:function."}
    )
    eval_arguments: str | None = field(
        default=None,
        metadata={"help": """What else it is loaded with, name=value,...: 'scores=["fd","precision_recall"]'."""},
    )
    metric_for_best_model: str | None = field(
        default=None, metadata={"help": "The score that tells which pipeline is kept as the best. Default: the first."}
    )
    greater_is_better: bool = field(
        default=False, metadata={"help": "Whether the best has the highest of these scores, not the lowest."}
    )
    eval_references: str | None = field(
        default=None,
        metadata={"help": "Data set or folder of images to compare with. Default: the training images."},
    )
    eval_max_references: int = field(default=5000, metadata={"help": "How many of these at most, of a fixed shuffle."})
    eval_steps: int = field(default=1000, metadata={"help": "Steps between scores; there are always some at the end."})
    eval_num_images: int = field(default=250, metadata={"help": "Samples that are scored, the classes in turn."})
    eval_guidance_scale: float = field(default=1.0, metadata={"help": "Of these samples; 1 is without guidance."})
    eval_batch_size: int = field(default=50, metadata={"help": "Samples at once."})

    def __post_init__(self):
        given = [name for name in vars(self) if getattr(self, name) != type(self).__dataclass_fields__[name].default]
        if given and self.eval_metric is None:
            raise ValueError(f"{given[0]} has no effect without eval_metric")
        if "encoder" in self.metric_arguments and self.eval_encoder is not None:
            raise ValueError("the encoder is given twice, by eval_encoder and eval_arguments")
        if not math.isfinite(self.eval_guidance_scale):
            raise ValueError(f"eval_guidance_scale must be finite; got {self.eval_guidance_scale}")
        for name in ("eval_max_references", "eval_steps", "eval_num_images", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more; got {getattr(self, name)}")

    @property
    def metric_arguments(self) -> dict:
        """`eval_arguments` by name."""
        return parse_overrides(self.eval_arguments, named="eval_arguments")
