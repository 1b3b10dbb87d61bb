"""A model that samples in milliseconds, the arguments of a generation, and what it left."""

import hashlib

import torch
from diffusers import DDIMScheduler

from hf_dit.generation.arguments import GenerateArguments
from hf_dit.models.dit import DiTModel
from hf_dit.sampling.pipeline import DiTImagePipeline
from tests import ROOT

NAMES = {0: "tench, Tinca tinca", 1: "cat", 2: "dog"}
CMMD = str(ROOT / "evaluate_metrics" / "cmmd")


def save_model(folder, scheduler=None, **config):
    """A pipeline in pixel space whose model has random weights everywhere: a new one's output is zero."""
    torch.manual_seed(0)
    model = DiTModel.from_name("dit-micro-2", **{"sample_size": 8, "in_channels": 3, "num_classes": 5, **config})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    names = NAMES if model.config.num_classes else None
    DiTImagePipeline(model.eval(), scheduler or DDIMScheduler(), id2label=names).save_pretrained(folder)
    return str(folder)


def values_of(model, output_dir, changes):
    return {
        "model_name_or_path": model,
        "num_images": 10,
        "num_inference_steps": 2,
        "batch_size": 4,
        "use_cpu": True,
        "output_dir": str(output_dir),
        **changes,
    }


def arguments(model, output_dir, **changes):
    """The arguments of a small generation, with changed fields."""
    return GenerateArguments.from_flags(**values_of(model, output_dir, changes))


def flags(model, output_dir, **changes):
    """The same as words of a command line."""
    words = []
    for name, value in values_of(model, output_dir, changes).items():
        if value is True:
            words.append(f"--{name}")
        elif value not in (None, False):
            words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return words


def contents(folder, *forms):
    """The digest of each file of those forms, by its path."""
    files = {path for form in forms for path in [folder / form, *(folder / form).rglob("*")] if path.is_file()}
    assert files
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
