"""What is trained, and in which space: network, autoencoder, noise schedule."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from hf_common.foreign import first_line

from ..models.dit import DiTModel
from ..models.sizes import DIT_SIZES, dit_config
from ..models.weights import whole_model
from .arguments import DiTTrainingArguments, ModelArguments, beta_range, model_overrides
from .latents import latent_size
from .lora import add_lora
from .objectives.make import TrainingScheduler
from .pretrained import pretrained_config, pretrained_network, trained_prediction, with_new_labels

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # by the names of mixed precision


def load_vae(name: str | None) -> AutoencoderKL | None:
    """The autoencoder in evaluation mode and float32, from safetensors alone."""
    if name is None:
        return None
    try:
        named = AutoencoderKL.load_config(name).get("_class_name", "AutoencoderKL")
        if named != "AutoencoderKL":
            raise ValueError(f"{name}: a {named}")
        vae = whole_model(AutoencoderKL.from_pretrained, name, use_safetensors=True)
    except (ValueError, OSError) as error:
        raise ValueError(f"vae must be a folder or Hub id of an AutoencoderKL; got {first_line(error)}") from error
    return vae.eval().requires_grad_(False)


def sample_shape(vae: AutoencoderKL | None, size: tuple[int, int]) -> tuple[int, int, int]:
    """(channels, height, width) of what the model denoises, for images of `size`."""
    return (3, *size) if vae is None else (vae.config.latent_channels, *latent_size(vae, size))


def check_attention(model: ModelArguments, accelerator: Accelerator, shape: tuple[int, int, int]) -> None:
    """Raise what the attention raises that cannot train samples of a shape on this device; see `DiTModel`."""
    if model.model in DIT_SIZES:
        config = dit_config(model.model, **model_overrides(model.config_overrides))
    else:
        config = pretrained_config(model.model)
    if model.attention is not None:
        config["attention"] = model.attention
    with torch.device("meta"):  # no memory, no time
        network = DiTModel.from_config({**config, "in_channels": shape[0], "sample_size": shape[1:]})
    network.check_attention(
        height=shape[1],
        width=shape[2],
        device=accelerator.device,
        dtype=DTYPES[accelerator.mixed_precision],
        training=True,
    )


def open_network(
    model: ModelArguments,
    shape: tuple[int, int, int],
    num_classes: int | None,
    said: Callable[[str], object] = print,
) -> DiTModel:
    """The network that `model` names, for samples of a shape; initial weights from PyTorch's global generator.

    A trained one of another number of classes gets a new label table, see [`with_new_labels`]; `said` gets that.

    Raises:
        ValueError: the config of a trained model differs from what data and flags ask for.
    """
    channels, height, width = shape
    size = height if height == width else (height, width)
    if model.model in DIT_SIZES:
        return DiTModel.from_name(
            model.model,
            sample_size=size,
            in_channels=channels,
            num_classes=num_classes,
            learn_sigma=model.learn_sigma,
            class_dropout_prob=model.class_dropout_prob,
            attention=model.attention or "full",
            **model_overrides(model.config_overrides),
        )
    network = pretrained_network(model.model)
    wanted: dict[str, object] = {
        "sample_size": size,
        "in_channels": channels,
        "learn_sigma": model.learn_sigma,
    }
    if num_classes is None or network.config.num_classes is None:
        wanted["num_classes"] = num_classes
    found = {name: network.config[name] for name in wanted}
    if isinstance(found["sample_size"], list):  # as JSON has it
        found["sample_size"] = tuple(found["sample_size"])
    differences = [f"{name}={found[name]!r}, not {wanted[name]!r}" for name in wanted if found[name] != wanted[name]]
    if differences:
        # A flow has no learned variance, which is what comes to light where the objective was left out.
        is_flow = model.learn_sigma and not found["learn_sigma"] and trained_prediction(model.model) == "flow"
        hint = "; it was trained with --objective flow" if is_flow else ""
        raise ValueError(f"model {model.model!r} does not fit data and flags: it has {'; '.join(differences)}{hint}")
    if num_classes is not None and model.class_dropout_prob and not network.config.class_dropout_prob:
        raise ValueError(
            f"model {model.model!r} has no null class; class_dropout_prob must be 0, got {model.class_dropout_prob}"
        )
    before = network
    if num_classes is not None:
        network = with_new_labels(network, num_classes, said)
    if model.attention is not None:
        network.set_attn_processor(model.attention)
    if model.lora_rank is not None:
        alpha = model.lora_rank if model.lora_alpha is None else model.lora_alpha
        add_lora(network, model.lora_rank, alpha, train_labels=network is not before)
    return network


def training_scheduler(args: DiTTrainingArguments, learn_sigma: bool, *, latents: bool) -> TrainingScheduler:
    """The scheduler that is trained with and saved: its class and config say what the network predicts.

    Its predicted clean samples are clipped to [-1, 1] in pixel space, where every sample lies there, which keeps
    strong guidance in range (Ho et al. 2020); latents have no bounds (and DiT clips nothing). With zero terminal SNR
    its timesteps are "trailing", which begin at the last one (Lin et al. 2023, section 3.3).
    """
    if args.prediction_type == "flow":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=args.ddpm_num_steps, shift=args.flow_shift)
    zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if args.rescale_betas_zero_snr else {}
    beta_start, beta_end = beta_range(args.ddpm_num_steps)
    schedule: dict[str, Any] = {
        "num_train_timesteps": args.ddpm_num_steps,
        "beta_start": beta_start,
        "beta_end": beta_end,
        "beta_schedule": args.ddpm_beta_schedule,
    }
    if args.ddpm_beta_schedule == "sigmoid":  # DDPM's class alone knows that name; all take numbers
        schedule["trained_betas"] = DDPMScheduler(**schedule).betas.tolist()
    return DDPMScheduler(
        **schedule,
        prediction_type=args.prediction_type,
        variance_type="learned_range" if learn_sigma else "fixed_small",
        clip_sample=not latents,
        **zero_snr,
    )
