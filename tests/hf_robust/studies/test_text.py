"""Runs on texts: exact over batches, processes and kills, loaded by transformers, refused in one line."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from hf_robust.studies.arguments import DataArguments, ExperimentArguments, ModelArguments, check_arguments
from hf_robust.studies.label_errors import find_label_errors
from hf_robust.studies.publish import RUN_FILES, read_run, reproducing_command, run_card
from hf_robust.studies.run import run_experiment
from tests.hf_robust.studies.test_own_images import KILLED, TRAIN
from tests.hf_robust.texts import save_bert, sentences, with_wrong, write_csv
from tests.processes import run_process

COUNT = 180  # a quarter is held out: 135 are two steps of 64 and one of 7
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sentences with 30 % wrong topics, and a model with dropout and one without."""
    folder = tmp_path_factory.mktemp("texts")
    texts, topics = sentences(COUNT)
    write_csv(folder / "data.csv", {"words": texts, "label": with_wrong(topics, 0.3), "clean_label": topics})
    write_csv(folder / "clean.csv", {"words": texts, "label": topics})
    save_bert(folder / "bert", texts)
    save_bert(folder / "plain", texts, **NO_DROPOUT)
    return folder


def flags(folder, model="bert", loss="elr", **changes):
    words = {
        "dataset": folder / "data.csv", "text_column": "words", "validation_split": 0.25, "model": folder / model,
        "loss": loss, "optim": "adamw_torch", "learning_rate": 1e-3, "num_train_epochs": 2, "report_to": "none",
    } | changes  # fmt: skip
    return [str(word) for name, value in words.items() for word in (f"--{name}", value)]


def run(output, words, processes=1, kill_at=None, status=0):
    words = [*words, "--output_dir", output, "--use_cpu"]
    words += ["--ddp_backend", "gloo"] if processes > 1 else []
    done = run_process(TRAIN if kill_at is None else KILLED, *words, processes=processes, KILL_AT=str(kill_at))
    assert done.returncode == status, done.stderr[-3000:]
    return done


def difference(one, other):
    one, other = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert one.keys() == other.keys()
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


@pytest.mark.slow
def test_batches_and_processes_change_nothing(tmp_path, folder):
    # Adam would make whole steps of the rounding of gradients that are zero, as those of the keys' biases.
    words = flags(folder, "plain", optim="sgd", learning_rate=0.05)
    run(tmp_path / "a", [*words, "--per_device_train_batch_size", "64"])
    run(tmp_path / "b", [*words, "--per_device_train_batch_size", "16", "--gradient_accumulation_steps", "4"])
    run(tmp_path / "c", [*words, "--per_device_train_batch_size", "32"], processes=2)
    assert difference(tmp_path / "a", tmp_path / "b") < 2e-5
    assert difference(tmp_path / "a", tmp_path / "c") < 2e-5
    start = load_file(folder / "plain" / "model.safetensors")
    moved = [
        (start[name] - trained).abs().max() for name, trained in load_file(tmp_path / "a/model.safetensors").items()
    ]
    assert max(moved) > 1e-3
    losses = [json.loads((tmp_path / name / "results.json").read_text())["history"][-1] for name in "abc"]
    for other in losses[1:]:
        assert other["test_accuracy"] == losses[0]["test_accuracy"]
        assert other["train_memorised"] == pytest.approx(losses[0]["train_memorised"], abs=0.03)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_last_bit(tmp_path, folder):
    words = [*flags(folder), "--per_device_train_batch_size", "32", "--save_strategy", "steps", "--save_steps", "1"]
    run(tmp_path / "d", words)
    run(tmp_path / "e", words, kill_at=6, status=-9)
    run(tmp_path / "e", [*words, "--resume_from_checkpoint", "last", "--dataloader_num_workers", "1"])
    assert difference(tmp_path / "d", tmp_path / "e") == 0
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in "de"]
    assert results[0]["history"] == results[1]["history"] and results[0]["noise"] == results[1]["noise"]


def arguments(folder, output, data=None, loss="gce", **changes):
    data = {"dataset": str(folder / "data.csv"), "text_column_name": ["words"], "validation_split": 0.25} | (
        data or {}
    )
    args = ExperimentArguments(
        **{
            "output_dir": str(output), "use_cpu": True, "loss": loss, "optim": "adamw_torch", "learning_rate": 1e-3,
            "num_train_epochs": 6, "per_device_train_batch_size": 16, "report_to": "none", "disable_tqdm": True,
        } | changes
    )  # fmt: skip
    return DataArguments(**data), ModelArguments(model=str(folder / "bert")), args


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "run"
    return output, run_experiment(*arguments(folder, output))


def test_a_run_measures_what_it_does_of_images(trained, folder):
    output, results = trained
    last = results["history"][-1]
    assert results["label_names"] == ["cooking", "sport"] and results["train_images"] == 135
    assert {"train_memorised", "train_recovered", "train_separation_auc", "test_accuracy"} <= last.keys()
    assert results["noise"]["rate"] == pytest.approx(0.3, abs=0.03) and "test_labels" not in results["noise"]
    settings = json.loads((output / "settings.json").read_text())
    assert settings["text_column_name"] == ["words"] and settings["label_column_name"] == "label"
    assert not {"max_seq_length", "resolution"} & settings.keys() and settings["augmentation"] == "none"


def test_what_was_saved_is_loaded_by_transformers(trained, folder):
    output, results = trained
    classify = pipeline("text-classification", model=str(output))
    texts, _ = sentences(6, seed=5)
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(output),
        AutoTokenizer.from_pretrained(output),
    )
    with torch.no_grad():
        logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    for found, row in zip(classify(texts), logits.softmax(-1), strict=True):
        assert found["label"] == results["label_names"][int(row.argmax())]
        assert found["score"] == pytest.approx(row.max().item(), abs=1e-6)
    assert model.config.problem_type == "single_label_classification"
    scored = run_experiment(
        *arguments(folder, output.parent / "score", do_train=False)[:1],
        ModelArguments(model=str(output)),
        arguments(folder, output.parent / "score", do_train=False)[2],
    )
    assert scored["accuracy"]["last"] == results["accuracy"]["last"]


def test_the_card_is_of_texts_and_its_command_makes_the_run_again(trained):
    output, _ = trained
    results = read_run(output / "results.json")
    card = run_card([results], "someone/topics")
    assert "pipeline_tag: text-classification" in card and 'pipeline("text-classification", "someone/topics")' in card
    assert "135 samples" in card and "image-classification" not in card
    command = reproducing_command(results["settings"], "runs/again", results["hardware"])
    assert "--text_column_name words" in command and "--validation_split 0.25" in command
    assert "--augmentation" not in command and "--label_column_name" not in command
    pushed = {file.name for pattern in RUN_FILES for file in output.glob(pattern)}
    assert {"tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors"} <= pushed


def test_label_errors_are_cleanlabs_own(tmp_path, folder):
    from cleanlab.filter import find_label_issues

    data, model, args = arguments(folder, tmp_path / "found", num_train_epochs=3)
    results = find_label_errors(data, model, args, 3, save_cleaned=str(tmp_path / "cleaned"))
    given, probabilities = (np.load(tmp_path / f"found/{name}.npy") for name in ("labels", "pred_probs"))
    ranked = find_label_issues(given, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    rows = json.loads((tmp_path / "found/label_errors.json").read_text())
    texts, topics = sentences(COUNT)
    assert [row["index"] for row in rows] == ranked.tolist() and len(given) == COUNT
    assert [row["text"] for row in rows] == [texts[place] for place in ranked]
    wrong = with_wrong(topics, 0.3)
    assert [row["is_flipped"] for row in rows] == [wrong[place] != topics[place] for place in ranked]
    assert not (tmp_path / "found/label_errors.png").exists() and "file" not in rows[0]
    assert results["label_errors"]["found"] == len(rows)

    import datasets

    cleaned = datasets.load_dataset(str(tmp_path / "cleaned"), split="train")
    kept = np.setdiff1d(np.arange(COUNT), ranked)
    assert cleaned["words"][:] == [texts[place] for place in kept] and cleaned["index"][:] == kept.tolist()


def test_noise_on_clean_labels_and_a_short_length(tmp_path, folder):
    clean = {"dataset": str(folder / "clean.csv"), "noise": "symmetric_40", "max_seq_length": 8}
    results = run_experiment(*arguments(folder, tmp_path / "run", clean, num_train_epochs=1))
    assert results["noise"]["rate"] == pytest.approx(0.4, abs=0.01)
    assert results["settings"]["max_seq_length"] == 8 and results["settings"]["noise"] == "symmetric_40"


@pytest.mark.parametrize(
    "data, model, loss, message",
    [
        ({"augmentation": "crop"}, None, "ce", "augmentation='crop' is of images"),
        ({"resolution": 32}, None, "ce", "resolution=32 is of images"),
        ({"skip_corrupt": True}, None, "ce", "skip_corrupt=True is of images"),
        ({"keep_in_memory": False}, None, "ce", "keep_in_memory=False is of images"),
        ({"noise": "instance_40"}, None, "ce", "noise='instance_40' looks at the pixels of images; texts have none"),
        ({"text_column_name": ["a", "b", "c"]}, None, "ce", "text_column_name must be one column or two"),
        ({"text_column_name": None, "max_seq_length": 9}, None, "ce", "max_seq_length=9 is of texts"),
        ({"max_seq_length": 0}, None, "ce", "max_seq_length must be 1 or more"),
        ({"dataset": "digits"}, None, "ce", "dataset='digits' are images"),
        ({}, None, "gjs", "two augmented views of an image; texts have none"),
        ({}, "cnn_small", "ce", "model='cnn_small' takes images"),
        ({"max_seq_length": 33}, None, "ce", "max_seq_length must be at most 32"),
        ({"text_column_name": ["nosuch"]}, None, "ce", "no column 'nosuch'"),
    ],
)
def test_what_texts_have_not_is_one_line(tmp_path, folder, data, model, loss, message):
    with pytest.raises(ValueError, match=message) as raised:
        data, named, args = arguments(folder, tmp_path / "run", data, loss=loss)
        run_experiment(data, named if model is None else ModelArguments(model=model), args)
    assert "\n" not in str(raised.value) and not list(tmp_path.glob("run/*.json"))


def test_features_are_of_images(tmp_path, folder):
    data, model, args = arguments(folder, tmp_path / "run")
    with pytest.raises(ValueError, match="features='x' are of images"):
        find_label_errors(data, model, args, features="x")


def test_a_model_without_a_tokenizer_or_without_padding(tmp_path, folder):
    data, _, args = arguments(folder, tmp_path / "run")
    network = AutoModelForSequenceClassification.from_pretrained(folder / "bert")
    network.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="has no tokenizer: save one"):
        run_experiment(data, ModelArguments(model=str(tmp_path / "bare")), args)
    tokenizer = AutoTokenizer.from_pretrained(folder / "bert")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="has no token for padding"):
        run_experiment(data, ModelArguments(model=str(tmp_path / "bare")), args)
    tokenizer.pad_token = "[PAD]"
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"has \d+ tokens, the model knows \d+: they do not belong"):
        run_experiment(data, ModelArguments(model=str(tmp_path / "bare")), args)


def test_a_head_of_other_classes_is_drawn_afresh(tmp_path, folder):
    texts, topics = sentences(60)
    write_csv(tmp_path / "three.csv", {"words": texts, "label": [*topics[:-1], "art"]})
    data, model, args = arguments(
        folder, tmp_path / "run", {"dataset": str(tmp_path / "three.csv"), "test_split_name": "train"}
    )
    check_arguments(data, model, args)
    results = run_experiment(
        DataArguments(dataset=str(tmp_path / "three.csv"), text_column_name=["words"], test_split_name="train"),
        model, args,
    )  # fmt: skip
    assert results["label_names"] == ["art", "cooking", "sport"]
