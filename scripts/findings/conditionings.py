"""How timestep and class reach the blocks: the four designs of the DiT paper, trained from scratch on photographs."""

from .trainings import Comparison, Variant

STYLES = {
    "adaln_zero": ("#D55E00", "o"),
    "adaln": ("#E69F00", "v"),
    "cross_attention": ("#0072B2", "s"),
    "in_context": ("#009E73", "^"),
}
CONDITIONINGS = Comparison(
    study="conditionings",
    axis="conditioning",
    variants={
        name: Variant({"config_overrides": f"conditioning={name}"}, (0,), colour, marker)
        for name, (colour, marker) in STYLES.items()
    },
    side=32,
    model="dit-tiny-4",
    images_seen=2_600 * 64,  # as in the study of objectives
)
