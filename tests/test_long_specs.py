"""Specs of hundreds of kB, of a broken script or of a stranger: the error that refuses one does not repeat it."""

import pytest

from hf_common.arguments import parse_overrides
from hf_dit import DiTModel
from hf_dit.attention.spec import make_attn_processors
from hf_dit.training.arguments import DiTTrainingArguments, model_overrides
from hf_dit.training.arguments import ModelArguments as DiTModelArguments
from hf_robust.losses import get_loss, parse_loss_spec, published_spec
from hf_robust.models import load_model
from hf_robust.noise.spec import NoiseSpec
from hf_robust.studies.arguments import DataArguments, matrix_source

LENGTH = 200_000
SPECS = [
    "x" * LENGTH, "ce+" * (LENGTH // 3), "gce(q=" + "9" * LENGTH + ")", "1" * LENGTH + "*ce", "(" * LENGTH,
    "\n" * LENGTH,
    "na7*" + "1" * LENGTH, "na7," * (LENGTH // 4), "swa" + "9" * LENGTH, "num_layers=" + "[" * LENGTH,
    "num_layers=" + "9" * 9000, "num_layers=" + "[" * 9000, "a," * (LENGTH // 2), "symmetric_" + "9" * LENGTH,
]  # fmt: skip
READERS = {
    "loss": parse_loss_spec,
    "module": get_loss,
    "published": lambda spec: published_spec(spec, "cifar10"),
    "published for": lambda spec: published_spec("ce", spec),
    "noise": NoiseSpec.parse,
    "noise of a run": lambda spec: DataArguments(dataset="digits", noise=spec),
    "augmentation": lambda spec: DataArguments(dataset="digits", augmentation=spec),
    "matrix": matrix_source,
    "classifier": lambda spec: load_model(spec, num_labels=3),
    "attention": lambda spec: make_attn_processors(spec, 4),
    "size": DiTModel.from_name,
    "overrides": lambda spec: parse_overrides(spec, ["num_layers"], strings=False),
    "overrides of a size": model_overrides,
    "model with overrides": lambda spec: DiTModelArguments(model=spec, config_overrides="num_layers=1"),
    "learning rate": lambda spec: DiTTrainingArguments(lr_scheduler=spec),
}


@pytest.mark.parametrize("name", READERS)
def test_a_long_spec_is_cut_in_the_error(name):
    for spec in SPECS:
        with pytest.raises(ValueError) as caught:
            READERS[name](spec)
        assert len(str(caught.value)) <= 700, spec[:20]  # what is allowed may take some lines
