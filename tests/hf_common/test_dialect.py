"""The same words mean the same in every command."""

import pytest

from hf_common.arguments import parse_overrides
from hf_dit.training.arguments import DiTTrainingArguments, model_overrides
from hf_robust.studies.arguments import ExperimentArguments
from hf_robust.studies.flags import DataArguments, ModelArguments
from hf_robust.studies.sweep import Run, refuse_replaced_flags
from hf_robust.training.recipes import RecipeParser

WORDS = {"last": "last", "latest": "last", "true": "last", "True": "last", "false": None, None: None, "a/b": "a/b"}


@pytest.mark.parametrize("word", WORDS)
def test_what_to_resume_from(word, tmp_path):
    robust = ExperimentArguments(output_dir=str(tmp_path), resume_from_checkpoint=word, use_cpu=True)
    dit = DiTTrainingArguments(output_dir=str(tmp_path), resume_from_checkpoint=word)
    assert robust.resume_from_checkpoint == dit.resume_from_checkpoint == WORDS[word]
    assert ("resume_from_checkpoint" in robust.not_default) == (WORDS[word] is not None)


@pytest.mark.parametrize("word", WORDS)
def test_a_sweep_resumes_anyway_and_takes_no_folder(word, tmp_path, capsys):
    parser = RecipeParser((DataArguments, ModelArguments, ExperimentArguments))
    line = ["--output_dir", str(tmp_path), "--use_cpu", *([] if word is None else ["--resume_from_checkpoint", word])]
    run = Run(*parser.parse_args_into_dataclasses(line))
    if word != "a/b":
        refuse_replaced_flags(parser, run)
        return
    with pytest.raises(SystemExit):
        refuse_replaced_flags(parser, run)
    assert "--resume_from_checkpoint: a sweep takes the same command again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("dropout=0.1,", {"dropout": 0.1}),
        (" num_layers=4 , attention_bias=False ", {"num_layers": 4, "attention_bias": False}),
        ("attention_bias=TRUE", {"attention_bias": True}),
        ("mlp_ratio=2.5,dropout=0", {"mlp_ratio": 2.5, "dropout": 0}),
        (",", {}),
        (None, {}),
    ],
)
def test_overrides_are_read_alike(text, values):
    assert parse_overrides(text) == model_overrides(text) == values


def test_commas_in_brackets_divide_nothing():
    assert parse_overrides("depths=[1,2],dropout=0") == {"depths": [1, 2], "dropout": 0}
    with pytest.raises(ValueError, match=r"num_layers must be a whole number, got \[1, 2\]"):
        model_overrides("num_layers=[1,2],dropout=0")
