"""Full against local attention, trained from scratch on photographs."""

from .trainings import Comparison, Variant

LOCAL = Comparison(
    study="local",
    axis="attention",
    variants={
        "full": Variant({"attention": "full"}, (0, 1), "#D55E00", "o"),
        "na7": Variant({"attention": "na7"}, (0, 1), "#0072B2", "s"),
        "na7,full": Variant({"attention": "na7,full"}, (0,), "#009E73", "^"),
    },
    side=64,
    model="dit-tiny-4",  # 16 x 16 tokens
    images_seen=100_000,
)
