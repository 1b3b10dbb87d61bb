import warnings

import numpy as np
import pytest

from hf_robust.noise.spec import NoiseSpec


@pytest.mark.parametrize(
    ("text", "kind", "rate", "canonical"),
    [
        ("clean", "clean", 0, "clean"),
        ("symmetric_40", "symmetric", 40, "symmetric_40"),
        ("symmetric_040.0", "symmetric", 40, "symmetric_40"),
        ("asymmetric_12.5", "asymmetric", 12.5, "asymmetric_12.5"),
        ("semantic_0", "semantic", 0, "semantic_0"),
        ("instance_100", "instance", 100, "instance_100"),
        ("symmetric_0.1", "symmetric", 0.1, "symmetric_0.1"),
        ("symmetric_1e-7", "symmetric", 1e-7, "symmetric_1e-07"),
    ],
)
def test_parse_and_canonical_name(text, kind, rate, canonical):
    spec = NoiseSpec.parse(text)
    assert (spec.kind, spec.rate, str(spec)) == (kind, rate, canonical)
    assert NoiseSpec.parse(canonical) == spec
    assert NoiseSpec.parse(spec) is spec


def test_integer_and_float_rates_are_one_spec():
    assert NoiseSpec("symmetric", 40) == NoiseSpec("symmetric", np.float32(40))
    assert str(NoiseSpec("symmetric", 40)) == str(NoiseSpec("symmetric", np.float64(40))) == "symmetric_40"


@pytest.mark.parametrize("text", ["pairflip_40", "symmetric", "symmetric_", "symmetric_x", "clean_0", "", "_40"])
def test_unknown_names_list_the_valid_ones(text):
    with pytest.raises(ValueError, match="clean, symmetric_RR, asymmetric_RR, semantic_RR, instance_RR"):
        NoiseSpec.parse(text)


@pytest.mark.parametrize("text", ["symmetric_100.1", "symmetric_-1", "instance_nan", "asymmetric_inf"])
def test_rates_outside_percent(text):
    with pytest.raises(ValueError, match=r"rate: expected percent in 0\.\.100"):
        NoiseSpec.parse(text)


@pytest.mark.parametrize(
    "text", ["semantic_40\n", "symmetric_ 40", "symmetric_40 ", " symmetric_40", "symmetric_４０"]
)
def test_one_noise_has_one_name(text):
    with pytest.raises(ValueError, match="spec: unknown noise"):
        NoiseSpec.parse(text)


def test_a_share_in_place_of_percent_is_warned_of():
    with pytest.warns(UserWarning, match="symmetric_0.4 makes 0.4 percent .* a share of 0.4 is symmetric_40"):
        assert NoiseSpec.parse("symmetric_0.4").rate == 0.4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for text in ("symmetric_1", "symmetric_0", "clean", "asymmetric_12.5"):
            NoiseSpec.parse(text)


@pytest.mark.parametrize("text", ["x" * 200_000, "symmetric_" + "9" * 200_000, "human_" + "x" * 200_000])
def test_long_names_are_cut_in_errors(text):
    with pytest.raises(ValueError) as error:
        NoiseSpec.parse(text)
    assert len(str(error.value)) <= 300


def test_human_labels_are_not_a_noise_to_draw():
    with pytest.raises(ValueError, match="recorded human labels.*data set config"):
        NoiseSpec.parse("human_worst")


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (TypeError, lambda: NoiseSpec.parse(40)),
        (TypeError, lambda: NoiseSpec("symmetric", "40")),
        (TypeError, lambda: NoiseSpec("symmetric", True)),
        (ValueError, lambda: NoiseSpec("clean", 10)),
        (ValueError, lambda: NoiseSpec("human_worst", 40)),
    ],
)
def test_bad_specs(error, call):
    with pytest.raises(error):
        call()
