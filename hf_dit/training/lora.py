"""Training an adapter of low rank (LoRA, Hu et al. 2022, arXiv:2106.09685) in place of all weights."""

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..models.dit import DiTModel
from .sharding import parts_like

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # as the training scripts of diffusers
TRAINED = "trained.safetensors"  # of a checkpoint: the trained weights by their names in the network
LORA_FILE = "pytorch_lora_weights.safetensors"  # of the finished run: the adapter alone, as diffusers writes it


def add_lora(network: DiTModel, rank: int, alpha: int, *, train_labels: bool) -> None:
    """Freeze the network and add an adapter to its attention projections; its second factor is 0 at first.

    Args:
        rank, alpha: of the adapter, whose product is scaled by alpha / rank.
        train_labels: train the label table beside it, as where it was drawn anew.

    Raises:
        ImportError: peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("lora_rank needs peft: pip install peft") from error
    network.requires_grad_(False)
    network.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS), init_lora_weights=True))
    if train_labels:
        for module in network.modules():
            if isinstance(module, nn.Embedding):
                module.requires_grad_(True)


def has_adapter(network: nn.Module) -> bool:
    """Whether a network holds an adapter."""
    return any(".base_layer." in name for name, _ in network.named_parameters())


def trained_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained, by name, in the network's order."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def merged(network: DiTModel) -> DiTModel:
    """The network itself, or of one with an adapter a plain copy whose weights have it added."""
    if not has_adapter(network):
        return network
    plain = copy.deepcopy(network)
    plain.fuse_lora()
    plain.unload_lora()
    return plain.requires_grad_(True)


def save_trained(network: DiTModel, folder: Path) -> None:
    """Write the weights of a checkpoint: a model that `from_pretrained` loads, or what is trained of an adapter."""
    if not has_adapter(network):
        network.save_pretrained(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: value.detach().cpu().contiguous() for name, value in trained_parameters(network).items()}
    save_file(kept, folder / TRAINED)


@torch.no_grad()
def load_trained(network: DiTModel, folder: Path) -> None:
    """Read what [`save_trained`] wrote into a network that was made in the same way; into its parts if it is sharded.

    Raises:
        ValueError: the file holds other weights.
    """
    if not has_adapter(network):
        saved, own = DiTModel.from_pretrained(folder, use_safetensors=True).state_dict(), network.state_dict()
        network.load_state_dict({name: parts_like(value, own.get(name, value)) for name, value in saved.items()})
        return
    found, wanted = load_file(folder / TRAINED), trained_parameters(network)
    if {name: value.shape for name, value in found.items()} != {name: p.shape for name, p in wanted.items()}:
        raise ValueError(f"{folder / TRAINED} must hold the {len(wanted)} weights that are trained; it holds others")
    for name, parameter in wanted.items():
        parameter.copy_(parts_like(found[name], parameter))
