import re

import pytest

from hf_common.references import Paper
from hf_robust.noise.draw import make_noisy_labels
from hf_robust.noise.human import HUMAN_CONFIGS
from hf_robust.noise.kinds import KINDS, kind_of
from hf_robust.noise.spec import NoiseSpec, spec_patterns
from tests.hf_robust.noise.samples import pictures, uneven_labels


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_knows_all_that_cards_and_figures_say_of_it(name):
    kind = KINDS[name]
    assert kind.name == name and re.fullmatch("#[0-9A-F]{6}", kind.colour)
    assert kind.entry.endswith(".") and ("{rate}" not in kind.entry)
    assert kind.words.format(rate=40) and (name == "clean") == (kind.paper is None)
    if kind.paper is not None:
        assert isinstance(kind.paper, Paper) and re.search(r" \d{4}$", kind.paper.where)


def test_kinds_are_told_apart_by_colour():
    assert len({kind.colour for kind in KINDS.values()}) == len(KINDS)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("clean", "clean"),
        ("symmetric_12.5", "symmetric"),
        ("contaminated_semantic_40", "semantic"),
        *((config, "human") for config in HUMAN_CONFIGS),
    ],
)
def test_names_of_configs_and_results_tell_the_kind(name, kind):
    assert kind_of(name) is KINDS[kind]


def test_other_names_tell_none():
    assert kind_of("plain_text") is kind_of("default") is kind_of("") is None


def test_every_kind_that_is_not_recorded_can_be_named_and_drawn():
    labels = uneven_labels(10)
    for name, kind in KINDS.items():
        if kind.recorded:
            with pytest.raises(ValueError, match=f"unknown noise '{name}'; allowed are clean, symmetric"):
                NoiseSpec(name)
            continue
        spec = NoiseSpec(name, 40 if kind.rated else 0)
        assert str(spec) == kind.pattern.replace("RR", "40") and kind.pattern in spec_patterns()
        num_classes = 100 if name == "superclass" else 10
        noisy = make_noisy_labels(labels, spec, num_classes=num_classes, images=pictures(len(labels)))
        assert (noisy != labels).any() == kind.rated
