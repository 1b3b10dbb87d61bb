"""The spec grammar, its errors, and the table of losses."""

import inspect
import random
import runpy
import string

import pytest

from hf_robust.losses import (
    PUBLISHED_SUMS,
    LossTerm,
    RobustLoss,
    format_loss_spec,
    functional,
    get_loss,
    list_losses,
    parse_loss_spec,
    published_spec,
)
from hf_robust.losses.spec import format_value

NAMES = (
    "ce fl ls mae rce sce gce nce nfl ngce nmae nrce agce aul ael nnce nnfl anl_ce anl_fl ce_eps fl_eps amse jal_ce "
    "jal_fl taylor_ce phuber_ce js bi_tempered logit_clip ldr_kl elr gjs ogc_ce ogc_fl ogc_gce forward backward nlnl"
).split()


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
        ("logit_clip(delta=none)", [(1.0, "logit_clip", {"tau": 1.0, "delta": None})]),
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

    def draw(domain):
        values = [
            rng.randint(2, 9),
            1.5,
            0,
            rng.uniform(0, 1),
            rng.uniform(1, 9),
            10 ** rng.uniform(-8, 20),
            True,
            False,
            None,
        ]
        return rng.choice([value for value in values if domain.contains(value)])

    for _ in range(300):
        terms = tuple(
            LossTerm(10 ** rng.uniform(-12, 12), info.name, {name: draw(info.domains[name]) for name in info.params})
            for info in rng.choices(list_losses(), k=rng.randint(1, 4))
        )
        assert parse_loss_spec(format_loss_spec(terms)) == terms
        # white space may be added wherever it is, or taken away
        assert parse_loss_spec(format_loss_spec(terms).replace(" ", "")) == terms


VALID = "valid are " + ", ".join(NAMES)


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
        ("gce(q=none)", 4, "q of gce must be a number in (0, 1], got None"),
        ("agce(a=0)", 5, "a of agce must be a finite number > 0, got 0"),
        ("agce(q=-1)", 5, "q of agce must be a finite number > 0, got -1"),
        ("aul(a=1)", 4, "a of aul must be a finite number > 1, got 1"),
        ("ael(a=0)", 4, "a of ael must be a finite number > 0, got 0"),
        ("amse(a=1)", 5, "a of amse must be a finite number > 1, got 1"),
        ("anl_ce(delta=-1)", 7, "delta of anl_ce must be a finite number >= 0, got -1"),
        ("ce_eps(m=-1)", 7, "m of ce_eps must be a finite number >= 0, got -1"),
        ("taylor_ce(t=0)", 10, "t of taylor_ce must be a whole number >= 1, got 0"),
        ("taylor_ce(t=1.5)", 10, "t of taylor_ce must be a whole number >= 1, got 1.5"),
        ("phuber_ce(tau=1)", 10, "tau of phuber_ce must be a finite number > 1, got 1"),
        ("js(pi=0)", 3, "pi of js must be a number in (0, 1), got 0"),
        ("js(pi=1)", 3, "pi of js must be a number in (0, 1), got 1"),
        ("bi_tempered(t1=1.1)", 12, "t1 of bi_tempered must be a number in [0, 1], got 1.1"),
        ("bi_tempered(t2=0.9)", 12, "t2 of bi_tempered must be a number in [1, 5], got 0.9"),
        ("logit_clip(tau=0)", 11, "tau of logit_clip must be a finite number > 0, got 0"),
        ("logit_clip(delta=0)", 11, "delta of logit_clip must be a finite number > 0, or none for tau, got 0"),
        ("ldr_kl(lam=0)", 7, "lam of ldr_kl must be a finite number > 0, got 0"),
        ("ls(epsilon=1)", 3, "epsilon of ls must be a number in [0, 1), got 1"),
        ("elr(beta=1)", 4, "beta of elr must be a number in [0, 1), got 1"),
        ("ogc_ce(queue=1)", 7, "queue of ogc_ce must be a whole number >= 2, got 1"),
        ("nlnl(num_negative=0)", 5, "num_negative of nlnl must be a whole number >= 1, got 0"),
        ("forward(q=1)", 8, "forward has no parameter 'q'; it has none"),
        ("gce(gamma=1)", 4, "gce has no parameter 'gamma'; its parameters are q"),
        ("nfl(g=1)", 4, "nfl has no parameter 'g'; its parameters are gamma, detach"),
        ("nce(q=1)", 4, "nce has no parameter 'q'; it has none"),
        ("gce(q=0.1, q=0.2)", 11, "q of gce is given twice"),
        ("gce(q=)", 6, "expected a number, true, false or none, got ')'"),
        ("gce(q=abc)", 6, "expected a number, true, false or none, got 'abc'"),
        ("nfl(detach=True)", 11, "expected a number, true, false or none, got 'True'"),
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
    shown = repr(spec) if len(spec) < 100 else f"'{spec[:56]} ... {spec[-56:]}'"
    told = str(caught.value).partition("; did you mean")[0]
    assert told == f"loss spec {shown}, position {position}: {message}"


@pytest.mark.parametrize("spec", ["x" * 200_000, "ce(" + "x" * 200_000, "ce(" + "q=1" * 70_000, "ce +" * 50_000 + "?"])
def test_long_specs_are_cut_in_errors(spec):
    with pytest.raises(ValueError, match="^loss spec ") as caught:
        get_loss(spec)
    assert len(str(caught.value)) < 700  # with the names of all losses


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
    symmetric = "mae rce nce nfl ngce nmae nrce nnce nnfl anl_ce anl_fl".split()
    assert [name for name, info in losses.items() if info.symmetric] == symmetric
    assert {name: info.needs for name, info in losses.items() if info.needs} == {
        **dict.fromkeys(("anl_ce", "anl_fl", "jal_ce", "jal_fl"), ("parameters",)),
        **dict.fromkeys(("elr", "nlnl"), ("index",)),
        **dict.fromkeys(("ogc_ce", "ogc_fl", "ogc_gce"), ("learning_rate",)),
        **dict.fromkeys(("forward", "backward"), ("transition_matrix",)),
        "gjs": ("views",),
    }
    for name, info in losses.items():
        assert info.formula and info.paper
        # a default outside its own domain, or a parameter without one, would only show when it is used
        assert set(info.domains) == set(info.params)
        assert all(info.domains[key].contains(value) for key, value in info.params.items())
        assert set(name) <= set(string.ascii_lowercase + string.digits + "_")
        assert set(info.published) <= {"cifar10", "cifar100"}
        if not info.stateful:
            assert info.build is getattr(functional, name)
            assert list(inspect.signature(info.build).parameters)[:2] == ["logits", "labels"]


# The defaults that papers give for CIFAR-10, and the parameters for each data set, as tables list them.
@pytest.mark.parametrize(
    ("spec", "cifar10", "cifar100"),
    [
        ("fl(gamma=0.5)", "fl", "fl"),
        ("gce", "gce(q=0.7)", "gce(q=0.7)"),
        ("sce", "sce(alpha=0.1, beta=1)", "sce(alpha=6, beta=0.1)"),
        ("ngce", "ngce(q=0.1)", "ngce(q=0.7)"),
        ("nce + rce", "nce+rce", "10*nce+0.1*rce"),
        ("nfl+rce", "nfl+rce", "10*nfl+0.1*rce"),
        ("nce+mae", "nce+mae", "10*nce+mae"),
        ("aul", "aul(a=5.5, q=3)", "aul(a=5.5, q=3)"),
        ("ael", "ael(a=2.5)", "ael(a=2.5)"),
        ("agce", "agce(a=0.6, q=0.6)", "agce(a=0.6, q=0.6)"),
        ("nce+aul", "nce+4*aul(a=6.3, q=1.5)", "10*nce+0.015*aul(a=6, q=3)"),
        ("nce+agce", "nce+4*agce(a=6, q=1.5)", "10*nce+0.1*agce(a=1.8, q=3)"),
        ("nce+ael", "nce+4*ael(a=5)", "10*nce+0.1*ael(a=1.5)"),
        ("anl_ce", "anl_ce(alpha=5, beta=5, delta=5e-5)", "anl_ce(alpha=10, beta=1, delta=5e-7)"),
        ("anl_fl", "anl_fl(alpha=5, beta=5, delta=5e-5)", "anl_fl(alpha=10, beta=1, delta=5e-7)"),
        ("jal_ce", "jal_ce(alpha=1, beta=1, a=30, delta=5e-5)", "jal_ce(alpha=5, beta=1, a=20, delta=5e-6)"),
        ("jal_fl", "jal_fl(alpha=1, beta=1, a=30, delta=5e-5)", "jal_fl(alpha=5, beta=1, a=20, delta=5e-6)"),
        ("logit_clip", "logit_clip(tau=0.4, delta=2.5)", "logit_clip(tau=2, delta=0.5)"),
        ("ldr_kl", "ldr_kl(c=0.1, lam=10)", "ldr_kl(c=0.1, lam=1)"),
        ("amse", "amse(a=30)", "amse(a=20)"),
        ("nfl+mae", "nfl+mae", "10*nfl+mae"),
        ("ce_eps+mae", "0.01*ce_eps(m=100000)+10*mae", "ce_eps+mae"),
        ("fl_eps+mae", "0.01*fl_eps(gamma=0.1, m=100000)+10*mae", "fl_eps+mae"),
        ("elr", "elr(lam=3, beta=0.7)", "elr(lam=3, beta=0.7)"),
        ("nlnl", "nlnl(num_negative=1)", "110*nlnl(num_negative=110)"),
        ("gce(q=0.5)", "gce(q=0.5)", "gce(q=0.5)"),  # what says its own parameters or weights keeps them
        ("2*nce + agce", "2*nce+agce", "2*nce+agce"),
        ("ce+mae", "ce+mae", "ce+mae"),
        ("agce+nce", "nce+4*agce(a=6, q=1.5)", "10*nce+0.1*agce(a=1.8, q=3)"),
        ("ngce(q=0.7)", "ngce(q=0.7)", "ngce(q=0.7)"),  # the default, said
        ("1*nce + agce", "nce+agce", "nce+agce"),
        ("logit_clip()", "logit_clip", "logit_clip"),
    ],
)
def test_published_parameters(spec, cifar10, cifar100):
    for dataset, expected in (("cifar10", cifar10), ("cifar100", cifar100)):
        assert published_spec(spec, dataset) == format_loss_spec(parse_loss_spec(expected))


def test_every_published_spec_parses_and_names_what_it_stands_for():
    for info in list_losses():
        for spec in info.published.values():
            assert [term.name for term in parse_loss_spec(spec)] == [info.name]
    for names, specs in PUBLISHED_SUMS.items():
        for spec in specs.values():
            assert "+".join(term.name for term in parse_loss_spec(spec)) == names


def test_published_for_a_data_set_that_is_not_there():
    with pytest.raises(ValueError, match="dataset must be cifar10 or cifar100, got 'mnist'"):
        published_spec("ce", "mnist")


def test_command_line_prints_aligned_tables(capsys):
    runpy.run_module("hf_robust.losses", run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("name "))
    header, rule, *rows = lines[start : start + 2 + len(NAMES)]
    columns = ["name", "formula", "parameters", "cifar10", "cifar100", "symmetric", "needs", "paper"]
    assert header.split() == columns and set(rule) == {"-", " "}
    starts = [
        header.index(f" {column} ") + 1 if column not in ("name", "paper") else header.index(column)
        for column in columns
    ]
    for row, info in zip(rows, list_losses(), strict=True):
        cells = [row[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]
        params = ", ".join(f"{key}={format_value(value)}" for key, value in info.params.items()) or "-"
        published = [info.published.get(dataset, "-") for dataset in ("cifar10", "cifar100")]
        needs = ", ".join(info.needs) or "-"
        assert cells == [
            info.name, info.formula, params, *published, "yes" if info.symmetric else "no", needs, info.paper
        ]  # fmt: skip
    assert any(line.split() == ["nce+rce", "nce", "+", "rce", "10*nce", "+", "0.1*rce"] for line in lines)
