"""The papers that a trained DiT, its samples and its scores rest on; those of its attention say its processors."""

from collections.abc import Iterable

from hf_common.references import Paper

from ..attention.spec import make_attn_processors

PAPERS = {
    "dit": Paper("W. Peebles, S. Xie", "Scalable Diffusion Models with Transformers", "ICCV 2023", "2212.09748"),
    "rms_norm": Paper("B. Zhang, R. Sennrich", "Root Mean Square Layer Normalization", "NeurIPS 2019", "1910.07467"),
    "qk_norm": Paper(
        "M. Dehghani and others",
        "Scaling Vision Transformers to 22 Billion Parameters",
        "ICML 2023 (normalised queries and keys)",
        "2302.05442",
    ),
    "rope": Paper(
        "J. Su, Y. Lu, S. Pan, A. Murtadha, B. Wen, Y. Liu",
        "RoFormer: Enhanced Transformer with Rotary Position Embedding",
        "2021",
        "2104.09864",
    ),
    "axial_rope": Paper(
        "J. Yao, B. Yang, X. Wang",
        "Reconstruction vs. Generation: Taming Optimization Dilemma in Latent Diffusion Models",
        "CVPR 2025 (LightningDiT: a DiT with rotations by row and column)",
        "2501.01423",
    ),
    "swiglu": Paper("N. Shazeer", "GLU Variants Improve Transformer", "2020", "2002.05202"),
    "ddpm": Paper(
        "J. Ho, A. Jain, P. Abbeel", "Denoising Diffusion Probabilistic Models", "NeurIPS 2020", "2006.11239"
    ),
    "variance": Paper(
        "A. Nichol, P. Dhariwal", "Improved Denoising Diffusion Probabilistic Models", "ICML 2021", "2102.09672"
    ),
    "v_prediction": Paper(
        "T. Salimans, J. Ho",
        "Progressive Distillation for Fast Sampling of Diffusion Models",
        "ICLR 2022",
        "2202.00512",
    ),
    "snr_gamma": Paper(
        "T. Hang, S. Gu, C. Li, J. Bao, D. Chen, H. Hu, X. Geng, B. Guo",
        "Efficient Diffusion Training via Min-SNR Weighting Strategy",
        "ICCV 2023",
        "2303.09556",
    ),
    "rescale_betas_zero_snr": Paper(
        "S. Lin, B. Liu, J. Li, X. Yang",
        "Common Diffusion Noise Schedules and Sample Steps are Flawed",
        "WACV 2024",
        "2305.08891",
    ),
    "flow": Paper(
        "N. Ma, M. Goldstein, M. S. Albergo, N. M. Boffi, E. Vanden-Eijnden, S. Xie",
        "SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant Transformers",
        "ECCV 2024",
        "2401.08740",
    ),
    "flow_times": Paper(
        "P. Esser et al.",
        "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
        "ICML 2024",
        "2403.03206",
    ),
    "ddim": Paper("J. Song, C. Meng, S. Ermon", "Denoising Diffusion Implicit Models", "ICLR 2021", "2010.02502"),
    "guidance": Paper(
        "J. Ho, T. Salimans",
        "Classifier-Free Diffusion Guidance",
        "NeurIPS 2021 workshop on deep generative models",
        "2207.12598",
    ),
    "cmmd": Paper(
        "S. Jayasumana, S. Ramalingam, A. Veit, D. Glasner, A. Chakrabarti, S. Kumar",
        "Rethinking FID: Towards a Better Evaluation Metric for Image Generation",
        "CVPR 2024",
        "2401.09603",
    ),
    "frechet_distance": Paper(
        "M. Heusel, H. Ramsauer, T. Unterthiner, B. Nessler, S. Hochreiter",
        "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
        "NeurIPS 2017 (FID)",
        "1706.08500",
    ),
    "fd_infinity": Paper(
        "M. J. Chong, D. Forsyth",
        "Effectively Unbiased FID and Inception Score and where to find them",
        "CVPR 2020",
        "1911.07023",
    ),
    "kid": Paper(
        "M. Binkowski, D. J. Sutherland, M. Arbel, A. Gretton", "Demystifying MMD GANs", "ICLR 2018", "1801.01401"
    ),
}

# What entries of a config that are not the published DiT's come from; its conditionings are all in the DiT paper.
OF_DESIGN = {
    ("qk_norm", "rms_norm"): ("rms_norm", "qk_norm"),
    ("position", "rope"): ("rope", "axial_rope"),
    ("mlp", "swiglu"): ("swiglu",),
}


def papers(config: dict, settings: dict, attentions: Iterable[str], measured: Iterable[str]) -> list[Paper]:
    """What such a model, its samples and its scores rest on: entries of `PAPERS`, and what its attention comes from.

    Args:
        config: of the model.
        settings: of its training.
        attentions: specs that it was sampled with besides its own.
        measured: names of values, as evaluate_images.py writes them.
    """
    keys = ["dit", *objective_papers(settings)] + ["variance"] * config["learn_sigma"]
    keys += ["ddim"] * (settings["prediction_type"] != "flow")
    keys += [key for entry, names in OF_DESIGN.items() if config.get(entry[0]) == entry[1] for key in names]
    keys += ["guidance"] * (config["num_classes"] is not None and config["class_dropout_prob"] > 0)
    of_attention = [
        Paper(*paper)
        for spec in (config["attention"], *attentions)
        for processor in make_attn_processors(spec, config["num_layers"])
        for paper in processor.papers
    ]
    of_scores = [PAPERS[key] for key in ("cmmd", "frechet_distance", "fd_infinity", "kid") if key in set(measured)]
    return list(dict.fromkeys([*(PAPERS[key] for key in keys), *of_attention, *of_scores]))


def objective_papers(settings: dict) -> list[str]:
    """The entries of `PAPERS` that the objective of a training comes from."""
    of_flags = [name for name in ("snr_gamma", "rescale_betas_zero_snr") if settings.get(name)]
    if settings["prediction_type"] == "flow":
        return ["flow"] + ["flow_times"] * ("flow_times" in settings or "flow_shift" in settings)
    return ["ddpm"] + ["v_prediction"] * (settings["prediction_type"] == "v_prediction") + of_flags
