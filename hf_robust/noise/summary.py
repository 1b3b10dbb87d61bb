"""The noise of a data set: as it is where the truth is known, and as far as predictions can tell it."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .bounds import CANNOT_TELL, IN_SAMPLE, LEAST_KAPPA, OK, TOO_FEW, cohens_kappa, noise_bounds
from .estimate import check_predictions, confident_joint, estimate_noise_rate, estimate_transition_matrix
from .labels import realised_matrix, realised_rate

MEMORISED = 0.02  # by which a classifier may agree more with the labels that it was trained on than with others


def noise_summary(
    probabilities: ArrayLike,
    given: ArrayLike,
    clean: ArrayLike | None = None,
    *,
    held_out: bool,
    held_out_accuracy: float | None = None,
    held_out_images: int | None = None,
) -> dict[str, Any]:
    """The noise as it is, and as predictions for the training images tell it, as JSON values.

    Args:
        probabilities, given: as for [`~hf_robust.noise.estimate.confident_joint`].
        clean (*optional*): (N,) integers in 0..K-1.
        held_out: whether the classifier was not trained on these images.
        held_out_accuracy (*optional*): of one that was, on labels of other images.
        held_out_images (*optional*): how many these are, which says how far that accuracy can be off.

    Returns:
        `dict`:
        - `rate`, `matrix`: realised share of wrong labels, and their K x K matrix; None where the clean ones are
          unknown;
        - `estimated_rate`, `estimated_matrix`: one figure by confident learning, which the classifier's errors are
          part of;
        - `estimate`: what [`noise_bounds`] gives of held-out images. Of images that it was trained on there is no
          interval, since it may have memorised some of their labels; the verdict is `"in sample"`, or `"cannot tell"`
          where it agrees with them too little, or has memorised them: it agrees with them more often than with others,
          by more than 2 points and the standard error.
    """
    return {
        "rate": None if clean is None else realised_rate(clean, given),
        "matrix": None if clean is None else realised_matrix(clean, given, np.shape(probabilities)[1]).tolist(),
        "estimated_rate": estimate_noise_rate(probabilities, given),
        "estimated_matrix": estimate_transition_matrix(probabilities, given).tolist(),
        "estimate": noise_bounds(probabilities, given)
        if held_out
        else _in_sample(probabilities, given, held_out_accuracy, held_out_images),
    }


def _in_sample(
    probabilities: ArrayLike, given: ArrayLike, held_out_accuracy: float | None, held_out_images: int | None
) -> dict[str, Any]:
    probabilities, given = check_predictions(probabilities, given)
    num_classes = probabilities.shape[1]
    kappa, agreement = cohens_kappa(probabilities.argmax(axis=1), given, num_classes)
    memorised = False
    if held_out_accuracy is not None:
        error = math.sqrt(held_out_accuracy * (1 - held_out_accuracy) / held_out_images) if held_out_images else 0.0
        memorised = agreement > held_out_accuracy + MEMORISED + error
    return {
        "verdict": CANNOT_TELL if kappa < LEAST_KAPPA or memorised else IN_SAMPLE,
        "images": len(given),
        "agreement": agreement,
        "kappa": kappa,
        "held_out_accuracy": held_out_accuracy,
        "rate_interval": None,
        "given_per_class": np.bincount(given, minlength=num_classes).tolist(),
        "confident_per_class": confident_joint(probabilities, given).sum(axis=0).tolist(),
    }


def estimate_in_words(noise: dict[str, Any]) -> str | None:
    """What an estimate says of the share of wrong labels; None of results that have none.

    Args:
        noise: what [`noise_summary`] gives, or of older results without `estimate`.
    """
    rate, estimate = noise.get("estimated_rate"), noise.get("estimate")
    if estimate is None:
        return None if rate is None else f"{100 * rate:.1f} %"
    if estimate["verdict"] == OK:
        low, high = (100 * end for end in estimate["rate_interval"])
        return f"{low:.1f} to {high:.1f} %"
    if estimate["verdict"] == TOO_FEW:
        return f"too few images ({estimate['images']})"
    if estimate["verdict"] == IN_SAMPLE:
        return f"{100 * rate:.1f} %, by images it was trained on" if rate is not None else None
    return f"cannot tell: {untold_in_words(estimate)}"


def untold_in_words(estimate: dict[str, Any]) -> str:
    """Why an estimate whose verdict is `"cannot tell"` can't."""
    if estimate["kappa"] >= LEAST_KAPPA:  # of held-out images it can, then
        return "the labels are memorised"
    return f"predictions and labels agree too little (kappa {estimate['kappa']:.3f})"
