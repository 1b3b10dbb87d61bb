import ast
import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    IntervalStrategy,
)

from hf_common.files import write_json
from hf_common.hub import push_folder
from hf_robust import RobustTrainer, RobustTrainingArguments
from hf_robust.data.load import load_image_splits
from hf_robust.data.transform import ImageTransform
from hf_robust.models import MODELS, load_model, make_image_processor
from hf_robust.reports.card import MODEL_FILES
from hf_robust.studies.arguments import DataArguments, ExperimentArguments, ModelArguments
from hf_robust.studies.run import run_experiment
from hf_robust.studies.sweep import run_sweep
from tests import ROOT

TRAIN = ROOT / "scripts" / "train_robust.py"
FILES = {
    ".gitattributes", "README.md", "config.json", "model.safetensors", "cnn_small.py", "preprocessor_config.json",
    "results.json", "curves.png", "noise.png", "loss_histograms.png",
}  # fmt: skip
SMALL = {"noise": "symmetric_40", "max_train_samples": 80, "max_test_samples": 40}
REPO = "user/digits-sym40"


def arguments(folder, **changes):
    return ExperimentArguments(
        output_dir=str(folder), **({"num_train_epochs": 1, "use_cpu": True, "disable_tqdm": True} | changes)
    )


def run(folder, data=None, **changes):
    changes = {"push_to_hub": True, "hub_model_id": REPO} | changes
    return run_experiment(DataArguments(**(SMALL | (data or {}))), ModelArguments(), arguments(folder, **changes))


def saved(folder, name):
    """A network whose batch norms have seen something, saved with its processor."""
    torch.manual_seed(0)
    model = load_model(name, num_labels=3, id2label={0: "ant", 1: "bee", 2: "cow"})
    model.train()(torch.randn(8, 3, 32, 32))
    model.eval().save_pretrained(folder)
    make_image_processor([0.5] * 3, [0.25] * 3, 32).save_pretrained(folder)
    return model


def snippet(card):
    return card.split("## How to use")[1].split("```python\n")[1].split("```")[0]


def test_networks_load_from_the_hub_with_and_without_this_package(hub, tmp_path):
    pixels = torch.randn(2, 3, 32, 32)
    save_file({"pixels": pixels}, tmp_path / "pixels.safetensors")
    models = {}
    for name in MODELS:
        models[name] = saved(tmp_path / name, name)
        push_folder(tmp_path / name, f"user/{name}", names=MODEL_FILES)
        there = hub.server.repo("model", f"user/{name}").files
        code = [path for path in there if path.endswith(".py")]
        assert code == [f"{models[name].config.model_type}.py"]
        imported = {
            (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
            for node in ast.walk(ast.parse(there[code[0]]))
            if isinstance(node, (ast.Import, ast.ImportFrom))
        }
        assert imported - sys.stdlib_module_names == {"torch", "transformers"}

    out = hub.run(f"""
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification
pixels = load_file({str(tmp_path / "pixels.safetensors")!r})["pixels"]
logits = {{}}
for name in {list(MODELS)}:
    try:
        AutoModelForImageClassification.from_pretrained("user/" + name, trust_remote_code=False)
        print("loaded without the flag")
    except ValueError as error:
        assert "trust_remote_code" in str(error), error
    model = AutoModelForImageClassification.from_pretrained("user/" + name, trust_remote_code=True)
    logits[name] = model(pixels).logits
    model.save_pretrained("again/" + name)  # as one who goes on from it would
    again = AutoModelForImageClassification.from_pretrained("again/" + name, trust_remote_code=True)
    logits[name + " again"] = again(pixels).logits
    print(type(model).__module__.split(".")[0], model.config.id2label[2])
save_file(logits, {str(tmp_path / "logits.safetensors")!r})
""")  # fmt: skip
    assert out.split() == ["transformers_modules", "cow"] * len(MODELS)
    loaded = load_file(tmp_path / "logits.safetensors")
    for name, model in models.items():
        with torch.no_grad():
            wanted = model(pixels).logits
        for key in (name, f"{name} again"):
            torch.testing.assert_close(loaded[key], wanted)
        for flag in (None, True):  # here the package's own code is taken
            here = AutoModelForImageClassification.from_pretrained(f"user/{name}", trust_remote_code=flag)
            assert type(here) is type(model)
            torch.testing.assert_close(here(pixels).logits, wanted)


def test_a_run_is_pushed_with_its_card_and_nothing_more(hub, tmp_path):
    results = run(tmp_path / "run", hub_private_repo=True, save_total_limit=None)
    (tmp_path / "run" / "notes.py").write_text("secret = 1")
    repository = hub.server.repo("model", REPO)
    assert set(repository.files) == FILES and repository.private
    assert len(repository.commits) == 2  # the Hub's own first one, and one of ours
    assert repository.files["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    published = json.loads(repository.files["results.json"])
    assert published == results
    assert not [name for name, content in repository.files.items() if content[:2] == b"PK" or content[:1] == b"\x80"]

    card = ModelCard.load(REPO)
    card.validate()
    (model,) = card.data.eval_results[:1]
    assert model.metric_value == pytest.approx(results["accuracy"]["last"], abs=1e-6)
    assert (model.dataset_type, model.dataset_config) == ("digits", "symmetric_40")
    printed = hub.run(snippet(card.text))
    assert [line.split(":")[0] in results["label_names"] for line in printed.splitlines()] == [True] * 3

    hub.server.requests.clear()
    head = repository.head
    assert run(tmp_path / "run") == results  # finished: nothing is trained, nothing is sent
    assert hub.server.uploaded_bytes() == 0 and repository.head == head
    run(tmp_path / "run", hub_revision="v2", hub_private_repo=None)
    assert set(repository.find("v2").files) == FILES and repository.head == head


def test_a_push_says_where_softmax_is_not_the_loss_s_link(hub, tmp_path, caplog):
    run(tmp_path / "plain")
    assert "softmax" not in caplog.text
    run(tmp_path / "tempered", loss="bi_tempered", hub_model_id="user/tempered")
    assert "the tempered softmax exp_t2(z - lambda) for the model's probabilities" in caplog.text
    exec(snippet(ModelCard.load("user/tempered").text), scope := {})
    logits = scope["logits"][0].double()
    # 1 / (1 + 0.2 (l - z))^5 of all classes add up to 1; l by bisection
    low, high = logits.max(), logits.max() + 10
    for _ in range(100):
        middle = (low + high) / 2
        p = (1 + 0.2 * (middle - logits)) ** -5
        low, high = (middle, high) if p.sum() > 1 else (low, middle)
    torch.testing.assert_close(scope["probabilities"].double(), p, rtol=1e-5, atol=1e-7)


def test_a_push_that_failed_is_made_good_by_the_same_call_without_training_again(hub, tmp_path):
    fault = hub.server.fail("POST", "/commit/", status=503, headers={"Retry-After": "0"}, times=99)
    with pytest.raises(ConnectionError, match=f"{REPO}.*failed 5 times"):
        run(tmp_path / "run")
    assert set(hub.server.repo("model", REPO).files) <= {".gitattributes"}
    written = (tmp_path / "run" / "results.json").stat().st_mtime_ns
    fault.times = 0
    with pytest.raises(ValueError, match="holds this very run, finished.*--push_to_hub"):
        run(tmp_path / "run", push_to_hub=False)
    with pytest.raises(ValueError, match=r"holds another run: loss='ce'"):
        run(tmp_path / "run", loss="ce")
    run(tmp_path / "run")
    assert set(hub.server.repo("model", REPO).files) == FILES
    assert (tmp_path / "run" / "results.json").stat().st_mtime_ns == written


def test_the_script_on_two_processes_makes_one_commit(hub, tmp_path):
    command = [
        "torchrun", "--standalone", "--nproc_per_node", "2", TRAIN, "--noise", "symmetric_40", "--max_train_samples",
        "80", "--max_test_samples", "40", "--num_train_epochs", "1", "--use_cpu", "--ddp_backend", "gloo",
        "--output_dir", tmp_path / "run", "--push_to_hub", "--hub_model_id", REPO,
    ]  # fmt: skip
    env = hub.env(OMP_NUM_THREADS="1", PATH=f"{Path(sys.executable).parent}:/usr/bin:/bin")
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"on the Hub: {REPO}" in done.stdout
    repository = hub.server.repo("model", REPO)
    assert set(repository.files) == FILES and len(repository.commits) == 2
    assert "torchrun --nproc_per_node 2 scripts/train_robust.py" in repository.files["README.md"].decode()


def test_no_path_of_this_machine_and_no_token_is_published(hub, tmp_path):
    saved(tmp_path / "start", "cnn_small")
    np.save(tmp_path / "matrix.npy", np.full((10, 10), 0.04) + 0.6 * np.eye(10))
    data = DataArguments(**SMALL)
    args = arguments(
        tmp_path / "run", push_to_hub=True, hub_model_id=REPO, loss="forward",
        transition_matrix=str(tmp_path / "matrix.npy"), hub_token="hf_user",
    )  # fmt: skip
    run_experiment(data, ModelArguments(model=str(tmp_path / "start")), args)
    files = hub.server.repo("model", REPO).files
    for name, content in files.items():
        for private in (tmp_path, Path.home(), ROOT, "hf_user"):
            assert str(private).encode() not in content, name
    assert json.loads(files["results.json"])["settings"]["model"] == "start"
    card = files["README.md"].decode()
    assert "--model start" in card and "The model `start` was a folder" in card
    assert "--transition_matrix matrix.json" in card and "sha256:" in card


def test_a_model_from_the_hub_is_trained_on_and_pushed_with_its_own_code(hub, tmp_path):
    saved(tmp_path / "start", "cnn_small")
    push_folder(tmp_path / "start", "user/start", names=MODEL_FILES)
    run_experiment(
        DataArguments(**SMALL),
        ModelArguments(model="user/start"),
        arguments(tmp_path / "run", push_to_hub=True, hub_model_id=REPO),
    )
    files = hub.server.repo("model", REPO).files
    assert set(files) == FILES
    assert json.loads(files["config.json"])["auto_map"]["AutoConfig"] == "cnn_small.CnnSmallConfig"
    card = ModelCard.load(REPO)
    assert card.data.base_model == "user/start" and "fine-tuned" in card.text and "--model user/start" in card.text


def test_code_that_is_not_ours_is_pushed_with_what_it_imports(hub, tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    (start / "pooled.py").write_text("def pooled(x):\n    return x.mean((2, 3))\n")
    (start / "modeling_linear.py").write_text(
        """
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput
from .pooled import pooled
class LinearConfig(PreTrainedConfig):
    model_type = "linear_of_another"
class Linear(PreTrainedModel):
    config_class = LinearConfig
    main_input_name = "pixel_values"
    def __init__(self, config):
        super().__init__(config)
        self.linear = torch.nn.Linear(3, config.num_labels)
        self.post_init()
    def forward(self, pixel_values):
        return ImageClassifierOutput(logits=self.linear(pooled(pixel_values)))
"""
    )
    auto_map = {
        "AutoConfig": "modeling_linear.LinearConfig",
        "AutoModelForImageClassification": "modeling_linear.Linear",
    }
    config = {"model_type": "linear_of_another", "auto_map": auto_map, "id2label": {i: str(i) for i in range(10)}}
    write_json(start / "config.json", config)
    save_file({"linear.weight": torch.zeros(10, 3), "linear.bias": torch.zeros(10)}, start / "model.safetensors")
    make_image_processor([0.5] * 3, [0.25] * 3, 32).save_pretrained(start)
    model = ModelArguments(model=str(start), trust_remote_code=True)
    run_experiment(DataArguments(**SMALL), model, arguments(tmp_path / "run", push_to_hub=True, hub_model_id=REPO))
    files = hub.server.repo("model", REPO).files
    assert set(files) == FILES - {"cnn_small.py"} | {"modeling_linear.py", "pooled.py"}
    exec(snippet(ModelCard.load(REPO).text), scope := {})
    assert type(scope["model"]).__name__ == "Linear"


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"hub_model_id": None}, ValueError, "hub_model_id.*user/name.*None"),
        ({"hub_model_id": "digits"}, ValueError, "user/name.*digits"),
        ({"hub_model_id": "user/a-dataset"}, ValueError, "is a dataset"),
        ({"hub_model_id": "user/other"}, ValueError, "training_args.bin"),
        ({"hub_model_id": "someone/digits"}, PermissionError, "someone/digits.*'user'"),
        ({"hub_token": "hf_wrong"}, PermissionError, "token"),
        ({"hub_token": "hf_read"}, PermissionError, "can't write"),
    ],
)
def test_what_can_not_be_pushed_is_refused_before_anything_else(hub, tmp_path, changes, error, says):
    hub.server.create_repo("dataset", "user/a-dataset")
    hub.server.create_repo("model", "user/other", files={"training_args.bin": b"PK", "config.json": b"{}"})
    with pytest.raises(error, match=says):
        run(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()
    assert {request.method for request in hub.server.requests} <= {"GET", "HEAD"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hub_strategy": "every_save"}, "hub_strategy='every_save'.*'end'"),
        ({"hub_strategy": "checkpoint"}, "hub_strategy='checkpoint'"),
        ({"hub_always_push": True}, "hub_always_push=True"),
    ],
)
def test_flags_that_would_push_checkpoints_are_refused(tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        RobustTrainingArguments(output_dir=str(tmp_path), **changes)
    args = RobustTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    args.set_push_to_hub("user/own")  # its default is to push at every save
    with pytest.raises(ValueError, match="hub_strategy='every_save'"):
        RobustTrainer(model=load_model("cnn_small", num_labels=3), args=args)


def test_a_model_that_was_only_scored_is_not_pushed(hub, tmp_path):
    saved(tmp_path / "start", "cnn_small")
    args = arguments(tmp_path / "run", push_to_hub=True, hub_model_id=REPO, do_train=False)
    with pytest.raises(ValueError, match="push_to_hub=True.*do_train=False"):
        run_experiment(DataArguments(), ModelArguments(model=str(tmp_path / "start")), args)
    assert hub.server.requests == []


def test_a_sweep_is_not_pushed_to_one_repository(tmp_path):
    with pytest.raises(ValueError, match="push_to_hub=True: a sweep"):
        run_sweep(
            ["ce"], ["symmetric_40"], ["cnn_small"], [0], DataArguments(**SMALL), ModelArguments(),
            arguments(tmp_path / "sweep", push_to_hub=True, hub_model_id=REPO),
        )  # fmt: skip
    assert not (tmp_path / "sweep").exists()


def test_a_script_of_ones_own_pushes_model_and_card(hub, tmp_path):
    splits = load_image_splits("digits", max_train_samples=64, max_test_samples=30)
    trainer = RobustTrainer(
        model=load_model("cnn_small", num_labels=10),
        args=RobustTrainingArguments(
            output_dir=str(tmp_path / "own"), loss="10*nce + 0.1*rce", num_train_epochs=1, use_cpu=True,
            eval_strategy="epoch", report_to="none", push_to_hub=True, hub_model_id="user/own",
        ),
        train_dataset=splits.train,
        eval_dataset=splits.test,
        processing_class=make_image_processor(*splits.train.channel_statistics(), 32),
        image_transform=ImageTransform(*splits.train.channel_statistics()),
    )  # fmt: skip
    (tmp_path / "own").mkdir(exist_ok=True)
    (tmp_path / "own" / "notes.py").write_text("secret = 1")
    trainer.train()
    assert not [request for request in hub.server.requests if request.method == "POST"]
    with pytest.raises(ValueError, match="blocking=False"):
        trainer.push_to_hub(blocking=False)
    trainer.push_to_hub(license="mit", tags="mine", dataset="my digits", dataset_args="symmetric_40")
    repository = hub.server.repo("model", "user/own")
    assert set(repository.files) == FILES - {"results.json", "curves.png", "noise.png", "loss_histograms.png"}
    card = ModelCard.load("user/own")
    card.validate()
    assert card.data.license == "mit" and "mine" in card.data.tags
    assert [result.dataset_config for result in card.data.eval_results] == ["symmetric_40"] * 2
    assert f"{100 * trainer.evaluate()['eval_accuracy']:.1f}" in card.text.split("## How to use")[0]
    assert "loss='10*nce + 0.1*rce'" in card.text and "log p_y / sum_k log p_k" in card.text
    assert "fine-tuned" not in card.text and "[](" not in card.text and str(tmp_path) not in card.content
    exec(snippet(card.text), scope := {})
    assert type(scope["model"]) is type(trainer.model)
    exec(card.text.split("## How to reproduce")[1].split("```python\n")[1].split("```")[0], scope)
    assert scope["args"].loss == trainer.args.loss and scope["args"].num_train_epochs == 1

    head = repository.head
    trainer.save_model()  # `Trainer`'s other way to push; the card says less, since it was not told
    assert repository.head != head and "my digits" not in repository.files["README.md"].decode()


def test_the_card_of_a_script_says_no_path_and_no_token_and_its_arguments_are_python(hub, tmp_path):
    (tmp_path / "accelerator.json").write_text("{}")
    splits = load_image_splits("digits", max_train_samples=64, max_test_samples=30)
    trainer = RobustTrainer(
        model=nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10)),
        args=RobustTrainingArguments(
            output_dir=str(tmp_path / "plain"), use_cpu=True, report_to="none", eval_strategy=IntervalStrategy.EPOCH,
            accelerator_config=str(tmp_path / "accelerator.json"), hub_model_id="user/plain", hub_token="hf_secret",
        ),
        train_dataset=splits.train,
        eval_dataset=splits.test,
    )  # fmt: skip
    trainer.create_model_card()
    card = (tmp_path / "plain" / "README.md").read_text()
    assert str(tmp_path) not in card and "hf_secret" not in card
    assert "eval_strategy='epoch'" in card and "accelerator_config='accelerator.json'" in card
    compile(card.split("## How to reproduce")[1].split("```python\n")[1].split("```")[0], "card", "exec")
    assert "0 classes" not in card and "model.config" not in card  # it has neither names of classes nor a config


def test_a_text_classifier_is_pushed_and_loads(hub, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]))
    tokenizer = BertTokenizer(vocab=str(tmp_path / "vocab.txt"))
    rows = datasets.Dataset.from_list([dict(tokenizer(word), label=i) for i, word in enumerate(["bad", "good"])] * 4)
    config = BertConfig(
        vocab_size=7, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=2
    )
    trainer = RobustTrainer(
        model=BertForSequenceClassification(config),
        args=RobustTrainingArguments(
            output_dir=str(tmp_path / "text"), loss="gce", num_train_epochs=1, use_cpu=True, hub_model_id="user/text",
            report_to="none",
        ),
        train_dataset=rows,
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    trainer.push_to_hub()
    files = hub.server.repo("model", "user/text").files
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files) and "training_args.bin" not in files
    card = ModelCard.load("user/text")
    card.validate()
    assert card.data.pipeline_tag == "text-classification" and "It was not measured." in card.text
    assert "LABEL_" in hub.run(snippet(card.text))
