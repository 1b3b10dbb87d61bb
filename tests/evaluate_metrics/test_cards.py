"""The Python of the metrics' cards runs, block after block as a reader pastes it, and prints what it says."""

import doctest
import re
import sys

import evaluate
import pytest
import torch
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from evaluate_metrics import METRICS
from evaluate_metrics.core.encoders import make_encoder
from tests import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:the Frechet distance of:UserWarning")
CLIP = "openai/clip-vit-large-patch14-336"
SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def colours(images):
    """(n, 5): in the place of the FID network, whose weights are 90 MB elsewhere."""
    pixels = [torch.tensor(image.resize((2, 1)).getdata()).float().flatten()[:5] for image in images]
    return torch.stack(pixels) / 255


@pytest.fixture
def networks(hub, tmp_path, monkeypatch):
    """A random CLIP of the published name on the Hub, and `colours` in place of the FID network."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(**SHAPE, image_size=28, patch_size=7, projection_dim=6)
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 28}).save_pretrained(tmp_path / "clip")
    files = {path.name: path.read_bytes() for path in (tmp_path / "clip").iterdir()}
    hub.server.create_repo("model", CLIP, files=files)
    monkeypatch.setattr(
        "evaluate_metrics.core.inception.inception_encoder", lambda *_, **__: make_encoder(colours, normalize=False)
    )
    monkeypatch.setattr(evaluate.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)  # a request to another server
    (tmp_path / "evaluate_metrics").symlink_to(ROOT / "evaluate_metrics")
    monkeypatch.chdir(tmp_path)
    for name in _loaded_metrics():  # they have the FID network, and those of this test shall not stay
        monkeypatch.delitem(sys.modules, name)
    yield
    for name in _loaded_metrics():
        del sys.modules[name]


def _loaded_metrics():
    return [name for name in sys.modules if name.startswith("evaluate_modules.")]


@pytest.mark.parametrize("metric", METRICS)
def test_the_python_of_a_card_runs(metric, networks, capsys):
    text = (ROOT / "evaluate_metrics" / metric / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 4
    names: dict = {}
    for block in blocks:
        if block.startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(block, names, metric, None, None)
            results = doctest.DocTestRunner().run(test, clear_globs=False)
            assert results.attempted > 3 and not results.failed
        else:
            exec(compile(block, f"{metric}/README.md", "exec"), names)
    printed = [float(word) for word in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", capsys.readouterr().out)]
    assert len(printed) >= 3 and max(map(abs, printed)) > 0
