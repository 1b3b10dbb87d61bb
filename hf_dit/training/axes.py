"""In what trainings may differ that are compared, known without the libraries that run them."""

from dataclasses import dataclass, field

from ..models.config import CHOICES
from .arguments import PREDICTION_TYPES

CONDITIONINGS = [str(name) for name in CHOICES["conditioning"]]


@dataclass
class CompareArguments:
    """In what the trainings of a comparison differ."""

    _argument_group_name = "comparison"

    attentions: list[str] | None = field(default=None, metadata={"help": "Specs, as full na7. Default: --attention."})
    objectives: list[str] | None = field(
        default=None, metadata={"help": f"Of {', '.join(PREDICTION_TYPES)}. Default: --objective."}
    )
    conditionings: list[str] | None = field(
        default=None, metadata={"help": f"Of {', '.join(CONDITIONINGS)}. Default: the model's own."}
    )
    seeds: list[int] | None = field(default=None, metadata={"help": "Default: --seed."})

    def __post_init__(self):
        for name in ("attentions", "objectives", "conditionings", "seeds"):
            values = getattr(self, name)
            if values is not None and (not values or len(set(values)) < len(values)):
                raise ValueError(f"{name} must be one or more different values; got {values}")
        for name, allowed in (("objectives", PREDICTION_TYPES), ("conditionings", CONDITIONINGS)):
            wrong = [value for value in getattr(self, name) or () if value not in allowed]
            if wrong:
                raise ValueError(f"{name} must be among {', '.join(allowed)}; got {wrong[0]!r:.120}")
        if any(seed < 0 for seed in self.seeds or ()):
            raise ValueError(f"seeds must be 0 or more; got {self.seeds}")
