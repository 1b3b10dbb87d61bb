import math

import pytest

from evaluate_metrics.scoring.limits import failed_limits, parse_limits
from evaluate_metrics.scoring.registry import SCORES
from evaluate_metrics.scoring.report import score_table, without_nan


def row(**values):
    return {"predictions": "samples", "encoder": "clip", "dim": 3, "notes": [], **values}


def test_names_are_those_of_results():
    for name, info in SCORES.items():
        for value in info.values:
            (limit,) = parse_limits([f"{value.key}=1"], [], [name])
            assert limit.key == value.key
    (limit,) = parse_limits(["fd=1"], [], ["fd"])
    assert limit.key == "frechet_distance"
    with pytest.raises(ValueError, match="must name a score of .*precision, recall.*got 'precision_recall'"):
        parse_limits([], ["precision_recall=0.5"], ["precision_recall"])


def test_limits_hold_up_to_their_value():
    limits = parse_limits(["cmmd=0.5", "fd=20"], ["p_value=0.01"], ["cmmd", "fd", "p_value"])
    kept = row(cmmd=0.5, frechet_distance=20.0, p_value=0.01)
    assert failed_limits([kept], limits) == []
    broken = row(cmmd=0.6, frechet_distance=20.5, p_value=0.001)
    assert [failure["words"] for failure in failed_limits([kept, broken], limits)] == [
        "cmmd of samples with clip is 0.6, above 0.5",
        "fd of samples with clip is 20.5, above 20",
        "p_value of samples with clip is 0.001, below 0.01",
    ]
    (failure,) = failed_limits([row(cmmd=1.0)], parse_limits(["cmmd=0.5"], [], ["cmmd"]))
    assert failure == {
        "name": "cmmd",
        "value": 1.0,
        "limit": 0.5,
        "predictions": "samples",
        "encoder": "clip",
        "words": "cmmd of samples with clip is 1, above 0.5",
    }


@pytest.mark.parametrize("value", [None, math.nan])
def test_what_has_no_value_fails_both_ways(value):
    for flags in ((["cmmd_unbiased=9"], []), ([], ["cmmd_unbiased=-9"])):
        (failure,) = failed_limits([row(cmmd_unbiased=value)], parse_limits(*flags, ["cmmd"]))
        assert failure["value"] is None and "has no value" in failure["words"]


def test_each_set_is_held_to_the_limits_and_encoders_where_they_have_the_score():
    limits = parse_limits(["cmmd=1"], [], ["cmmd", "fd"])
    clip, inception = row(cmmd=0.5), row(encoder="inception", frechet_distance=3.0)
    assert failed_limits([clip, inception], limits) == []
    assert len(failed_limits([inception], limits)) == 1  # of no encoder
    other = {**row(cmmd=2.0), "predictions": "others"}
    (failure,) = failed_limits([clip, other], limits)
    assert failure["predictions"] == "others"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("cmmd", "fail_above must be name=number, such as cmmd=0.5; got 'cmmd'"),
        ("cmmd=x", "must be name=number.*; got 'cmmd=x'"),
        ("cmmd=nan", "must be name=number.*; got 'cmmd=nan'"),
        ("cmd=1", "must name a score of cmmd, .*; got 'cmd'; did you mean 'cmmd'"),
        ("kid=1", "names kid, which is not scored; add kid to metrics"),
    ],
)
def test_limits_that_are_none(words, message):
    with pytest.raises(ValueError, match=message):
        parse_limits([words], [], ["cmmd", "fd"])


def test_nan_is_null_and_rows_are_told_apart():
    assert without_nan({"a": math.nan, "b": [math.inf, 1.0, None], "c": "x"}) == {
        "a": None,
        "b": [None, 1.0, None],
        "c": "x",
    }
    table = score_table([row(cmmd=1.0), {**row(cmmd=2.0), "predictions": "others"}])
    assert table.splitlines()[0] == "| predictions | encoder | dimensions | CMMD |"
    assert table.splitlines()[2:] == ["| samples | clip | 3 | 1 |", "| others | clip | 3 | 2 |"]
