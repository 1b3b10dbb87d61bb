"""A training's results in the words of its card."""

import math
import re
from collections.abc import Iterable, Sequence

from hf_common.tables import code, escaped

from ..attention.spec import in_tokens, make_attn_processors, seeing_all
from ..models.sizes import DIT_SIZES, height_and_width

HUB_ID = r"\w[\w.-]*(/\w[\w.-]*)?"
MOST_NAMES = 12  # of classes in a sentence
PREDICTED = {"epsilon": "noise", "sample": "sample", "v_prediction": "v", "flow": "flow"}
OF_TIMES = ("flow_logit_mean", "flow_logit_std", "flow_mode_scale")
# Entries of a config that are not the published DiT's.
DESIGN = {
    ("conditioning", "adaln"): "timestep and label by adaLN without gates",
    ("conditioning", "cross_attention"): "timestep and label by cross-attention",
    ("conditioning", "in_context"): "timestep and label as tokens in context",
    ("embedders", "separate"): "embedders of each block's own",
    ("qk_norm", "rms_norm"): "RMS-normalised queries and keys",
    ("position", "rope"): "axial rotary positions",
    ("mlp", "swiglu"): "SwiGLU",
}


def in_words(value: float, error: float | None, figures: int = 3) -> str:
    """`"0.493 ± 0.019"`: two figures of the error and as many decimals of the value, or `figures` of it alone."""
    decimals = _decimals(error, 2) if error else _decimals(value, figures)
    return f"{value:.{decimals}f}" + (f"\u00a0±\u00a0{error:.{decimals}f}" if error else "")


def attention_in_words(spec: str, num_layers: int, grid: tuple[int, int] | None = None) -> str:
    """`"na7*5,full"` -> what the tokens of such a model see; with a `grid`, also which of it is all of that."""
    words = "; ".join(dict.fromkeys(processor.words for processor in make_attn_processors(spec, num_layers)))
    if grid is None:
        return words
    return words + "".join(f"; {code(item)} is full attention on {in_tokens(grid)}" for item in seeing_all(spec, grid))


def design_in_words(config: dict) -> str | None:
    """What of a model's design is not the published DiT's; None where all of it is."""
    words = [DESIGN[name, choice] for name, choice in DESIGN if config.get(name) == choice]
    return ", ".join(words) or None


def example_labels(names: Sequence[str] | None) -> Sequence[int | str] | None:
    """The first and the last class, by name if no name means two classes."""
    if names is None:
        return None
    ids = [0, len(names) - 1] if len(names) > 1 else [0]
    stripped = [name.strip() for name in names]
    plain = all(stripped) and len(set(stripped)) == len(names) and not any("," in name for name in names)
    return [stripped[i] for i in ids] if plain else ids


def origin(settings: dict) -> str:
    """What the training started from."""
    if settings["model"] not in DIT_SIZES:
        return f"{code(settings['model'])}, trained on"
    changed = f" with {escaped(settings['config_overrides'])}" if settings["config_overrides"] else ""
    return f"{code(settings['model'])}{changed} from scratch"


def objective_in_words(settings: dict) -> str:
    """What the network was trained to predict, how it was weighed and when."""
    words = f"{PREDICTED[settings['prediction_type']]} prediction"
    if settings["prediction_type"] == "flow":
        words = "the velocity of a straight path from noise to data (flow matching)"
    if settings.get("flow_times"):
        given = [(name.split("_", 1)[1], settings[name]) for name in OF_TIMES if name in settings]
        numbers = "".join(f", {name} {value:g}" for name, value in given)
        words += f", times drawn {code(settings['flow_times'])}{numbers}"
    if settings.get("flow_shift"):
        words += f", shifted by {settings['flow_shift']:g}"
    if settings.get("snr_gamma"):
        words += f", min-SNR weights of gamma {settings['snr_gamma']:g}"
    return words + ", zero terminal SNR" * bool(settings.get("rescale_betas_zero_snr"))


def data_in_words(results: dict) -> str:
    """The data set, with its address if it has one."""
    name = results["settings"]["dataset_name"]
    if "dataset_name" in results["from_hub"] and re.fullmatch(HUB_ID, name):
        return f"[{escaped(name)}](https://huggingface.co/datasets/{name})"
    return code(name or results["settings"]["train_data_dir"])


def folders_in_words(results: dict) -> str | None:
    """Which settings are the names of folders on the machine of the training."""
    settings, from_hub = results["settings"], results["from_hub"]
    names = [settings["dataset_name"] or settings["train_data_dir"]] * ("dataset_name" not in from_hub)
    names += [settings["model"]] * (settings["model"] not in DIT_SIZES and "model" not in from_hub)
    names += [settings["vae"]] * (settings["vae"] is not None and "vae" not in from_hub)
    if not names:
        return None
    return f"{listed(map(code, names))} {'was a folder' if len(names) == 1 else 'were folders'}"


def images_in_words(config: dict, settings: dict) -> str:
    """Size of what the model draws."""
    if settings["vae"] is None:
        return f"{size_in_words(config)} images"
    side = settings["resolution"]
    return f"{side} x {side} images" if side is not None else f"images of {size_in_words(config)} latents"


def listed(words: Iterable[str]) -> str:
    """Each once, with "and" between."""
    return " and ".join(dict.fromkeys(words))


def size_in_words(config: dict) -> str:
    """Of the samples: `"32 x 32"`."""
    return "{} x {}".format(*height_and_width(config["sample_size"]))


def token_grid(config: dict) -> tuple[int, int]:
    """Rows and columns of the tokens of a sample."""
    height, width = height_and_width(config["sample_size"])
    return height // config["patch_size"], width // config["patch_size"]


def tokens(config: dict) -> int:
    """How many a sample has."""
    return math.prod(token_grid(config))


def shortened(names: Sequence[str] | None) -> str | None:
    """The first `MOST_NAMES`, and how many more there are."""
    if not names:
        return None if names is None else ""
    if len(names) <= MOST_NAMES:
        return ", ".join(map(escaped, names))
    return f"{', '.join(map(escaped, names[:MOST_NAMES]))} and {len(names) - MOST_NAMES} more"


def _decimals(value: float, figures: int) -> int:
    return max(0, figures - 1 - math.floor(math.log10(abs(value)))) if value else 0
