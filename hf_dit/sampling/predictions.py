"""What a network may predict of a noisy sample x = a x0 + s e, and how each prediction gives the others.

x0 is the clean sample and e the noise of variance 1; (a, s) are `signal` and `noise_level`: (sqrt(abar_t),
sqrt(1 - abar_t)) in diffusion (Ho et al. 2020, equation 4), (1 - s, s) in flow matching, whose clock runs from data at
s = 0 to noise at s = 1 (Ma et al. 2024, arXiv:2401.08740, equation 1 with alpha_t = 1 - t and sigma_t = t; their
released code runs the other way and has the sign of the velocity turned).

| prediction | of | paper |
| --- | --- | --- |
| `epsilon` | e | Ho et al. 2020, equation 14 |
| `sample` | x0 | the same, section 3.2 |
| `v_prediction` | a e - s x0 | Salimans and Ho 2022, arXiv:2202.00512, appendix D |
| `flow` | e - x0, the velocity of the straight path | Ma et al. 2024, equations 3 and 7; Liu et al. 2023 |
"""

from torch import Tensor

PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow")


def prediction_of(kind: str, clean: Tensor, noise: Tensor, signal: Tensor, noise_level: Tensor) -> Tensor:
    """The exact prediction of a kind in [`PREDICTIONS`].

    # (B, C, H, W) float twice, (B, 1, 1, 1) or numbers twice -> (B, C, H, W)
    """
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return clean
    if kind == "v_prediction":
        return signal * noise - noise_level * clean
    if kind == "flow":
        return noise - clean
    raise ValueError(f"kind must be one of {', '.join(PREDICTIONS)}; got {kind!r:.120}")


def clean_and_noise(
    kind: str, prediction: Tensor, noisy: Tensor, signal: Tensor, noise_level: Tensor
) -> tuple[Tensor, Tensor]:
    """The clean sample and the noise that a prediction of the noisy sample x = a x0 + s e stands for.

    `epsilon` says nothing of the clean sample where the signal is 0, nor `sample` of the noise where there is none:
    the quotient is not finite there. The other two hold for all levels.

    # (B, C, H, W) float twice, (B, 1, 1, 1) or numbers twice -> (B, C, H, W) twice
    """
    if kind == "epsilon":
        return (noisy - noise_level * prediction) / signal, prediction
    if kind == "sample":
        return prediction, (noisy - signal * prediction) / noise_level
    if kind == "v_prediction":
        square = signal**2 + noise_level**2
        return (
            (signal * noisy - noise_level * prediction) / square,
            (noise_level * noisy + signal * prediction) / square,
        )
    if kind == "flow":
        total = signal + noise_level
        return (noisy - noise_level * prediction) / total, (noisy + signal * prediction) / total
    raise ValueError(f"kind must be one of {', '.join(PREDICTIONS)}; got {kind!r:.120}")
