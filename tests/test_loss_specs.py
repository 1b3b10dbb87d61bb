"""The spec grammar, its errors, and the table of losses."""

import inspect
import random
import runpy
import string

import pytest

from hf_robust.losses import LossTerm, RobustLoss, format_loss_spec, functional, get_loss, list_losses, parse_loss_spec

NAMES = ["ce", "fl", "nce", "nfl", "mae", "rce", "sce", "gce"]


@pytest.mark.parametrize(
    ("spec", "terms"),
    [
        ("ce", [(1.0, "ce", {})]),
        ("nce+rce", [(1.0, "nce", {}), (1.0, "rce", {})]),
        ("10*nce + 0.1*rce", [(10.0, "nce", {}), (0.1, "rce", {})]),
        ("gce", [(1.0, "gce", {"q": 0.7})]),
        ("gce(q=0.5)", [(1.0, "gce", {"q": 0.5})]),
        ("gce()", [(1.0, "gce", {"q": 0.7})]),
        ("fl", [(1.0, "fl", {"gamma": 0.5, "detach": False})]),
        ("nfl(detach=true)", [(1.0, "nfl", {"gamma": 0.5, "detach": True})]),
        ("nfl(detach=false,gamma=2)", [(1.0, "nfl", {"gamma": 2, "detach": False})]),
        ("nce + 4*sce(alpha=6, beta=1e-1)", [(1.0, "nce", {}), (4.0, "sce", {"alpha": 6, "beta": 0.1})]),
        ("\t 2 *\n nfl ( gamma = 1.5 , detach = true ) ", [(2.0, "nfl", {"gamma": 1.5, "detach": True})]),
        ("1e-3*ce + 1e+3*mae + 1E3*rce+.5*fl(gamma=0)+2.*nce", [
            (1e-3, "ce", {}),
            (1e3, "mae", {}),
            (1e3, "rce", {}),
            (0.5, "fl", {"gamma": 0, "detach": False}),
            (2.0, "nce", {}),
        ]),
        ("nce + nce", [(1.0, "nce", {}), (1.0, "nce", {})]),
    ],
)  # fmt: skip
def test_parse(spec, terms):
    assert parse_loss_spec(spec) == tuple(LossTerm(*term) for term in terms)
    assert parse_loss_spec(format_loss_spec(parse_loss_spec(spec))) == parse_loss_spec(spec)
    assert get_loss(spec).terms == parse_loss_spec(spec)


@pytest.mark.parametrize(
    ("spec", "canonical"),
    [
        ("nce+rce", "nce + rce"),
        ("1.0*nce+1*rce", "nce + rce"),
        ("10.0*nce+1e-1*rce", "10*nce + 0.1*rce"),
        ("gce(q=0.70)", "gce"),
        ("gce(q=1)", "gce(q=1)"),
        ("gce(q=1.0)", "gce(q=1)"),
        ("nfl(detach=true,gamma=0.5)", "nfl(detach=true)"),
        ("fl(detach=false, gamma=2.0)", "fl(gamma=2)"),
        ("sce(beta=.1, alpha=6)", "sce(alpha=6, beta=0.1)"),
        ("1e-7*ce+1e22*mae", "1e-07*ce + 1e+22*mae"),
        ("0.1234567890123456*ce", "0.1234567890123456*ce"),
    ],
)
def test_canonical_spec(spec, canonical):
    assert format_loss_spec(parse_loss_spec(spec)) == canonical
    assert format_loss_spec(parse_loss_spec(canonical)) == canonical
    assert RobustLoss(spec).spec == canonical


def test_random_sums_round_trip():
    rng = random.Random(0)
    draw = {
        "gamma": lambda: rng.choice([0, 2, rng.uniform(0, 5)]),
        "detach": lambda: rng.random() < 0.5,
        "alpha": lambda: 10 ** rng.uniform(-8, 20),
        "beta": lambda: rng.uniform(0, 2),
        "q": lambda: rng.uniform(1e-6, 1),
    }
    for _ in range(300):
        terms = tuple(
            LossTerm(10 ** rng.uniform(-12, 12), info.name, {name: draw[name]() for name in info.params})
            for info in rng.choices(list_losses(), k=rng.randint(1, 4))
        )
        assert parse_loss_spec(format_loss_spec(terms)) == terms
        # white space may be added wherever it is, or taken away
        assert parse_loss_spec(format_loss_spec(terms).replace(" ", "")) == terms


VALID = "valid are ce, fl, nce, nfl, mae, rce, sce, gce"


@pytest.mark.parametrize(
    ("spec", "position", "message"),
    [
        ("", 0, "expected a loss or its weight, got the end"),
        ("   ", 3, "expected a loss or its weight, got the end"),
        ("cee", 0, f"unknown loss 'cee'; {VALID}"),
        ("NCE", 0, f"unknown loss 'NCE'; {VALID}"),
        ("nce + xyz(q=1)", 6, f"unknown loss 'xyz'; {VALID}"),
        ("nce rce", 4, "expected '+' or the end, got 'rce'"),
        ("nce ++ rce", 5, "expected a loss or its weight, got '+'"),
        ("nce +", 5, "expected a loss or its weight, got the end"),
        ("+nce", 0, "expected a loss or its weight, got '+'"),
        ("nce - rce", 4, "expected '+' or the end, got '-'"),
        ("nce, rce", 3, "expected '+' or the end, got ','"),
        ("2nce", 1, "expected '*' between a weight and its loss, got 'nce'"),
        ("2*", 2, "expected a loss or its weight, got the end"),
        ("2*3*nce", 2, "expected a loss or its weight, got '3'"),
        ("nce*2", 3, "expected '+' or the end, got '*'"),
        ("1.2.3*nce", 3, "expected '*' between a weight and its loss, got '.3'"),
        ("-nce", 1, "expected a number, got 'nce'"),
        ("-1*nce", 0, "a weight must be a finite number > 0, got -1"),
        ("nce + -0.5*rce", 6, "a weight must be a finite number > 0, got -0.5"),
        ("0*nce", 0, "a weight must be a finite number > 0, got 0"),
        ("nce + 0.0*rce", 6, "a weight must be a finite number > 0, got 0.0"),
        ("1e999*nce", 0, "a weight must be a finite number > 0, got inf"),
        (f"{'9' * 400}*nce", 0, "a weight must be a finite number > 0, got inf"),
        ("nan*nce", 0, f"unknown loss 'nan'; {VALID}"),
        ("gce(q=0)", 4, "q of gce must be a number in (0, 1], got 0"),
        ("gce(q=1.01)", 4, "q of gce must be a number in (0, 1], got 1.01"),
        ("gce(q=-0.7)", 4, "q of gce must be a number in (0, 1], got -0.7"),
        ("gce(q=true)", 4, "q of gce must be a number in (0, 1], got True"),
        ("nce+fl( gamma=-1)", 8, "gamma of fl must be a finite number >= 0, got -1"),
        ("nfl(gamma=1e999)", 4, "gamma of nfl must be a finite number >= 0, got inf"),
        ("nfl(detach=1)", 4, "detach of nfl must be true or false, got 1"),
        ("sce(alpha=-0.1)", 4, "alpha of sce must be a finite number >= 0, got -0.1"),
        ("sce(alpha=1, beta=-1)", 13, "beta of sce must be a finite number >= 0, got -1"),
        ("gce(gamma=1)", 4, "gce has no parameter 'gamma'; its parameters are q"),
        ("nfl(g=1)", 4, "nfl has no parameter 'g'; its parameters are gamma, detach"),
        ("nce(q=1)", 4, "nce has no parameter 'q'; it has none"),
        ("gce(q=0.1, q=0.2)", 11, "q of gce is given twice"),
        ("gce(q=)", 6, "expected a number, true or false, got ')'"),
        ("gce(q=abc)", 6, "expected a number, true or false, got 'abc'"),
        ("nfl(detach=True)", 11, "expected a number, true or false, got 'True'"),
        ("gce(q 0.7)", 6, "expected '=' after q, got '0.7'"),
        ("gce(0.7)", 4, "expected a parameter or ')', got '0.7'"),
        ("gce(q=0.7", 9, "expected ',' or ')', got the end"),
        ("gce(q=0.7 + nce", 10, "expected ',' or ')', got '+'"),
        ("gce(", 4, "expected a parameter or ')', got the end"),
        ("gce)", 3, "expected '+' or the end, got ')'"),
        ("nce & rce", 4, "unexpected character '&'"),
        ("nce + 2×rce", 7, "unexpected character '×'"),
    ],
)
def test_errors_show_spec_position_and_what_is_allowed(spec, position, message):
    with pytest.raises(ValueError) as caught:
        get_loss(spec)
    assert str(caught.value) == f"loss spec {spec!r}, position {position}: {message}"


@pytest.mark.parametrize("spec", [None, 3, ["nce"], {"name": "nce"}])
def test_a_spec_is_a_string(spec):
    with pytest.raises(TypeError, match="a loss spec must be a string such as 'nce \\+ rce', got"):
        get_loss(spec)


def test_any_text_parses_or_raises_value_error():
    rng = random.Random(1)
    pieces = [*NAMES, "gamma", "q", "true", "(", ")", "=", ",", "+", "-", "*", " ", "1", "0.5", "1e", ".", "é", "\n"]
    outcomes = set()
    for _ in range(3000):
        spec = "".join(rng.choices(pieces, k=rng.randint(0, 8)))
        try:
            parsed = parse_loss_spec(spec)
        except ValueError as error:
            assert str(error).startswith(f"loss spec {spec!r}, position ")
            outcomes.add("refused")
        else:
            assert parse_loss_spec(format_loss_spec(parsed)) == parsed
            outcomes.add("parsed")
    assert outcomes == {"parsed", "refused"}


def test_list_losses():
    losses = {info.name: info for info in list_losses()}
    assert list(losses) == NAMES
    assert {name: info.params for name, info in losses.items() if info.params} == {
        "fl": {"gamma": 0.5, "detach": False},
        "nfl": {"gamma": 0.5, "detach": False},
        "sce": {"alpha": 0.1, "beta": 1.0},
        "gce": {"q": 0.7},
    }
    assert [name for name, info in losses.items() if info.symmetric] == ["nce", "nfl", "mae", "rce"]
    for name, info in losses.items():
        assert info.function is getattr(functional, name)
        assert info.formula and info.paper
        # a default outside its own domain, or a parameter without one, would only show when it is used
        assert list(info.function.domains) == list(info.params)
        assert all(info.function.domains[key].contains(value) for key, value in info.params.items())
        assert list(inspect.signature(info.function).parameters)[:2] == ["logits", "labels"]
        assert set(name) <= set(string.ascii_lowercase + string.digits + "_")


def test_command_line_prints_an_aligned_table(capsys):
    runpy.run_module("hf_robust.losses", run_name="__main__")
    _, _, header, rule, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "formula", "parameters", "symmetric", "paper"]
    assert [row.split()[0] for row in rows] == NAMES
    starts = [header.index(column) for column in header.split()]
    for row, info in zip(rows, list_losses(), strict=True):
        cells = [row[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]
        assert cells[:2] == [info.name, info.formula] and cells[4] == info.paper
        assert cells[3] == ("yes" if info.symmetric else "no")
    assert "gamma=0.5, detach=false" in rows[NAMES.index("nfl")]
    assert set(rule) == {"-", " "}
