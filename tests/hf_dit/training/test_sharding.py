"""Sharded weights: two processes that hold a part each end with the weights, average and files of one."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler
from safetensors.torch import load_file

from hf_dit.models.dit import DiTModel
from hf_dit.publishing.card import dit_pipeline_card
from hf_dit.sampling.pipeline import DiTImagePipeline
from hf_dit.training.lora import LORA_FILE
from hf_dit.training.records import read_training
from hf_dit.training.run import train_dit
from hf_dit.training.sharding import WholeNetwork, check_sharding, parts_like
from tests import ROOT
from tests.processes import run_process

from .small import arguments
from .test_run import flags, losses
from .test_scoring import ENCODER, scoring

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
AVERAGE = "transformer_ema/diffusion_pytorch_model.safetensors"
CHANGES = {
    "random_flip": True,
    "max_grad_norm": 0.3,  # below the norm of every step
    "lr_scheduler": "cosine",
    "checkpointing_steps": 2,
    "checkpoints_total_limit": 0,
}
SPLIT = {"train_batch_size": 1, "gradient_accumulation_steps": 2, "fsdp": True}

# The script as it is, but that the first process tells its share of what it trains, and may be killed.
SCRIPT = """
import os, signal, sys
import hf_dit.training.loop as loop
import hf_dit.training.run as run

publish = loop.publish_checkpoint

def killed(folder, step, limit):
    if step == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    return publish(folder, step, limit)

class Told(loop.DiTTrainer):
    def train(self):
        super().train()
        states = self.optimizer.optimizer.state.values()
        held = [*self.network.parameters(), *self.ema.shadow_params]
        held += [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]
        here, all = sum(part.to_local().numel() for part in held), sum(part.numel() for part in held)
        if self.accelerator.is_main_process:
            print("holds", here, "of", all, "in", len(held), flush=True)

loop.publish_checkpoint, run.DiTTrainer = killed, Told
sys.argv[0] = "scripts/train_dit.py"
exec(compile(open(sys.argv[0]).read(), sys.argv[0], "exec"))
"""


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def sharded(*line, killed=0):
    return run_process(SCRIPT.replace("KILLED", str(killed)), *line, processes=2)


def assert_close(one, other):
    one, other = load_file(one), load_file(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def runs(colours, tmp_path_factory):
    """The same training by one process, and by two that hold a part each; both with scores."""
    folder = tmp_path_factory.mktemp("runs")
    encoder = folder / "encoder_of_sharded_runs.py"
    encoder.write_text(ENCODER)
    given = scoring(f"{encoder}:encode", eval_steps=3)
    train_dit(*arguments(colours, folder / "one", **CHANGES), scoring=given)
    more = [word for name, value in vars(given).items() if value is not None for word in (f"--{name}", str(value))]
    done = sharded(*flags(colours, folder / "sharded", **CHANGES, **SPLIT), *more)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_weights_average_states_and_pipeline_are_those_of_one_process(runs):
    folder, _ = runs
    one, other = folder / "one", folder / "sharded"
    assert read_training(one / "results.json")["settings"] == read_training(other / "results.json")["settings"]
    torch.testing.assert_close(torch.tensor(losses(one)), torch.tensor(losses(other)), rtol=1e-5, atol=1e-6)
    for name in (WEIGHTS, *(f"checkpoint-{step}/{kind}" for step in (2, 4, 6) for kind in (WEIGHTS, AVERAGE))):
        assert_close(one / name, other / name)
    states = [torch.load(run / "checkpoint-6/optimizer.bin", weights_only=True) for run in (one, other)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    torch.testing.assert_close(states[0]["state"], states[1]["state"], rtol=0, atol=1e-6)
    names = [sorted(str(path.relative_to(run)) for path in run.rglob("*")) for run in (one, other)]
    assert names[1] == sorted([*names[0], *(f"checkpoint-{step}/random_states_1.pkl" for step in (2, 4, 6))])
    images = []
    for run in (one, other):
        pipeline = DiTImagePipeline.from_pretrained(run)
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        images.append(pipeline([0, 2], num_inference_steps=2, generator=generator, output_type="latent").images)
    torch.testing.assert_close(*images, rtol=0, atol=1e-5)


def test_samples_are_scored_from_the_gathered_average(runs):
    rows = [read_training(runs[0] / name / "results.json")["scored"] for name in ("one", "sharded")]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == [3, 6]
    for one, other in zip(*rows, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-6)
    assert_close(*(runs[0] / name / "best" / WEIGHTS for name in ("one", "sharded")))


def test_a_process_holds_half_of_weights_average_and_states(runs):
    _, here, _, all_of_them, _, tensors = next(
        line.split() for line in runs[1].splitlines() if line.startswith("holds ")
    )
    assert int(tensors) > 4 and int(tensors) % 4 == 0
    assert 2 * int(here) == int(all_of_them)


def test_results_and_card_say_so(runs):
    results = [read_training(runs[0] / name / "results.json") for name in ("one", "sharded")]
    assert "sharded" not in results[0]
    assert results[1]["sharded"] is True and results[1]["processes"] == 2
    one, other = (dit_pipeline_card(result, repo_id="user/name", pictures={}) for result in results)
    assert "2 processes, each of which held its part of the weights (FSDP2), on" in other and "--fsdp" in other
    assert "FSDP2" not in one and "fsdp" not in one


def test_a_killed_run_goes_on_to_the_very_same_end(runs, colours, tmp_path):
    line = flags(colours, tmp_path, **CHANGES, **SPLIT, resume_from_checkpoint="last")
    done = sharded(*line, killed=4)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "checkpoint-2").is_dir() and not (tmp_path / "checkpoint-4").exists()
    done = sharded(*line)
    assert done.returncode == 0, done.stderr
    whole = runs[0] / "sharded"
    assert losses(tmp_path) == losses(whole)
    for name in (WEIGHTS, f"checkpoint-6/{WEIGHTS}", f"checkpoint-6/{AVERAGE}"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_one_process_goes_on_from_the_checkpoint_of_two(runs, colours, tmp_path):
    shutil.copytree(runs[0] / "sharded" / "checkpoint-2", tmp_path / "checkpoint-2")
    shutil.copy(runs[0] / "sharded" / "settings.json", tmp_path)
    train_dit(*arguments(colours, tmp_path, **CHANGES, resume_from_checkpoint="last"))
    for name in (WEIGHTS, f"checkpoint-6/{AVERAGE}"):
        assert_close(runs[0] / "one" / name, tmp_path / name)


def test_two_processes_go_on_from_the_adapter_of_one(colours, tmp_path):
    pytest.importorskip("peft")
    torch.manual_seed(0)
    model = DiTModel.from_name("dit-micro-2", sample_size=8, in_channels=3, num_classes=3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    DiTImagePipeline(model, DDPMScheduler(variance_type="learned_range")).save_pretrained(tmp_path / "base")
    # Of a rank of 3, one process holds two rows and the other one.
    changes = {**CHANGES, "model": str(tmp_path / "base"), "lora_rank": 3, "learning_rate": 1e-2}
    changes |= {"gradient_checkpointing": True, "max_train_steps": 4}
    train_dit(*arguments(colours, tmp_path / "one", **changes))
    shutil.copytree(tmp_path / "one" / "checkpoint-2", tmp_path / "two" / "checkpoint-2")
    shutil.copy(tmp_path / "one" / "settings.json", tmp_path / "two")
    line = flags(colours, tmp_path / "two", **changes, **SPLIT, resume_from_checkpoint="last")
    done = run_process(ROOT / "scripts/train_dit.py", *line, processes=2)
    assert done.returncode == 0, done.stderr
    for name in (WEIGHTS, LORA_FILE, "checkpoint-4/transformer/trained.safetensors"):
        assert_close(tmp_path / "one" / name, tmp_path / "two" / name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"mixed_precision": "bf16", "optim": "adamw_torch_fused"},
        {"mixed_precision": "bf16", "config_overrides": "conditioning=in_context,qk_norm=rms_norm,position=rope"},
        {"mixed_precision": "bf16", "config_overrides": "conditioning=cross_attention,qk_norm=rms_norm"},
        {"torch_compile": True, "gradient_checkpointing": True},
        {"use_ema": False, "config_overrides": "conditioning=cross_attention,embedders=separate,dropout=0.1"},
    ],
)
def test_two_processes_that_hold_all_end_with_the_same_weights(changes, colours, tmp_path):
    for name, fsdp in (("all", False), ("parts", True)):
        line = flags(colours, tmp_path / name, **CHANGES, **{**SPLIT, "fsdp": fsdp}, **changes)
        done = run_process(ROOT / "scripts/train_dit.py", *line, processes=2)
        assert done.returncode == 0, done.stderr
    assert_close(tmp_path / "all" / WEIGHTS, tmp_path / "parts" / WEIGHTS)


@pytest.mark.parametrize("conditioning", ["adaln_zero", "cross_attention", "in_context"])
def test_a_whole_network_is_made_of_weights_alone(conditioning):
    network = DiTModel.from_name(
        "dit-micro-2", num_classes=3, conditioning=conditioning, position="rope", mlp="swiglu", qk_norm="rms_norm"
    )
    network.set_attn_processor("na3")
    makes = WholeNetwork(network)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    assert makes.of(network.state_dict(), False) is None
    whole = makes.of(network.state_dict(), True)
    assert not whole.training and whole.config == network.config
    given = torch.randn(1, 4, 32, 32), torch.tensor([10]), torch.tensor([2])
    with torch.no_grad():
        assert torch.equal(whole(*given).sample, network.eval()(*given).sample)
    tensor = torch.ones(3)
    assert parts_like(tensor, torch.zeros(3)) is tensor


def test_what_cannot_be_sharded_is_refused_before_images_are_read(colours, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_dit.training.run.open_rows", lambda data: pytest.fail("looked at"))
    with pytest.raises(
        ValueError, match="fsdp shards over several processes, and there is 1; start more, as --help-all says"
    ):
        train_dit(*arguments(colours, tmp_path, fsdp=True))
    with pytest.raises(ValueError, match="fsdp takes mixed_precision no or bf16; got 'fp16'"):
        check_sharding(2, "fp16")
    with pytest.raises(ValueError, match="fsdp shards the states of PyTorch's optimizers; got optim='adamw_bnb_8bit'"):
        arguments(colours, tmp_path, fsdp=True, optim="adamw_bnb_8bit")
    assert not list(Path(tmp_path).iterdir())
