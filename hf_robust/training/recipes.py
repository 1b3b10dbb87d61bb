"""Published training recipes by name: what they set, as arguments in Python and as `--recipe` of the scripts."""

import copy
import os
from argparse import Namespace

from hf_common.flags import FlagParser

from ..networks import NETWORKS

# Of fine-tuning; the rate and the batch are its own of images or texts.
_FINETUNING = {
    "num_train_epochs": 3,
    "optim": "adamw_torch",
    "optim_args": None,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,  # of all steps
    "weight_decay": 0.0,
    "decay_bias_and_norm": False,
    "max_grad_norm": 1.0,
}
# What each recipe sets, by the names of the flags; `training` holds arguments of `RobustTrainingArguments`, and
# `published` the data set whose hyper-parameters `published_spec` gives the losses, if it is of one. None leaves a
# choice to the loss or the optimizer, as said beside it. A family of recipes leaves data set and network to the user.
RECIPES: dict[str, dict] = {
    # The eight-layer network on CIFAR-10 with noisy labels, last epoch scored: Ma et al. 2020 (arXiv:2006.13554), and
    # the same in the released code of Zhou et al. 2021 (arXiv:2106.03110), Ye et al. 2023 (arXiv:2412.02373), Wang et
    # al. 2024 (epsilon-softmax, NeurIPS) and Wang et al. 2025 (arXiv:2507.17692). Their cosine schedule steps once an
    # epoch, `Trainer`'s once an optimizer step.
    "cifar10-cnn8": {
        "published": "cifar10",
        "dataset": "uoft-cs/cifar10",
        "model": "cnn8",
        "augmentation": "crop_flip",
        "training": {
            "num_train_epochs": 120,
            "per_device_train_batch_size": 128,
            "gradient_accumulation_steps": 1,
            "dataloader_drop_last": False,
            "optim": "sgd",
            "optim_args": None,  # momentum=0.9, without Nesterov's, under SGD
            "learning_rate": 0.01,
            "lr_scheduler_type": "cosine",
            "weight_decay": None,  # 1e-4, or 0 for a loss with an L1 norm of its own
            "decay_bias_and_norm": True,
            "max_grad_norm": 5.0,
            "fp16": False,
            "bf16": False,
        },
    },
    # ResNets on noisy CIFAR: what the same released codes run on CIFAR-100, there with a ResNet-34, 200 epochs, rate
    # 0.1, and turns of up to 20 degrees besides.
    "cifar-resnet": {
        "model": "resnet18_cifar",
        "augmentation": "crop_flip",
        "training": {
            "num_train_epochs": 200,
            "per_device_train_batch_size": 128,
            "optim": "sgd",
            "optim_args": None,  # momentum=0.9 under SGD
            "learning_rate": 0.1,
            "lr_scheduler_type": "cosine",
            "weight_decay": 1e-5,  # 0 for a loss with an L1 norm of its own
            "decay_bias_and_norm": True,
            "max_grad_norm": 5.0,
        },
    },
    # The guide to image classification of transformers' documentation (ViT on Food-101): 16 images, 4 times
    # accumulated.
    "finetune-vision": {
        "training": {**_FINETUNING, "per_device_train_batch_size": 64, "learning_rate": 5e-5},
    },
    # The commands of transformers' examples/pytorch/text-classification (BERT on GLUE, IMDB); there without warm-up.
    "finetune-text": {
        "training": {**_FINETUNING, "per_device_train_batch_size": 32, "learning_rate": 2e-5},
    },
}
AUTO = "auto"


def recipe_arguments(recipe: str, loss: str) -> dict:
    """Keyword arguments for `RobustTrainingArguments` (and `ExperimentArguments`): a recipe with a loss.

    The loss has the hyper-parameters of [`recipe_loss`]. The recipe's data set, network and augmentation are no
    training arguments; [`recipe_flags`] names them.

    >>> args = RobustTrainingArguments(output_dir="runs/agce", **recipe_arguments("cifar10-cnn8", loss="nce+agce"))
    >>> args.loss, args.num_train_epochs, args.weight_decay
    ('nce + 4*agce(a=6, q=1.5)', 120, 0.0001)

    To change an argument: `**(recipe_arguments("cifar10-cnn8", loss="gce") | {"num_train_epochs": 30})`.

    Args:
        recipe (`str`): a name in `RECIPES`.
        loss (`str`): a spec, see [`get_loss`].

    Raises:
        ValueError: there is no such recipe, or the spec can't be read.
    """
    arguments = {"loss": recipe_loss(recipe, loss), **_recipe(recipe)["training"]}
    return arguments | ({"weight_decay": None} if _has_own_norm([loss]) else {})


def recipe_flags(recipe: str) -> dict:
    """What a recipe sets whatever the loss: data set, model, augmentation and training arguments, by their flags.

    Families of recipes leave out the data set, those of fine-tuning also the model and the augmentation.

    Raises `ValueError` if there is no such recipe.
    """
    settings = _recipe(recipe)
    given = {name: settings[name] for name in ("dataset", "model", "augmentation") if name in settings}
    return given | settings["training"]


def auto_recipe(model: str, text: bool) -> str:
    """The recipe for a kind of network.

    Args:
        model: a name of `NETWORKS`, or a folder or Hub id of a saved network.
        text: whether it takes texts.
    """
    if text:
        return "finetune-text"
    if model in NETWORKS:
        return "cifar-resnet" if NETWORKS[model].module == "resnet_cifar" else "cifar10-cnn8"
    return "finetune-vision"


def recipe_loss(recipe: str, loss: str) -> str:
    """A loss or sum named without weights and parameters, with those published for the recipe's data set.

    >>> recipe_loss("cifar10-cnn8", "nce+agce"), recipe_loss("cifar10-cnn8", "nce + 2*agce")
    ('nce + 4*agce(a=6, q=1.5)', 'nce + 2*agce')

    Where that changes nothing, the spec is returned letter by letter. See [`published_spec`]. Raises `ValueError` if
    there is no such recipe or the spec can't be read.
    """
    from ..losses import parse_loss_spec, published_spec

    dataset = _recipe(recipe).get("published")
    if dataset is None:
        parse_loss_spec(loss)
        return loss
    published = published_spec(loss, dataset)
    return loss if parse_loss_spec(published) == parse_loss_spec(loss) else published


class RecipeParser(FlagParser):
    """`FlagParser` with `--recipe`, which changes the defaults of the other flags: a flag that is given wins.

    The losses of `--loss` or `--losses`, given or default, become those of [`recipe_loss`]. Nothing of `--recipe` but
    what it sets is among the parsed values. `--recipe auto` takes the training arguments of [`auto_recipe`], and
    neither its data set nor its augmentation, and prints which it is.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_argument(
            "--recipe",
            choices=[*RECIPES, AUTO],
            help="Published settings; flags win. auto: by the network.",
        )

    def parse_known_args(self, args=None, namespace=None):
        parsed, _ = super().parse_known_args(args, copy.copy(namespace))
        recipe, many = parsed.recipe, "losses" in parsed  # a sweep takes lists of losses and models
        auto = recipe == AUTO
        if auto:
            recipe = self._recipe_for(parsed)
        if recipe is not None:
            chosen = RECIPES[recipe]["training"] if auto else recipe_flags(recipe)
            flags = {name: value for name, value in chosen.items() if name in parsed}
            self.set_defaults(**flags, **({"models": [flags["model"]]} if many and "model" in flags else {}))
        asked = parsed.weight_decay if "weight_decay" in parsed else None
        parsed, rest = super().parse_known_args(args, namespace)
        del parsed.recipe
        if recipe is not None and self.others is None:  # reading losses means torch
            try:
                self._take_losses(parsed, None if auto else recipe, asked)
            except ValueError as error:
                self.error(str(error))
        return parsed, rest

    def _recipe_for(self, parsed: Namespace) -> str:
        """What `auto` stands for; told once, by the first process of the parser that knows all flags."""
        models = parsed.models if "models" in parsed else [parsed.model]
        found = {auto_recipe(model, bool(parsed.text_column_name)) for model in models}
        if len(found) > 1:
            self.error(f"--recipe {AUTO} stands for {' and '.join(sorted(found))}: sweep their networks one by one")
        recipe = found.pop()
        if self.others is None and int(os.environ.get("RANK", 0)) == 0:
            print(f"--recipe {AUTO}: {recipe}")
        return recipe

    def _take_losses(self, parsed: Namespace, recipe: str | None, weight_decay: float | None) -> None:
        """The losses of the recipe, and where they bring a norm of their own no `weight_decay` that was not asked for.

        Args:
            recipe: None for losses as they are.
        """
        many = "losses" in parsed
        losses = parsed.losses if many else [parsed.loss] if parsed.loss is not None else []
        if recipe is not None:
            losses = [recipe_loss(recipe, loss) for loss in losses]
        if many:
            parsed.losses = losses
        elif losses:
            parsed.loss = losses[0]
        if weight_decay is None and parsed.weight_decay is not None and _has_own_norm(losses):
            if not all(_has_own_norm([loss]) for loss in losses):
                raise ValueError(
                    f"losses {losses} have weight decays of {parsed.weight_decay} and none by the recipe: sweep them "
                    "one by one, or give --weight_decay"
                )
            parsed.weight_decay = None  # which is 0 then


def _has_own_norm(losses: list[str]) -> bool:
    """Whether one of the losses brings an L1 norm of the parameters."""
    from ..losses import loss_needs

    return any("parameters" in loss_needs(loss) for loss in losses)


def _recipe(name: str) -> dict:
    if name not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}; got {name!r}")
    return RECIPES[name]
