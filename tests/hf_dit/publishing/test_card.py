"""The card of a trained DiT: every figure from the results, every command as the scripts take it."""

import copy
import json
import re
import shlex
from dataclasses import asdict

import pytest
from huggingface_hub import ModelCard
from transformers import HfArgumentParser

from evaluate_metrics.commands.evaluate_images import EvaluateArguments
from hf_dit.commands.sample import SampleArguments
from hf_dit.models.config import CHOICES
from hf_dit.publishing.card import dit_pipeline_card
from hf_dit.publishing.commands import NOT_OF_VALUES, sampling_command, scoring_command, training_command
from hf_dit.publishing.publish import published_results, read_scores
from hf_dit.publishing.scores import score_rows, told_apart
from hf_dit.publishing.words import DESIGN, attention_in_words, design_in_words, in_words
from hf_dit.training.arguments import DataArguments, DiTTrainingArguments, ModelArguments
from hf_dit.training.settings import settings_from_hub, settings_of_weights
from tests import ROOT

MEASURED = json.loads((ROOT / "model_cards/results/dit_landscapes.json").read_text())
RESULTS, STUDY = MEASURED["training"], MEASURED["study"]
SCORES = json.loads((ROOT / "model_cards/results/dit_landscapes_scores.json").read_text())
PICTURES = {"samples": ["samples.png"], "study": ["study.png"], "loss_curve": ["loss_curve.png"]}


def card(results=RESULTS, study=STUDY, scores=SCORES, pictures=PICTURES):
    return ModelCard(
        dit_pipeline_card(results, repo_id="user/landscapes", study=study, scores=scores, pictures=pictures)
    )


def changed(results=RESULTS, config=None, settings=None, **entries):
    """Other results: entries of the results, of their config and of their settings."""
    results = copy.deepcopy(results)
    results["config"].update(config or {})
    results["settings"].update(settings or {})
    return results | entries


def section(text, title):
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def words(command):
    """The flags of a command as a shell would give them to the script."""
    arguments = shlex.split(command.replace("\\\n", " "))
    return arguments[[word.endswith(".py") for word in arguments].index(True) + 1 :]


# --- objectives


@pytest.mark.parametrize(
    ("settings", "words_of_card", "scheduler", "papers"),
    [
        ({}, "noise prediction.", "DDPMScheduler", ["2006.11239", "2010.02502"]),
        (
            {"prediction_type": "v_prediction", "snr_gamma": 5.0, "rescale_betas_zero_snr": True},
            "v prediction, min-SNR weights of gamma 5, zero terminal SNR.",
            "DDPMScheduler",
            ["2202.00512", "2303.09556", "2305.08891"],
        ),
        (
            {"prediction_type": "flow", "flow_times": "logit_normal", "flow_logit_mean": 0.5, "flow_shift": 3.0},
            "the velocity of a straight path from noise to data (flow matching), times drawn `logit_normal`, "
            "logit_mean 0.5, shifted by 3.",
            "FlowMatchEulerDiscreteScheduler",
            ["2401.08740", "2403.03206"],
        ),
    ],
)
def test_the_card_says_what_was_learned(settings, words_of_card, scheduler, papers):
    text = str(card(changed(settings=settings)))
    assert f"- **Objective:** {words_of_card}\n" in text
    assert f"a `{scheduler}`" in text
    assert all(number in text for number in papers)
    assert ("2006.11239" in text) == (scheduler == "DDPMScheduler")


# --- commands


@pytest.mark.parametrize(
    ("flags", "processes", "hardware", "launcher"),
    [
        ("--dataset_name d", 1, "cpu (x86_64, 2 threads)", "accelerate launch scripts/"),
        (
            "--dataset_name 'user/my data' --random_flip --no_center_crop --no_use_ema --learning_rate 3e-5 "
            "--lr_scheduler cosine --max_grad_norm 1 --attention 'na7*11,full' --mixed_precision bf16 --seed 7",
            8, "NVIDIA H100", "accelerate launch --multi_gpu --num_processes 8 scripts/",
        ),
        (
            "--train_data_dir . --unconditional --resolution 64 --learn_sigma false --adam_beta2 0.95 --vae some/vae "
            "--config_overrides 'num_layers=4, dropout=0.1' --max_train_samples 500 --class_dropout_prob 0",
            2, "cpu (x86_64, 1 threads)", "torchrun --nproc_per_node 2 scripts/",
        ),
        (
            "--dataset_name d --learn_sigma false --objective flow --flow_times logit_normal --flow_logit_mean 0.5 "
            "--flow_shift 3 --optim adamw_torch_fused",
            1, "cpu (x86_64, 2 threads)", "accelerate launch scripts/",
        ),
        (
            "--dataset_name d --model some/pipeline --lora_rank 8 --lora_alpha 16 --objective v_prediction "
            "--snr_gamma 5 --rescale_betas_zero_snr --torch_compile",
            1, "cpu (x86_64, 2 threads)", "accelerate launch scripts/",
        ),
    ],
)  # fmt: skip
def test_the_command_has_the_settings_of_the_run(flags, processes, hardware, launcher):
    parser = HfArgumentParser((DataArguments, ModelArguments, DiTTrainingArguments))

    def settings_of(arguments, steps):
        data, model, args = parser.parse_args_into_dataclasses(arguments)
        batch = args.train_batch_size * args.gradient_accumulation_steps * processes
        return settings_of_weights(data, model, args, batch, args.mixed_precision or "no", steps), args

    given = [*shlex.split(flags), "--train_batch_size", "6", "--gradient_accumulation_steps", "4"]
    settings, _ = settings_of(given, 90)
    results = {"settings": settings, "steps": 90, "processes": processes, "hardware": hardware}
    command = training_command(json.loads(json.dumps(results)), "runs/a b")
    again, args = settings_of(words(command), 90)
    assert again == settings and args.max_train_steps == 90 and args.output_dir == "runs/a b"
    assert command.startswith(launcher) and args.use_cpu == command.startswith("torchrun")
    assert max(map(len, command.splitlines())) < 100


def test_the_commands_of_samples_and_scores_have_their_settings():
    sampling = HfArgumentParser(SampleArguments)
    others = {"guidance_interval": [100, 300], "cfg_channels": 3, "dtype": "bfloat16", "seed": 3}
    for settings in (STUDY["settings"], STUDY["settings"] | others):
        axes = STUDY["axes"] | {"schedulers": ["ddim", "dpmsolver++"], "attentions": ["na3*5,full"]}
        (args,) = sampling.parse_args_into_dataclasses(words(sampling_command(settings, axes, "a/b", "c d")))
        assert args.model_name_or_path == "a/b" and args.output_dir == "c d"
        assert [int(label) for label in args.class_labels] == settings["class_labels"]
        assert args.num_inference_steps == axes["steps"]
        for name in ("guidance_scales", "attentions", "schedulers"):
            assert getattr(args, name) == axes[name]
        for name in ("images_per_class", "seed", "dtype", "guidance_interval"):
            assert getattr(args, name) == settings[name]
        assert args.cfg_channels == str(settings["cfg_channels"])
    unconditional = STUDY["settings"] | {"class_labels": None}
    assert "--class_labels" not in sampling_command(unconditional, STUDY["axes"], "a", "b")

    scoring = HfArgumentParser(EvaluateArguments)
    flags = ["--predictions", "a b", "--references", "c", "--predictions_split", "test[:50%]"]
    for more in (
        [],
        ["--metrics", "kid", "--kid_subsets", "9", "--seed", "4", "--no_normalize", "--dtype", "bfloat16"],
        ["--encoders", "clip", "inception-clean", "--inception_weights", "w.pth", "--inception_sha256", "0a"],
    ):
        (wanted,) = scoring.parse_args_into_dataclasses(flags + more)
        (args,) = scoring.parse_args_into_dataclasses(words(scoring_command(asdict(wanted))))
        of_values = {name: value for name, value in asdict(wanted).items() if name not in NOT_OF_VALUES}
        assert asdict(args).items() >= of_values.items()


# --- what is measured


def test_the_scores_stand_in_the_table_and_in_the_model_index():
    text = card().text
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section(text, "Results").splitlines()
        if line.startswith(("| samples", "| *real"))
    ]
    assert [row[:4] for row in table] == [
        ["samples, ddim", "1", "50", "1,000"],
        ["samples, ddim", "2", "50", "1,000"],
        ["*real: landscapes test\\[:1000\\]*", "", "", "1,000"],
    ]
    entries = card().data.eval_results
    for row, one in zip(table, SCORES, strict=True):
        (score,) = one["scores"]
        assert row[4:] == [
            f"{score['cmmd_unbiased']:.{d}f}\u00a0±\u00a0{score['standard_error']:.{d}f}"
            for d in [3 if score["standard_error"] > 0.01 else 4]
        ] + [in_words(score["cmmd"], None), in_words(score["frechet_distance"], None)] + [
            in_words(score["fd_infinity"], score["fd_infinity_standard_error"])
        ]
        if one["sampling"] is None:
            continue
        own = [entry for entry in entries if entry.metric_args["guidance_scale"] == one["sampling"]["guidance_scale"]]
        assert {(entry.metric_type, entry.metric_name): entry.metric_value for entry in own} == {
            ("cmmd", "CMMD, unbiased"): pytest.approx(score["cmmd_unbiased"], rel=1e-4),
            ("cmmd", "CMMD, as published"): pytest.approx(score["cmmd"], rel=1e-4),
            ("frechet_distance", "Fréchet distance (FD)"): pytest.approx(score["frechet_distance"], rel=1e-4),
            ("fd_infinity", "FD, n → ∞"): pytest.approx(score["fd_infinity"], rel=1e-4),
        }
        for entry in own:
            assert entry.metric_args["encoder"] == "resnet20_encoder:encode"
            assert (entry.metric_args["n"], entry.metric_args["n_references"]) == (1000, 9136)
            assert (entry.dataset_type, entry.dataset_split) == ("landscapes", "train")
        assert own[0].metric_args["standard_error"] == pytest.approx(score["standard_error"], rel=1e-4)
        assert "standard_error" not in own[2].metric_args
    assert len(entries) == 8


def test_scores_of_the_fid_network_are_fids_and_every_encoder_has_its_row():
    scores = copy.deepcopy(SCORES)
    inception = {**scores[0]["scores"][0], "encoder": "inception", "kid": 0.0123, "notes": ["CMMD is not defined"]}
    for name in ("cmmd", "cmmd_unbiased", "standard_error"):
        del inception[name]
    scores[0]["scores"].append(inception)
    made = card(scores=scores)
    assert {(entry.metric_type, entry.metric_name) for entry in made.data.eval_results} >= {
        ("fid", "FID"), ("fid", "FID, n → ∞"), ("kid", "KID"), ("frechet_distance", "Fréchet distance (FD)"),
    }  # fmt: skip
    rows = [line for line in section(made.text, "Results").splitlines() if line.startswith("| samples, ddim | 1 ")]
    assert ["| resnet20_encoder:encode |" in rows[0], "| inception | – | – |" in rows[1]] == [True, True]
    assert "CMMD is not defined." in made.text and "Demystifying MMD GANs" in made.text


def test_the_table_of_guidance_and_steps_has_every_cell_of_the_study():
    lines = section(card().text, "Results").splitlines()
    assert "| guidance | 50 steps | 250 steps | 500 steps |" in lines
    by_place = {(cell["guidance_scale"], cell["num_inference_steps"]): cell for cell in STUDY["cells"]}
    for scale, name in ((0, "0 (unconditional)"), (1, "1 (conditional)"), (4, "4"), (10, "10")):
        cells = [by_place[scale, steps] for steps in (50, 250, 500)]
        shown = [f"{in_words(cell['seconds'] / len(cell['images']), None, 2)} s" for cell in cells]
        shown = [
            f"{s} ({in_words(c['change_from_most_steps'], None, 2)})" for s, c in zip(shown[:2], cells, strict=False)
        ] + shown[2:]
        assert f"| {name} | {' | '.join(shown)} |" in lines
    study = copy.deepcopy(STUDY)
    study["axes"]["attentions"] = ["full", "natten:na7"]
    study["cells"] += [{**cell, "attention": "natten:na7"} for cell in study["cells"]]
    text = card(study=study).text
    assert text.count("| guidance | 50 steps |") == 2 and "attention `natten:na7`, scheduler `ddim`:" in text
    assert "Neighborhood Attention Transformer" in text and "Faster Neighborhood Attention" in text
    assert "Neighborhood" not in section(card().text, "References")


def test_every_figure_of_the_card_is_of_the_results():
    """Other results give another card: no figure is the template's own."""
    results = changed(
        settings={"global_batch": 96, "seed": 5, "learning_rate": 0.0625, "max_train_steps": 1234},
        steps=1234, train_images=7654, parameters=123456789, images_per_second=4321.0,
        versions={"python": "9.8.7", "torch": "6.5.4"}, hardware="a machine",
    )  # fmt: skip
    results["history"][0]["smoothed"], results["history"][-1]["smoothed"] = 8.75, 0.015625
    text = card(results).text
    for shown in (
        "96", "5", "0.0625", "1,234", "1234", "7,654", "123 million", "4321", "9.8.7", "6.5.4", "a machine",
        "8.75", "0.0156", f"{1234 * 96 / 7654:.3g}",
    ):  # fmt: skip
        assert re.search(rf"(?<![\w.]){re.escape(shown)}(?![\w])", text), shown
    for gone in ("2,600", "2600", "9,136 images of `landscapes`, 2", "2.92", "18.2", "0.844", "3.11.7", "x86_64, 2"):
        assert gone not in text, gone
    for name, value in results["settings"].items():
        assert f"| `{name}` | {'–' if value is None else value} |" in text


# --- kinds of models


def test_without_study_scores_and_pictures():
    made = card(study=None, scores=[], pictures={})
    assert "No scores against real images have been measured." in made.text
    assert "<img" not in made.text and "sample_dit.py" not in made.text and made.data.eval_results is None
    assert '{"guidance_scale": 4.0, "num_inference_steps": 50}' in made.text
    assert "None" not in made.text.split("<details>")[0] and not re.search(r"\n\n\n", made.text)
    assert not re.search(r"\n\n\n", card().text)


def test_a_model_without_classes():
    results = changed(
        config={"num_classes": None, "attention": "na3*5,swa7", "learn_sigma": False},
        settings={"unconditional": True, "use_ema": False}, label_names=None,
    )  # fmt: skip
    made = card(results, study=None, scores=[])
    code = section(made.text, "How to use").split("```python\n")[1].split("```")[0]
    assert "pipeline(batch_size=2, **settings" in code and '"guidance_scale": 1.0' in code
    assert 'set_attn_processor("full")' in code and "labels" not in code
    assert "its labels" not in made.text and "averaged weights" not in made.text
    assert "classes" not in made.text and "class-conditional-image-generation" not in made.data.tags
    references = section(made.text, "References")
    assert "Longformer" in references and "Neighborhood Attention Transformer" in references
    assert "Classifier-Free" not in references and "Improved Denoising" not in references
    assert "a token sees the 3 x 3 around it; a token sees those at most 7 away in row-major order" in made.text


def test_a_model_from_the_hub_on_latents_with_many_classes():
    names = [f"class {i}" for i in range(100)]
    settings = {"dataset_name": "user/photos", "model": "user/start", "vae": "user/vae", "resolution": 256}
    results = changed(
        config={"num_classes": 100, "in_channels": 4}, settings=settings, label_names=names,
        from_hub=["dataset_name", "model", "vae"],
    )  # fmt: skip
    made = card(results, study=None, scores=[])
    assert made.data.datasets == "user/photos" and made.data.base_model == "user/start"
    assert "draws 256 x 256 images of 100 classes" in made.text and "`user/vae`, 4 x 32 x 32" in made.text
    assert "class 11 and 88 more" in made.text and '["class 0", "class 99"]' in made.text
    assert "[user/photos](https://huggingface.co/datasets/user/photos)" in made.text and "a folder" not in made.text
    local = card(changed(results, from_hub=[]), study=None, scores=[])
    assert local.data.datasets is None and local.data.base_model is None
    assert "`user/photos` and `user/start` and `user/vae` were folders" in local.text


@pytest.mark.parametrize("names", [["a", "a"], ["crane", "crane, bird"], ["", "b"]])
def test_names_that_do_not_tell_classes_apart_give_way_to_ids(names):
    made = card(changed(config={"num_classes": 2}, label_names=names), study=None, scores=[])
    assert "labels = [0, 1]" in made.text


def test_local_folders_are_published_without_their_path(tmp_path):
    settings = RESULTS["settings"] | {"dataset_name": str(tmp_path), "vae": "user/vae"}
    assert settings_from_hub(settings) == ["vae"]
    assert settings_from_hub(settings | {"dataset_name": "user/photos", "model": "user/start"}) == [
        "dataset_name", "model", "vae",
    ]  # fmt: skip
    public = published_results({**RESULTS, "settings": settings, "from_hub": ["vae"]})["settings"]
    assert (public["dataset_name"], public["vae"], public["model"]) == (tmp_path.name, "user/vae", "dit-tiny-4")


def scored(folder, encoder="clip", **arguments):
    """What is published of scores, written as evaluate_images.py does, of other sources and another encoder."""
    one = copy.deepcopy({name: value for name, value in SCORES[0].items() if name != "sampling"})
    one["arguments"] |= {name: str(value) for name, value in arguments.items()} | {"encoders": [str(encoder)]}
    one["scores"][0]["encoder"] = str(encoder)
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(one))
    (published,) = read_scores([folder])
    return published


def test_sets_of_one_scoring_are_published_one_by_one(tmp_path):
    one = copy.deepcopy({name: value for name, value in SCORES[0].items() if name != "sampling"})
    names = [str(tmp_path / "step-1"), str(tmp_path / "step-2")]
    one["arguments"] |= {"predictions": names, "fail_above": ["cmmd=1"], "json": "-"}
    (row,) = one["scores"]
    note = f"{names[1]} names no encoder"
    one["scores"] = [row | {"predictions": name, "cmmd": number} for number, name in enumerate(names)]
    one["scores"][1]["notes"] = [note]
    folder = tmp_path / "scores"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(one))
    published = read_scores([folder])
    assert [part["arguments"]["predictions"] for part in published] == ["step-1", "step-2"]
    assert [part["scores"][0]["cmmd"] for part in published] == [0, 1]
    assert published[1]["scores"][0]["notes"] == ["step-2 names no encoder"]
    assert str(tmp_path) not in json.dumps(published)
    assert "fail_above" not in scoring_command(published[0]["arguments"])


def test_scores_are_published_without_paths(tmp_path):
    folders = {name: tmp_path / name for name in ("samples", "photos", "encoder")}
    for folder in folders.values():
        folder.mkdir()
    published = scored(
        tmp_path / "scores", predictions=folders["samples"], references=folders["photos"],
        encoder=folders["encoder"], inception_weights=tmp_path / "weights.pth",
    )  # fmt: skip
    assert str(tmp_path) not in json.dumps(published)
    assert published["arguments"]["encoders"] == ["encoder"] and published["scores"][0]["encoder"] == "encoder"
    assert published["arguments"]["inception_weights"] == "weights.pth"


def test_folders_of_one_name_are_not_taken_for_real_images(tmp_path):
    for folder in ("made/images", "real/images"):
        (tmp_path / folder).mkdir(parents=True)
    made = {"predictions": tmp_path / "made" / "images", "references": tmp_path / "real" / "images"}
    (row,) = score_rows(scored(tmp_path / "scores", **made))
    assert not row["real"] and row["predictions"].startswith("made/images")
    (row,) = score_rows(
        scored(tmp_path / "scores", predictions=f"{made['references']}/", references=made["references"])
    )
    assert row["real"]


@pytest.mark.parametrize("end", ["", "/"])
def test_samples_are_known_by_the_file_beside_their_folder(tmp_path, end):
    (tmp_path / "cell").mkdir()
    (tmp_path / "cell.json").write_text(json.dumps({**SCORES[0]["sampling"], "images": []}))
    assert scored(tmp_path / "scores", predictions=f"{tmp_path / 'cell'}{end}")["sampling"] == SCORES[0]["sampling"]


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (0.49256, 0.018855, "0.493\u00a0±\u00a00.019"),
        (-0.001041, 0.0017, "-0.0010\u00a0±\u00a00.0017"),
        (123.456, 12.0, "123\u00a0±\u00a012"),
        (0.1003, None, "0.100"),
        (1234.5, None, "1234"),
        (0.0, None, "0"),
        (0.5, 0.0, "0.500"),
    ],
)
def test_values_have_the_figures_that_their_error_leaves(value, error, shown):
    assert in_words(value, error) == shown
    assert in_words(1.99, None, 2) == "2.0"


def test_patterns_in_words():
    assert attention_in_words("full", 3) == "every token sees all"
    assert attention_in_words("flex:na7/truncate,xformers:swa16*2", 3) == (
        "a token sees the 7 x 7 around it; a token sees those at most 16 away in row-major order"
    )


# --- the design of a model


def test_the_card_names_what_is_not_the_published_design():
    assert design_in_words(RESULTS["config"]) is None
    variant = {"conditioning": "cross_attention", "qk_norm": "rms_norm", "position": "rope", "mlp": "swiglu"}
    text = card(changed(config=variant)).text
    line = next(line for line in text.splitlines() if line.startswith("- **Model:**"))
    words = "timestep and label by cross-attention, RMS-normalised queries and keys, axial rotary positions, SwiGLU."
    assert line.endswith(f"; {words}")
    for number in ("1910.07467", "2302.05442", "2104.09864", "2501.01423", "2002.05202"):
        assert f"{number}" in text and number not in card().text
    for name, (default, *others) in CHOICES.items():
        assert design_in_words({name: default}) is None
        assert all(design_in_words({name: other}) for other in others)
    assert set(DESIGN) == {(name, other) for name, (_, *others) in CHOICES.items() for other in others}


def test_encoders_of_one_name_and_two_digests_are_told_apart():
    rows = [{"encoder": name, "digest": digest} for name, digest in (("a", "12345678ff"), ("a", ""), ("b", "c"))]
    assert [row["encoder"] for row in told_apart(rows)] == ["a (12345678)", "a (no digest)", "b"]
    assert told_apart(rows[:1]) == rows[:1]
