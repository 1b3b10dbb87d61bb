"""Published training recipes by name: what they set, as arguments in Python and as `--recipe` of the scripts."""

import copy

from hf_common.flags import FlagParser

# What each recipe sets, by the names of the flags; `training` holds arguments of `RobustTrainingArguments`, and
# `published` the data set whose hyper-parameters `published_spec` gives the losses. None leaves a choice to the loss
# or the optimizer, as said beside it.
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
}


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
    return {"loss": recipe_loss(recipe, loss), **_recipe(recipe)["training"]}


def recipe_flags(recipe: str) -> dict:
    """What a recipe sets whatever the loss: data set, model, augmentation and training arguments, by their flags.

    Raises `ValueError` if there is no such recipe.
    """
    settings = _recipe(recipe)
    return {name: settings[name] for name in ("dataset", "model", "augmentation")} | settings["training"]


def recipe_loss(recipe: str, loss: str) -> str:
    """A loss or sum named without weights and parameters, with those published for the recipe's data set.

    >>> recipe_loss("cifar10-cnn8", "nce+agce"), recipe_loss("cifar10-cnn8", "nce + 2*agce")
    ('nce + 4*agce(a=6, q=1.5)', 'nce + 2*agce')

    Where that changes nothing, the spec is returned letter by letter. See [`published_spec`]. Raises `ValueError` if
    there is no such recipe or the spec can't be read.
    """
    from ..losses import parse_loss_spec, published_spec

    published = published_spec(loss, _recipe(recipe)["published"])
    return loss if parse_loss_spec(published) == parse_loss_spec(loss) else published


class RecipeParser(FlagParser):
    """`FlagParser` with `--recipe`, which changes the defaults of the other flags: a flag that is given wins.

    The losses of `--loss` or `--losses`, given or default, become those of [`recipe_loss`]. Nothing of `--recipe` but
    what it sets is among the parsed values.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_argument(
            "--recipe",
            choices=list(RECIPES),
            help="Data set, network, augmentation, training and the losses' hyper-parameters as published; flags win.",
        )

    def parse_known_args(self, args=None, namespace=None):
        parsed, _ = super().parse_known_args(args, copy.copy(namespace))
        recipe, many = parsed.recipe, "losses" in parsed  # a sweep takes lists of losses and models
        if recipe is not None:
            flags = {name: value for name, value in recipe_flags(recipe).items() if name in parsed}
            self.set_defaults(**flags, **({"models": [flags["model"]]} if many else {}))
        parsed, rest = super().parse_known_args(args, namespace)
        del parsed.recipe
        if recipe is not None and self.others is None:  # reading losses means torch
            try:
                if many:
                    parsed.losses = [recipe_loss(recipe, loss) for loss in parsed.losses]
                elif parsed.loss is not None:
                    parsed.loss = recipe_loss(recipe, parsed.loss)
            except ValueError as error:
                self.error(str(error))
        return parsed, rest


def _recipe(name: str) -> dict:
    if name not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}; got {name!r}")
    return RECIPES[name]
