"""The papers that a trained DiT, its samples and its scores rest on."""

from collections.abc import Iterable

from hf_common.references import Paper

from ..attention.processors import make_attn_processors

PAPERS = {
    "dit": Paper("W. Peebles, S. Xie", "Scalable Diffusion Models with Transformers", "ICCV 2023", "2212.09748"),
    "ddpm": Paper(
        "J. Ho, A. Jain, P. Abbeel", "Denoising Diffusion Probabilistic Models", "NeurIPS 2020", "2006.11239"
    ),
    "variance": Paper(
        "A. Nichol, P. Dhariwal", "Improved Denoising Diffusion Probabilistic Models", "ICML 2021", "2102.09672"
    ),
    "ddim": Paper("J. Song, C. Meng, S. Ermon", "Denoising Diffusion Implicit Models", "ICLR 2021", "2010.02502"),
    "guidance": Paper(
        "J. Ho, T. Salimans",
        "Classifier-Free Diffusion Guidance",
        "NeurIPS 2021 workshop on deep generative models",
        "2207.12598",
    ),
    "swa": Paper(
        "I. Beltagy, M. E. Peters, A. Cohan",
        "Longformer: The Long-Document Transformer",
        "2020 (sliding windows)",
        "2004.05150",
    ),
    "na": Paper(
        "A. Hassani, S. Walton, J. Li, S. Li, H. Shi", "Neighborhood Attention Transformer", "CVPR 2023", "2204.07143"
    ),
    "natten": Paper(
        "A. Hassani, W.-M. Hwu, H. Shi",
        "Faster Neighborhood Attention: Reducing the O(n^2) Cost of Self Attention at the Threadblock Level",
        "NeurIPS 2024",
        "2403.04690",
    ),
    "flex": Paper(
        "J. Dong, B. Feng, D. Guessous, Y. Liang, H. He",
        "Flex Attention: A Programming Model for Generating Optimized Attention Kernels",
        "2024",
        "2412.05496",
    ),
    "xformers": Paper(
        "B. Lefaudeux and others",
        "xFormers: A modular and hackable Transformer modelling library",
        "https://github.com/facebookresearch/xformers, 2022",
        None,
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


def papers(config: dict, attentions: Iterable[str], measured: Iterable[str]) -> list[Paper]:
    """Entries of `PAPERS`, in its order of importance.

    Args:
        config: of the model.
        attentions: specs that it was sampled with besides its own.
        measured: names of values, as evaluate_images.py writes them.
    """
    keys = ["dit", "ddpm"] + ["variance"] * config["learn_sigma"] + ["ddim"]
    keys += ["guidance"] * (config["num_classes"] is not None and config["class_dropout_prob"] > 0)
    for spec in (config["attention"], *attentions):
        for processor in make_attn_processors(spec, config["num_layers"]):
            kernel, _, pattern = processor.spec.rpartition(":")
            keys += [key for key in ("swa", "na") if pattern.startswith(key)] + [kernel] * (kernel != "")
    keys += [key for key in ("cmmd", "frechet_distance", "fd_infinity", "kid") if key in set(measured)]
    return [PAPERS[key] for key in dict.fromkeys(keys)]
