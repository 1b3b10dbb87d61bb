"""Metrics and encoders by the names that flags give them."""

import os

import pytest

from hf_common.metrics import load_encoder, load_metric

CMMD = "evaluate_metrics/cmmd"


def test_a_metric_takes_its_configuration_and_arguments():
    assert load_metric(CMMD).config_name == "default"
    assert load_metric(CMMD, "siglip", {"batch_size": 3}).config_name == "siglip"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["nosuch/metric"], "^metric 'nosuch/metric' can't be loaded: "),
        ([CMMD, "clap"], "^metric 'evaluate_metrics/cmmd' can't be loaded: the configuration must be one of"),
        ([CMMD, None, {"enocder": "clip"}], "^arguments: the metric takes no 'enocder'; did you mean 'encoder'"),
        ([CMMD, None, {"encoder": "os:nosuch"}], "^encoder 'os:nosuch' can't be imported: AttributeError"),
    ],
)
def test_what_fails_is_one_line(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_metric(*given)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300
    with pytest.raises(ValueError, match="^(--score_metric '|--score_arguments: |encoder ')"):
        load_metric(*given, *[None] * (3 - len(given)), words=("--score_metric", "--score_arguments"))


def test_errors_of_a_metrics_own_code_have_their_kind(tmp_path):
    (tmp_path / "broken_metric.py").write_text("raise KeyError('x')\n")
    with pytest.raises(ValueError, match="can't be loaded: KeyError: 'x'"):
        load_metric(str(tmp_path / "broken_metric.py"))


def test_encoders_of_ones_own_are_imported_and_others_are_left_alone(tmp_path, monkeypatch):
    (tmp_path / "encoder_of_this_test.py").write_text("def encode(images):\n    return len(images)\n")
    monkeypatch.chdir(tmp_path)
    assert load_encoder("encoder_of_this_test.py:encode")([1, 2]) == 2
    assert load_encoder("os:getpid") is os.getpid
    for other in ("clip", "openai/clip-vit-base-patch32", "C:\\models\\clip", "hub:a/b", 3, len):
        assert load_encoder(other) is other
