"""Adapters of peft in the model and in the pipeline, by way of files; and caches of diffusers."""

import copy

import peft
import pytest
import torch
from diffusers import DiffusionPipeline, FasterCacheConfig, FirstBlockCacheConfig, MagCacheConfig
from diffusers.training_utils import _collate_lora_metadata
from safetensors.torch import load_file, save_file

from hf_dit import DiTImagePipeline, DiTModel
from hf_dit.sampling import lora
from hf_dit.sampling.export import export_pipeline
from tests.hf_dit.sampling.test_pipeline import Rows, ddim, sample, small_model, small_pipeline

LABELS = [1, 4]
TARGETS = ["to_q", "to_v", "to_out.0", "ff.net.2"]


def config(rank=2, alpha=8):  # scaled by 4: what becomes of an alpha that is lost shows
    return peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS, init_lora_weights=False)


def adapted(seed=0, **overrides):
    """A model with an adapter that says something, and the same without."""
    base = small_model(**overrides)
    model = copy.deepcopy(base)
    torch.manual_seed(seed)
    model.add_adapter(config())
    return model, base


def pipeline_of(model):
    pipeline = DiTImagePipeline(model, ddim())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def saved_by(how, model, folder):
    if how == "pipeline":
        DiTImagePipeline.save_lora_weights(
            folder,
            transformer_lora_layers=peft.get_peft_model_state_dict(model),
            **_collate_lora_metadata({"transformer": model}),
        )
    else:
        model.save_lora_adapter(folder)


def by_hand(model, scale=1.0):
    """The weights with the adapter added: W + alpha / r B A."""
    merged = {}
    state = model.state_dict()
    for name, value in state.items():
        if ".lora_" in name:
            continue
        plain = name.replace(".base_layer", "")
        down = state.get(name.replace(".base_layer.weight", ".lora_A.default.weight"))
        if ".base_layer.weight" in name:
            up = state[name.replace(".base_layer.weight", ".lora_B.default.weight")]
            value = value + scale * 8 / 2 * up @ down
        merged[plain] = value
    plain_model = DiTModel.from_config(model.config)
    plain_model.load_state_dict(merged)
    return plain_model.eval()


@pytest.mark.parametrize("how", ["pipeline", "model"])
def test_an_adapter_comes_back_from_a_file_with_its_alpha(how, tmp_path):
    model, base = adapted()
    saved_by(how, model, tmp_path)
    expected = sample(pipeline_of(model), LABELS)
    torch.testing.assert_close(sample(pipeline_of(by_hand(model)), LABELS), expected, rtol=0, atol=1e-4)
    pipeline, plain = pipeline_of(base), sample(pipeline_of(copy.deepcopy(base)), LABELS)
    assert (plain - expected).abs().max() > 1e-2
    pipeline.load_lora_weights(tmp_path, adapter_name="style")
    assert pipeline.get_list_adapters() == {"transformer": ["style"]} and pipeline.get_active_adapters() == ["style"]
    assert pipeline.transformer.peft_config["style"].lora_alpha == 8
    assert torch.equal(sample(pipeline, LABELS), expected)
    pipeline.set_adapters("style", 0.0)
    torch.testing.assert_close(sample(pipeline, LABELS), plain, rtol=0, atol=1e-6)
    pipeline.set_adapters(["style"], [0.5])
    half = sample(pipeline_of(by_hand(model, 0.5)), LABELS)
    torch.testing.assert_close(sample(pipeline, LABELS), half, rtol=0, atol=1e-4)
    pipeline.disable_lora()
    assert torch.equal(sample(pipeline, LABELS), plain)
    pipeline.enable_lora()
    pipeline.unload_lora_weights()
    assert torch.equal(sample(pipeline, LABELS), plain)
    assert pipeline.transformer.state_dict().keys() == DiTModel.from_config(base.config).state_dict().keys()


def test_two_adapters_are_mixed_and_a_fused_one_stays_in_plain_weights(tmp_path):
    models = [adapted(seed)[0] for seed in (1, 2)]
    pipeline = pipeline_of(adapted()[1])
    for name, model in zip(("a", "b"), models, strict=True):
        saved_by("model", model, tmp_path / name)
        pipeline.load_lora_weights(str(tmp_path / name), adapter_name=name)
    pipeline.set_adapters(["a", "b"], [1.0, 0.0])
    expected = sample(pipeline_of(by_hand(models[0])), LABELS)
    torch.testing.assert_close(sample(pipeline, LABELS), expected, rtol=0, atol=1e-4)
    pipeline.delete_adapters("b")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(tmp_path / "fused")
    merged = DiTImagePipeline.from_pretrained(tmp_path / "fused")
    merged.set_progress_bar_config(disable=True)
    torch.testing.assert_close(sample(merged, LABELS), expected, rtol=0, atol=1e-4)


def test_what_a_peft_model_wrote_is_read(tmp_path):
    base = small_model()
    wrapped = peft.get_peft_model(copy.deepcopy(base), config())
    wrapped.save_pretrained(tmp_path)
    merged = copy.deepcopy(wrapped).merge_and_unload().eval()
    expected = sample(pipeline_of(merged), LABELS)
    pipeline = pipeline_of(base)
    pipeline.load_lora_weights(tmp_path)
    torch.testing.assert_close(sample(pipeline, LABELS), expected, rtol=0, atol=1e-4)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match="without their adapter_config.json, which has the lora_alpha"):
        pipeline_of(small_model()).load_lora_weights(tmp_path)
    with pytest.raises(TypeError, match=r"must be a DiTModel, got PeftModel; give its merge_and_unload\(\), or"):
        DiTImagePipeline(wrapped, ddim())


def test_a_model_with_an_adapter_is_not_saved_as_one_that_cannot_be_loaded(tmp_path):
    model, base = adapted()
    pipeline = pipeline_of(model)
    words = r"holds an adapter \(transformer_blocks.0.*base_layer.*unload_lora\(\).*save_lora_adapter\(\)"
    for save in (model.save_pretrained, pipeline.save_pretrained, lambda folder: export_pipeline(pipeline, folder)):
        with pytest.raises(ValueError, match=words):
            save(tmp_path / "model")
    assert not list(tmp_path.rglob("*.safetensors"))
    model.unload_lora()
    model.save_pretrained(tmp_path / "base")
    weights = load_file(tmp_path / "base" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in base.state_dict().items())
    wrapped = peft.get_peft_model(copy.deepcopy(base), config()).get_base_model()
    with pytest.raises(ValueError, match=words):
        wrapped.save_pretrained(tmp_path / "wrapped")


def test_weights_that_would_be_left_out_in_silence_are_refused(tmp_path, monkeypatch):
    model, _ = adapted()
    layers = peft.get_peft_model_state_dict(model)
    with pytest.raises(ValueError, match="transformer_lora_adapter_metadata must be given, or lora_alpha is lost"):
        DiTImagePipeline.save_lora_weights(tmp_path, layers)
    with pytest.raises(ValueError):
        DiTImagePipeline.save_lora_weights(tmp_path)
    pipeline = small_pipeline()
    other = {name.replace("attn.", "attn1."): tensor for name, tensor in layers.items()}
    for wrong in (other, {f"unet.{name}": tensor for name, tensor in layers.items()}):
        with pytest.raises(ValueError, match=r"LoRA weights must be of layers of the transformer, got .* more"):
            pipeline.load_lora_weights(wrong)
    with pytest.raises(ValueError, match="must be of layers of the transformer, got none"):
        pipeline.load_lora_weights({})
    save_file({"transformer.class_embedding.weight": torch.zeros(2, 2)}, tmp_path / "no.safetensors")
    with pytest.raises(ValueError, match="class_embedding"):
        pipeline.load_lora_weights(tmp_path, weight_name="no.safetensors")
    assert "peft_config" not in vars(pipeline.transformer)
    monkeypatch.setattr(lora, "is_peft_available", lambda: False)
    with pytest.raises(ImportError, match="pip install peft"):
        pipeline.load_lora_weights(layers)


def test_a_dict_without_metadata_has_the_rank_for_its_alpha():
    model, base = adapted()
    pipeline = pipeline_of(base)
    layers = peft.get_peft_model_state_dict(model)
    pipeline.load_lora_weights(layers)
    assert pipeline.transformer.peft_config["default_0"].lora_alpha == 2
    assert set(layers) == set(peft.get_peft_model_state_dict(model))


@pytest.mark.parametrize("conditioning", ["cross_attention", "in_context"])
def test_adapters_of_variants_train_alone(conditioning):
    model, base = adapted(conditioning=conditioning, qk_norm="rms_norm", position="rope", mlp="swiglu")
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all(".lora_" in name for name in trained)
    if conditioning == "cross_attention":
        assert any("cross_attn.to_q" in name for name in trained)
    model(torch.randn(2, 4, 8, 8), 5, torch.tensor(LABELS)).sample.square().mean().backward()
    gradients = {name: parameter.grad is not None for name, parameter in model.named_parameters()}
    assert {name for name, has in gradients.items() if has} == set(trained)
    model.disable_adapters()
    assert torch.equal(sample(pipeline_of(model), LABELS), sample(pipeline_of(base), LABELS))


def test_an_exported_pipeline_takes_adapters_too(tmp_path):
    model, base = adapted()
    saved_by("pipeline", model, tmp_path / "lora")
    export_pipeline(pipeline_of(base), tmp_path / "pipeline")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "pipeline", trust_remote_code=True)
    loaded.set_progress_bar_config(disable=True)
    loaded.load_lora_weights(tmp_path / "lora")
    assert type(loaded).__module__.startswith("diffusers_modules.")
    torch.testing.assert_close(sample(loaded, LABELS), sample(pipeline_of(model), LABELS), rtol=0, atol=1e-6)


# Caches


@pytest.mark.parametrize("conditioning", ["adaln_zero", "adaln", "cross_attention", "in_context"])
def test_blocks_are_cached_at_a_threshold(conditioning):
    pipeline = small_pipeline(conditioning=conditioning, num_layers=3)
    arguments = {"guidance_scale": 3.0, "guidance_interval": (300, 700), "num_inference_steps": 6}
    expected = sample(pipeline, LABELS, **arguments)
    last = Rows(pipeline.transformer.transformer_blocks[-1].attn)
    pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    assert pipeline.transformer.is_cache_enabled
    assert torch.equal(sample(pipeline, LABELS, **arguments), expected)
    assert last.calls == [2 if rows == 2 else 6 - 2 for rows in last.calls] and len(last.calls) == 6
    pipeline.transformer.disable_cache()
    pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    last.calls.clear()
    cached = sample(pipeline, LABELS, **arguments)
    assert last.calls == [2, 4]  # the first pass of each batch alone
    assert not torch.equal(cached, expected)
    assert torch.equal(sample(pipeline, LABELS, **arguments), cached)  # nothing is left of the last call
    pipeline.transformer.disable_cache()
    assert torch.equal(sample(pipeline, LABELS, **arguments), expected)


def test_another_cache_skips_steps_and_those_that_cannot_work_are_refused():
    pipeline = small_pipeline(num_layers=3)
    expected = sample(pipeline, LABELS, num_inference_steps=8)
    last = Rows(pipeline.transformer.transformer_blocks[-1].attn)
    ratios = MagCacheConfig(num_inference_steps=8, mag_ratios=[1.0] * 8, threshold=0.5, max_skip_steps=2)
    pipeline.transformer.enable_cache(ratios)
    assert not torch.equal(sample(pipeline, LABELS, num_inference_steps=8), expected)
    assert len(last.calls) < 8
    pipeline.transformer.disable_cache()
    with pytest.raises(
        ValueError, match="as FirstBlockCacheConfig or .* got a FasterCacheConfig, which needs the two"
    ):
        pipeline.transformer.enable_cache(FasterCacheConfig())
    assert not pipeline.transformer.is_cache_enabled
    assert torch.equal(sample(pipeline, LABELS, num_inference_steps=8), expected)


def test_a_call_that_failed_leaves_no_cache_behind():
    pipeline = small_pipeline(num_layers=3)
    pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    expected = sample(pipeline, LABELS)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(pipeline, LABELS, seed=7, callback_on_step_end=stop)
    assert torch.equal(sample(pipeline, LABELS), expected)
