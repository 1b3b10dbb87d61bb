"""An attention of one's own that specs name."""

import pytest
import torch
from diffusers import DDIMScheduler

from hf_dit import DiTAttnProcessor, DiTImagePipeline, DiTModel, export_pipeline, register_attn_processor
from hf_dit.attention.full import FullAttnProcessor
from hf_dit.attention.spec import PROCESSORS, format_attn_spec, make_attn_processors


class RowAttnProcessor(DiTAttnProcessor):
    """A token sees its row of the grid."""

    forms = spec = "row"
    words = "a token sees its row"

    @classmethod
    def from_spec(cls, spec):
        return cls() if spec == "row" else None

    def attend(self, query, key, value, grid):
        mask = self.mask(grid).to(query.device)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)

    def mask(self, grid):
        rows = torch.arange(grid[0]).repeat_interleave(grid[1])
        return rows[:, None] == rows


@pytest.fixture(autouse=True)
def processors():
    before = list(PROCESSORS)
    yield
    PROCESSORS[:] = before


def test_a_registered_attention_is_saved_and_loaded_by_its_spec(tmp_path):
    with pytest.raises(ValueError, match="'row' is not known; allowed are full"):
        make_attn_processors("row", 2)
    assert register_attn_processor(RowAttnProcessor) is RowAttnProcessor
    register_attn_processor(RowAttnProcessor)
    assert PROCESSORS.count(RowAttnProcessor) == 1
    assert format_attn_spec(make_attn_processors("row*3,full", 4)) == "row*3,full"
    torch.manual_seed(0)
    model = DiTModel.from_name("dit-micro-2", attention="row", num_classes=3).eval()
    for parameter in model.parameters():  # adaLN-Zero begins as the identity
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    loaded = DiTModel.from_pretrained(tmp_path)
    size = model.config.sample_size
    size = size if isinstance(size, int) else size[0]
    x, t, y = torch.randn(2, model.config.in_channels, size, size), torch.tensor([5, 9]), torch.tensor([0, 2])
    with torch.no_grad():
        expected = model(x, t, y).sample
        assert torch.equal(loaded(x, t, y).sample, expected)
        model.set_attn_processor("full")
        assert not torch.allclose(model(x, t, y).sample, expected)
    PROCESSORS.remove(RowAttnProcessor)
    with pytest.raises(ValueError, match="'row' is not known"):
        DiTModel.from_pretrained(tmp_path)


def test_the_code_of_a_registered_attention_is_not_exported(tmp_path):
    register_attn_processor(RowAttnProcessor)
    pipeline = DiTImagePipeline(DiTModel.from_name("dit-micro-2", attention="row"), DDIMScheduler())
    with pytest.raises(TypeError, match="attention must be one of this package, got RowAttnProcessor"):
        export_pipeline(pipeline, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (torch.nn.Linear, "cls must be a subclass of DiTAttnProcessor"),
        (RowAttnProcessor(), "cls must be a subclass of DiTAttnProcessor"),
        (type("Half", (DiTAttnProcessor,), {}), "Half lacks attend, mask, forms, words, from_spec"),
        (type("Same", (FullAttnProcessor,), {}), "Same lacks from_spec"),
    ],
)
def test_what_specs_could_not_read_is_refused(cls, message):
    with pytest.raises(TypeError, match=message):
        register_attn_processor(cls)


def own(name="Own", **changes):
    """A class like [`RowAttnProcessor`], with changes."""
    return type(name, (RowAttnProcessor,), {"from_spec": classmethod(lambda cls, spec: None)} | changes)


@pytest.mark.parametrize("changes", [{"forms": "full"}, {"spec": "full"}, {"spec": "na7"}, {"forms": "swaW"}])
def test_what_another_attention_reads_is_refused(changes):
    before = list(PROCESSORS)
    with pytest.raises(ValueError, match="there is an attention .* already; give Own forms and a spec of its own"):
        register_attn_processor(own(**changes))
    assert before == PROCESSORS


def reads(start, spec="row"):
    """Of what begins so a processor that says `spec`."""

    def from_spec(cls, item):
        if not item.startswith(start):
            return None
        processor = cls()
        processor.spec = spec
        return processor

    return classmethod(from_spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"from_spec": reads("own", "k3")}, "'own3': Own gives it the spec 'k3', which is not read as the same"),
        ({"from_spec": reads("own", "na7")}, "'own3': Own gives it the spec 'na7', which"),
        ({"from_spec": reads("own", None)}, "'own3': Own gives it the spec None, which"),
        (
            {"from_spec": classmethod(lambda cls, spec: 7)},
            "'own3': from_spec of Own must give a processor or None; got 7",
        ),
        (
            {"from_spec": classmethod(lambda cls, spec: int(spec))},
            "'own3': from_spec of Own raised ValueError: invalid literal",
        ),
    ],
)
def test_a_processor_that_would_not_be_loaded_again_is_refused_when_it_is_named(changes, message):
    register_attn_processor(own(forms="ownK", **changes))
    with pytest.raises(ValueError, match=message):
        make_attn_processors("own3", 2)


def test_a_processor_whose_spec_another_class_reads_has_none(tmp_path):
    processor = register_attn_processor(own(forms="ownK", from_spec=reads("own", "own")))()
    assert format_attn_spec([processor]) is None  # it says row
    processor.spec = "own"
    assert format_attn_spec([processor]) == "own"


def test_what_attends_keeps_the_shape():
    cut = register_attn_processor(own(forms="cut", spec="cut", from_spec=reads("cut", "cut")))
    cut.attend = lambda self, query, key, value, grid: value[:, :1]
    model = DiTModel.from_name("dit-micro-2", attention="cut", num_classes=3).eval()
    size = model.config.sample_size
    with pytest.raises(ValueError, match="attention 'cut' must return the shape of its query"):
        model(torch.randn(1, model.config.in_channels, size, size), torch.tensor([5]), torch.tensor([0]))
