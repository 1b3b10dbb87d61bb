"""What a Diffusion Transformer learns to predict, and with which weight: trained from scratch on photographs."""

from .trainings import Comparison, Variant

OBJECTIVES = Comparison(
    study="objectives",
    axis="objective",
    variants={
        "epsilon": Variant({}, (0, 1), "#D55E00", "o"),
        "epsilon, min-SNR": Variant({"snr_gamma": 5.0}, (0,), "#E69F00", "v"),
        "v": Variant({"prediction_type": "v_prediction"}, (0,), "#0072B2", "s"),
        "v, min-SNR": Variant({"prediction_type": "v_prediction", "snr_gamma": 5.0}, (0,), "#56B4E9", "D"),
        "flow": Variant({"prediction_type": "flow"}, (0, 1), "#009E73", "^"),
        "flow, logit-normal": Variant({"prediction_type": "flow", "flow_times": "logit_normal"}, (0,), "#CC79A7", "P"),
    },
    side=32,
    model="dit-tiny-4",
    images_seen=2_600 * 64,  # as the model of the card
)
