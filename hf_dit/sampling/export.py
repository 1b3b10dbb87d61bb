"""A pipeline as a folder or Hub repository that carries its own code.

    export_pipeline(pipeline, "my-dit")
    DiffusionPipeline.from_pretrained("my-dit", trust_remote_code=True)  # also where hf_dit is not installed

diffusers takes the class of a pipeline, or of a component, from a Python file where `model_index.json` names it as
`[file without .py, class]` and the file lies beside `model_index.json`, or in the folder of the component.
"""

import os
from pathlib import Path

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.torch_utils import unwrap_module

from hf_common.bundle import bundle
from hf_common.files import replace_text, write_json
from hf_common.foreign import read_json

from ..models.dit import DiTModel
from .pipeline import SAVED_CLASS, DiTImagePipeline

PIPELINE_FILE, PIPELINE_MODULE, PIPELINE_CLASS = "dit_image_pipeline", "hf_dit.sampling.pipeline", "DiTImagePipeline"
OWN_CODE = ("hf_dit.", "diffusers.", "diffusers_modules.")  # what a folder or diffusers has, a loaded folder included
MODEL_FILE, MODEL_MODULE, MODEL_CLASS = "dit_model", "hf_dit.models.dit", "DiTModel"


def export_pipeline(pipeline: DiffusionPipeline, folder: str | os.PathLike) -> None:
    """Save a `DiTImagePipeline` with the code that it needs: torch and diffusers are enough to load it.

    Loading asks for `trust_remote_code=True`, `DiTImagePipeline.from_pretrained` included, and gives classes of the
    folder's own code. The model alone loads with `DiTModel.from_pretrained(folder, subfolder="transformer")`.

    A pipeline or a component of a class that would not be in the folder or in diffusers is a `TypeError`.
    """
    if type(pipeline).__name__ != PIPELINE_CLASS:
        raise TypeError(f"pipeline must be a {PIPELINE_CLASS}, got {type(pipeline).__name__}")
    for name, component in pipeline.components.items():
        cls = type(unwrap_module(component))
        if name == "transformer" and cls.__name__ != MODEL_CLASS:
            raise TypeError(f"transformer must be a {MODEL_CLASS}, got {cls.__name__}")
        if name != "transformer" and component is not None and not cls.__module__.startswith("diffusers."):
            raise TypeError(f"{name} must be of a class of diffusers, got {cls.__name__}")
    for processor in unwrap_module(pipeline.transformer).attn_processors.values():
        if not type(processor).__module__.startswith(OWN_CODE):
            raise TypeError(f"attention must be one of this package, got {type(processor).__name__}")
    folder = Path(folder)
    pipeline.save_pretrained(folder)
    (folder / f"{SAVED_CLASS[0]}.py").unlink(missing_ok=True)  # an import of the package
    replace_text(folder / "transformer" / f"{MODEL_FILE}.py", bundle(MODEL_MODULE))
    replace_text(folder / f"{PIPELINE_FILE}.py", bundle(PIPELINE_MODULE))
    for path in folder.glob("*/config.json"):
        write_json(path, _without_local_path(read_json(path)))
    index = _without_local_path(read_json(folder / "model_index.json"))
    index["_class_name"] = [PIPELINE_FILE, PIPELINE_CLASS]
    index["transformer"] = [MODEL_FILE, MODEL_CLASS]
    write_json(folder / "model_index.json", index)


def load_pipeline(name_or_path: str, dtype: torch.dtype) -> DiTImagePipeline:
    """The pipeline of a folder or Hub id, converted if it is diffusers' own; no code that lies there is run.

    Raises:
        ValueError: what is there is another pipeline.
    """
    index = DiffusionPipeline.load_config(name_or_path)
    named = index["_class_name"]
    match SAVED_CLASS[1] if named == SAVED_CLASS else named:
        case "DiTPipeline":
            return DiTImagePipeline.from_diffusers(name_or_path, dtype=dtype)
        case "DiTImagePipeline":
            return DiTImagePipeline.from_pretrained(name_or_path, dtype=dtype)
        case [_, "DiTImagePipeline"]:  # as `export_pipeline` writes it, beside a copy of the code
            vae = None
            if index["vae"][1] is not None:
                vae = AutoencoderKL.from_pretrained(name_or_path, subfolder="vae", dtype=dtype)
            return DiTImagePipeline(
                DiTModel.from_pretrained(name_or_path, subfolder="transformer", dtype=dtype),
                getattr(diffusers, index["scheduler"][1]).from_pretrained(name_or_path, subfolder="scheduler"),
                vae,
                index.get("id2label"),
            )
    raise ValueError(f"{name_or_path!r} must hold a DiTImagePipeline or a DiTPipeline; got {named!r}")


def _without_local_path(config: dict) -> dict:
    """A config without the folder of this machine that it was loaded from; a Hub id stays."""
    local = os.path.exists(config.get("_name_or_path", ""))
    return {name: value for name, value in config.items() if not (local and name == "_name_or_path")}
