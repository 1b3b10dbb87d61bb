"""Someone's own sentences with labels in words, from a table to the Hub and back."""

from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from hf_robust.studies.arguments import DataArguments, ExperimentArguments, ModelArguments
from hf_robust.studies.run import run_experiment
from tests.hf_robust.texts import TOPICS, save_bert, sentences, write_csv

REPO = "user/topics"


def test_a_classifier_of_texts_comes_back_from_the_hub_with_its_words(hub, tmp_path):
    texts, topics = sentences(200)
    write_csv(tmp_path / "sentences.csv", {"sentence": texts, "topic": topics})
    save_bert(tmp_path / "bert", texts)
    data = DataArguments(
        dataset=str(tmp_path / "sentences.csv"),
        text_column_name=["sentence"],
        label_column_name="topic",
        validation_split=0.2,
    )
    args = ExperimentArguments(
        output_dir=str(tmp_path / "run"), loss="gce", optim="adamw_torch", learning_rate=2e-3, num_train_epochs=8,
        per_device_train_batch_size=32, use_cpu=True, disable_tqdm=True, report_to="none", push_to_hub=True,
        hub_model_id=REPO,
    )  # fmt: skip
    run_experiment(data, ModelArguments(model=str(tmp_path / "bert")), args)

    model = AutoModelForSequenceClassification.from_pretrained(REPO)
    assert model.config.id2label == dict(enumerate(sorted(TOPICS)))
    assert model.config.label2id == {name: place for place, name in enumerate(sorted(TOPICS))}
    classify = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(REPO))
    local = pipeline("text-classification", model=str(tmp_path / "run"))
    others, expected = sentences(60, seed=9)
    found = classify(others)
    assert found == local(others) == pipeline("text-classification", model=REPO)(others)
    assert {each["label"] for each in found} == set(TOPICS)
    assert sum(each["label"] == topic for each, topic in zip(found, expected, strict=True)) > 45
    files = hub.server.repo("model", REPO).files
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(files)
    assert "text-classification" in (card := files["README.md"].decode())
    assert str(tmp_path) not in card and not any(str(tmp_path).encode() in content for content in files.values())
