import json

import pytest

from hf_common.arguments_file import with_file
from hf_robust.studies.arguments import DataArguments, ExperimentArguments, ModelArguments
from hf_robust.training.recipes import RecipeParser

CONTENT = {
    "noise": "symmetric_40", "loss": "nce + rce", "num_train_epochs": 3, "learning_rate": 0.02, "use_cpu": True,
    "class_weights": [1, 2.5], "lr_scheduler_kwargs": {"a": 1}, "model": None,
}  # fmt: skip
YAML = """
noise: symmetric_40
loss: nce + rce
num_train_epochs: 3
learning_rate: 0.02
use_cpu: true
class_weights: [1, 2.5]
lr_scheduler_kwargs: {a: 1}
model:
"""


@pytest.mark.parametrize("name", ["config.json", "config.yaml", "config.yml"])
def test_a_file_is_the_flags_that_it_holds_and_flags_win(name, tmp_path):
    path = tmp_path / name
    path.write_text(json.dumps(CONTENT) if name.endswith("json") else YAML)
    words = with_file([str(path), "--loss", "gce", "--output_dir", str(tmp_path)])
    parser = RecipeParser((DataArguments, ModelArguments, ExperimentArguments))
    data, model, args = parser.parse_args_into_dataclasses(words)
    assert (str(data.noise), model.model, args.loss) == ("symmetric_40", "cnn_small", "gce")
    assert (args.num_train_epochs, args.learning_rate, args.use_cpu) == (3, 0.02, True)
    assert args.class_weights == [1.0, 2.5] and args.lr_scheduler_kwargs == {"a": 1}


def test_without_a_file_nothing_changes():
    for words in ([], ["--loss", "ce"], ["--output_dir", "a.json"], ["digits"]):
        assert with_file(words) == words


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "[1]", "must hold an object of flags, holds list"),
        ("a.json", "{", "is no JSON"),
        ("a.yaml", "- 1", "must hold an object of flags, holds list"),
        ("a.yaml", "a: [", "is no YAML"),
        ("a.yaml", "", "must hold an object of flags, holds NoneType"),
        ("a.yaml", "!!python/object/apply:os.system ['echo']", "is no YAML"),
        ("a.json", '{"--loss": "ce"}', "without hyphens; got '--loss'"),
        (
            "a.yaml",
            "seed: 2026-01-01",
            "seed must be a text, a number, true, false, a list or an object; got datetime.date",
        ),
        ("a.yaml", "seed: !!set {1}", "seed must be a text, a number"),
        (
            "a.yaml",
            "seed: [!!binary aGk=]",
            "seed must be a text, a number, true, false, a list or an object; got b'hi'",
        ),
        ("a.yaml", "loss: ce\nloss: gce", "'loss' stands there twice"),
        ("a.json", '{"loss": "ce", "loss": "gce"}', "'loss' stands there twice"),
        ("a.yaml", "1: ce", "without hyphens; got 1"),
    ],
)
def test_another_file_is_named(name, content, said, tmp_path):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError) as caught:
        with_file([str(path)])
    assert str(caught.value).startswith(f"{path}: ") and said in str(caught.value)
    with pytest.raises(OSError, match="nowhere.yaml"):
        with_file([str(tmp_path / "nowhere.yaml")])


@pytest.mark.parametrize("name", ["a.json", "a.yaml"])
def test_a_mark_of_the_order_of_bytes_is_no_part_of_it(name, tmp_path):
    (tmp_path / name).write_text('{"loss": "ce"}', encoding="utf-8-sig")
    assert with_file([str(tmp_path / name)]) == ["--loss", "ce"]
