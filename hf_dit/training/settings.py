"""What the weights of a training depend on, as its folder and its card have it."""

from dataclasses import asdict, fields
from pathlib import Path

from ..models.sizes import DIT_SIZES
from .arguments import OF_DIFFUSION, OF_FLOW, DataArguments, DiTTrainingArguments, ModelArguments, beta_range


def settings_of_weights(
    data: DataArguments,
    model: ModelArguments,
    args: DiTTrainingArguments,
    global_batch: int,
    mixed_precision: str,
    max_train_steps: int,
) -> dict:
    """Everything that the weights after a number of steps depend on, as JSON values.

    How the global batch is split is no part of it, nor is what is written and shown; the number of steps is where the
    learning rate depends on it.
    """
    recipe = (
        "seed learning_rate lr_scheduler lr_warmup_steps adam_beta1 adam_beta2 adam_weight_decay adam_epsilon "
        "max_grad_norm use_ema ema_max_decay ema_inv_gamma ema_power prediction_type ddpm_num_steps "
        "ddpm_beta_schedule"
    ).split()
    settings = {
        **asdict(data),
        **asdict(model),
        **{name: getattr(args, name) for name in recipe},
        "global_batch": global_batch,
        "mixed_precision": mixed_precision,
    }
    del settings["cache_dir"], settings["latent_cache_dir"], settings["keep_in_memory"]
    for name in ("lora_rank", "lora_alpha"):
        if settings[name] is None:
            del settings[name]
    if args.ddpm_num_steps != 1000:  # the schedule of other runs, which began before it was scaled, is another
        settings["betas"] = list(beta_range(args.ddpm_num_steps))
    # Only where they say something: what was trained before they were there has none of them.
    named = {*OF_DIFFUSION, *OF_FLOW, "optim", "torch_compile"}
    own = {item.name: getattr(args, item.name) for item in fields(args) if item.name in named}
    settings |= {
        item.name: own[item.name] for item in fields(args) if own.get(item.name, item.default) != item.default
    }
    if args.lr_needs_end:
        settings["max_train_steps"] = max_train_steps
    return settings


def settings_from_hub(settings: dict) -> list[str]:
    """Which of data set, model and autoencoder were named by their ids on the Hub."""
    names = ("dataset_name", "model", "vae")
    given = {name: settings[name] for name in names if settings[name] not in (None, *DIT_SIZES)}
    return [name for name, value in given.items() if not Path(value).exists()]
