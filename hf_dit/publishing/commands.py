"""The command lines that make results again, from the JSON that the scripts wrote."""

from dataclasses import fields

from hf_common.commands import command_line, launch_command

from ..training.arguments import DataArguments, DiTTrainingArguments, ModelArguments

# Defaults of the scripts that need not be said.
SAMPLING_DEFAULTS = {"schedulers": ["ddim"], "cfg_channels": "all", "dtype": "float32"}
SCORING_DEFAULTS = {
    "dtype": "float32",
    "normalize": True,
    "kid_subsets": 100,
    "kid_subset_size": 1000,
    "permutations": 999,
    "seed": 0,
    "precision_k": 3,
    "density_k": 5,
    "inception_splits": 10,
    "caption_column": "text",
}
# Arguments of evaluate_images.py that no value depends on, and those of the FID network alone.
NOT_OF_VALUES = (
    "output_dir cache_dir use_cache use_cpu batch_size save_moments curve curve_repeats save_embeddings "
    "embeddings_dtype save_stats num_workers streaming json fail_above fail_below"
).split()
OF_INCEPTION = ("inception_weights", "inception_sha256")


def training_command(results: dict, output_dir: str) -> str:
    """The call of train_dit.py that gives the weights of a run again.

    Args:
        results: content of the run's `results.json`.
        output_dir: a new folder.

    The batch of a step is given as one batch of each process; how it is split changes nothing but rounding.
    """
    settings, processes = results["settings"], results["processes"]
    parts = (DataArguments, ModelArguments, DiTTrainingArguments)
    defaults = {field.name: field.default for part in parts for field in fields(part)}
    given = {name: value for name, value in settings.items() if name in defaults and value != defaults[name]}
    given |= {
        "plugins": results.get("plugins"),
        "fsdp": results.get("sharded"),
        "mixed_precision": settings["mixed_precision"],  # the default is that of the machine
        "train_batch_size": settings["global_batch"] // processes,
        "max_train_steps": results["steps"],
        "output_dir": output_dir,
    }
    launch, flags = launch_command("scripts/train_dit.py", processes, results["hardware"])
    return command_line(launch, given | flags)


def sampling_command(settings: dict, axes: dict, model: str, output_dir: str) -> str:
    """The call of sample_dit.py that draws the images of a study again.

    Args:
        settings, axes: of the study; attentions None for the model's own.
        model: folder or Hub id of the pipeline.
        output_dir: a new folder.
    """
    given = {
        "model_name_or_path": model,
        "class_labels": settings["class_labels"],
        "guidance_scales": axes["guidance_scales"],
        "num_inference_steps": axes["steps"],
        "attentions": axes["attentions"],
        "schedulers": axes["schedulers"],
        "images_per_class": settings["images_per_class"],
        "seed": settings["seed"],
        "guidance_interval": settings["guidance_interval"],
        "cfg_channels": settings["cfg_channels"],
        "dtype": settings["dtype"],
        "output_dir": output_dir,
    }
    return command_line(["python", "scripts/sample_dit.py"], _without(given, SAMPLING_DEFAULTS))


def scoring_command(arguments: dict) -> str:
    """The call of evaluate_images.py that gives the values of these arguments again."""
    inception = any(encoder.startswith("inception") for encoder in arguments["encoders"])
    given = {
        name: value
        for name, value in arguments.items()
        if name not in NOT_OF_VALUES and (inception or name not in OF_INCEPTION)
    }
    return command_line(["accelerate", "launch", "scripts/evaluate_images.py"], _without(given, SCORING_DEFAULTS))


def _without(given: dict, defaults: dict) -> dict:
    return {name: value for name, value in given.items() if name not in defaults or value != defaults[name]}
