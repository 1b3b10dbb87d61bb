"""The table of losses: what each is, where it comes from, what it needs, and the parameters that were published.

A loss of one's own joins it by [`register_loss`] and is then known to specs, commands, cards and figures.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hf_common.identity import same_code

from .asymmetric import ael, agce, amse, aul, jal_ce, jal_fl
from .base import Domain, StatefulLoss
from .correction import Backward, Forward
from .cross_entropy import ce, fl, gce, js, ls, phuber_ce, taylor_ce
from .elr import Elr
from .epsilon_softmax import ce_eps, fl_eps
from .gjs import Gjs
from .logits import ldr_kl, logit_clip, logit_clip_probabilities
from .negative import anl_ce, anl_fl, nnce, nnfl
from .nlnl import Nlnl
from .normalised import mae, nce, nfl, ngce, nmae, nrce, rce, sce
from .ogc import OgcCe, OgcFl, OgcGce
from .tempered import bi_tempered, bi_tempered_probabilities

CITED = r"(.+) (\d{4}), (.+)"  # the form of `LossInfo.paper`: authors, year, where
NEEDS = ("index", "views", "parameters", "learning_rate", "transition_matrix")  # what `LossInfo.needs` may name
MARKERS = ".,ov^<>12348spP*hH+xXDd|_"  # of matplotlib, by a letter
SOFTMAX = "softmax(z)"  # the link of most losses, and what a pipeline of transformers takes


@dataclass(frozen=True)
class LossInfo:
    """One row of the table of losses.

    Args:
        name: of the loss in specs.
        build: what `loss_function` makes, or a class of `StatefulLoss`.
        formula: in words of p = softmax(logits), y = given label, K = number of classes.
        paper: `"Authors 2020, where"` or `"Authors 2020, arXiv:2006.13554"`; `title`: of one that is not in `TITLES`.
        symmetric: the sum of the loss over all labels is the same for every p.
        needs: beside logits and labels, of `NEEDS`.
        published: data set -> spec, where that is another than the defaults.
        link: (logits (B, K), parameters) -> the probabilities (B, K) of which the loss is one; None: softmax.
        link_words: the link in words.
        style: colour (`#RRGGBB`) and marker (of `MARKERS`) in figures; None: one of the spare ones, by the alphabet.
    """

    name: str
    build: Any
    formula: str
    paper: str
    symmetric: bool = False
    needs: tuple[str, ...] = ()
    published: dict[str, str] = field(default_factory=dict)
    link: Callable[..., Tensor] | None = None
    link_words: str = SOFTMAX
    title: str | None = None
    style: tuple[str, str] | None = None

    @property
    def params(self) -> dict[str, float | bool | None]:
        """Parameters and their defaults, from the signature."""
        parameters = inspect.signature(self.build).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}

    @property
    def domains(self) -> dict[str, Domain]:
        """The values that each parameter takes."""
        return self.build.domains

    @property
    def stateful(self) -> bool:
        """Whether it is a module that may look at more than logits and labels."""
        return isinstance(self.build, type)


_MA = "Ma et al. 2020, arXiv:2006.13554"
_WANG = "Wang et al. 2019, arXiv:1908.06112"
_ZHOU = "Zhou et al. 2021, arXiv:2106.03110"
_YE = "Ye et al. 2023, arXiv:2412.02373"
_EPS = "Wang et al. 2024, NeurIPS (epsilon-softmax)"
_JAL = "Wang et al. 2025, arXiv:2507.17692"
_JS = "Englesson & Azizpour 2021, arXiv:2105.04522"
_OGC = "Ye et al. 2025, arXiv:2412.08941"
_PATRINI = "Patrini et al. 2017, arXiv:1609.03683"
_L1 = " + delta ||theta||_1"

_ROWS = [
    LossInfo("ce", ce, "-log p_y", "maximum likelihood"),
    LossInfo("fl", fl, "-(1-p_y)^gamma log p_y", "Lin et al. 2017, arXiv:1708.02002"),
    LossInfo("ls", ls, "-(1-epsilon) log p_y - epsilon mean_k log p_k", "Szegedy et al. 2016, arXiv:1512.00567"),
    LossInfo("mae", mae, "1 - p_y", "Ghosh et al. 2017, arXiv:1712.09482", symmetric=True),
    LossInfo("rce", rce, "-ln(1e-4) (1 - p_y)", _WANG, symmetric=True),
    LossInfo(
        "sce",
        sce,
        "alpha CE + beta RCE",
        _WANG,
        published={"cifar10": "sce(alpha=0.1, beta=1)", "cifar100": "sce(alpha=6, beta=0.1)"},
    ),
    LossInfo("gce", gce, "(1 - p_y^q) / q", "Zhang & Sabuncu 2018, arXiv:1805.07836"),
    LossInfo("nce", nce, "log p_y / sum_k log p_k", _MA, symmetric=True),
    LossInfo("nfl", nfl, "FL_y / sum_k FL_k", _MA, symmetric=True),
    LossInfo(
        "ngce",
        ngce,
        "(1 - p_y^q) / (K - sum_k p_k^q)",
        _MA,
        symmetric=True,
        published={"cifar10": "ngce(q=0.1)", "cifar100": "ngce(q=0.7)"},
    ),
    LossInfo("nmae", nmae, "(1 - p_y) / (K - 1)", _MA, symmetric=True),
    LossInfo("nrce", nrce, "(1 - p_y) / (K - 1)", _MA, symmetric=True),
    LossInfo("agce", agce, "((a+1)^q - (a+p_y)^q) / q", _ZHOU),
    LossInfo("aul", aul, "((a-p_y)^q - (a-1)^q) / q", _ZHOU),
    LossInfo("ael", ael, "exp(-p_y / a)", _ZHOU),
    LossInfo("nnce", nnce, "1 - (A + log p_y) / sum_k (A + log p_k), A = -ln 1e-7", _YE, symmetric=True),
    LossInfo("nnfl", nnfl, "1 - (A - FL_y) / sum_k (A - FL_k), A = FL(1e-7)", _YE, symmetric=True),
    LossInfo(
        "anl_ce",
        anl_ce,
        "alpha NCE + beta NNCE" + _L1,
        _YE,
        symmetric=True,
        needs=("parameters",),
        published={"cifar100": "anl_ce(alpha=10, beta=1, delta=5e-7)"},
    ),
    LossInfo(
        "anl_fl",
        anl_fl,
        "alpha NFL + beta NNFL" + _L1,
        _YE,
        symmetric=True,
        needs=("parameters",),
        published={"cifar100": "anl_fl(alpha=10, beta=1, delta=5e-7)"},
    ),
    LossInfo("ce_eps", ce_eps, "-log q_y, q = (p + m e_argmax(p)) / (m+1)", _EPS),
    LossInfo("fl_eps", fl_eps, "-(1-q_y)^gamma log q_y, q as in ce_eps", _EPS),
    LossInfo(
        "amse",
        amse,
        "||a e_y - p||^2 / K",
        _JAL,
        published={"cifar100": "amse(a=20)"},
    ),
    LossInfo(
        "jal_ce",
        jal_ce,
        "alpha NCE + beta AMSE" + _L1,
        _JAL,
        needs=("parameters",),
        published={"cifar100": "jal_ce(alpha=5, a=20, delta=5e-6)"},
    ),
    LossInfo(
        "jal_fl",
        jal_fl,
        "alpha NFL + beta AMSE" + _L1,
        _JAL,
        needs=("parameters",),
        published={"cifar100": "jal_fl(alpha=5, a=20, delta=5e-6)"},
    ),
    LossInfo("taylor_ce", taylor_ce, "sum_{i=1..t} (1-p_y)^i / i", "Feng et al. 2020, IJCAI"),
    LossInfo(
        "phuber_ce",
        phuber_ce,
        "-log p_y, for p_y < 1/tau its tangent",
        "Menon et al. 2020, ICLR (PHuber)",
    ),
    LossInfo("js", js, "[pi KL(e_y||m) + (1-pi) KL(p||m)] / Z, m = pi e_y + (1-pi) p", _JS),
    LossInfo(
        "bi_tempered",
        bi_tempered,
        "-log_t1 q_y - (1 - sum_k q_k^(2-t1)) / (2-t1), q = exp_t2(z - lambda)",
        "Amid et al. 2019, arXiv:1906.03361",
        link=bi_tempered_probabilities,
        link_words="the tempered softmax exp_t2(z - lambda)",
    ),
    LossInfo(
        "logit_clip",
        logit_clip,
        "CE(delta z / ||z||) where ||z|| > tau, else CE(z)",
        "Wei et al. 2023, arXiv:2212.04055",
        link=logit_clip_probabilities,
        link_words="the softmax of the clipped logits",
        published={"cifar10": "logit_clip(tau=0.4, delta=2.5)", "cifar100": "logit_clip(tau=2, delta=0.5)"},
    ),
    LossInfo(
        "ldr_kl",
        ldr_kl,
        "lam log mean_k exp((c 1[k!=y] + s_k - s_y) / lam), s = softplus(z) / mean",
        "Zhu et al. 2023, arXiv:2112.14869",
        published={"cifar100": "ldr_kl(lam=1)"},
    ),
    LossInfo(
        "elr",
        Elr,
        "CE + lam log(1 - <t_i, p>), t_i = running average of p",
        "Liu et al. 2020, arXiv:2007.00151",
        needs=Elr.needs,
    ),
    LossInfo("gjs", Gjs, "JS of label, p(view 1), p(view 2)", _JS, needs=Gjs.needs),
    LossInfo("ogc_ce", OgcCe, "CE with dL/dp_y clipped at a bound that adapts", _OGC, needs=OgcCe.needs),
    LossInfo("ogc_fl", OgcFl, "FL with dL/dp_y clipped at a bound that adapts", _OGC, needs=OgcFl.needs),
    LossInfo("ogc_gce", OgcGce, "GCE with dL/dp_y clipped at a bound that adapts", _OGC, needs=OgcGce.needs),
    LossInfo("forward", Forward, "-log (T^t p)_y", _PATRINI, needs=Forward.needs),
    LossInfo("backward", Backward, "sum_j (T^-1)[y, j] CE_j", _PATRINI, needs=Backward.needs),
    LossInfo(
        "nlnl",
        Nlnl,
        "-log(1 - p_c), c a random label other than y",
        "Kim et al. 2019, arXiv:1908.07387",
        needs=Nlnl.needs,
        published={"cifar100": "110*nlnl(num_negative=110)"},
    ),
]

LOSSES: dict[str, LossInfo] = {info.name: info for info in _ROWS}

# Sums that were published, by the names in them: data set -> spec. The code of epsilon-softmax adds the full L1
# distance, 2 (1 - p_y), with weight 5: 10 times `mae`.
PUBLISHED_SUMS: dict[str, dict[str, str]] = {
    "nce+rce": {"cifar10": "nce + rce", "cifar100": "10*nce + 0.1*rce"},
    "nfl+rce": {"cifar10": "nfl + rce", "cifar100": "10*nfl + 0.1*rce"},
    "nce+mae": {"cifar10": "nce + mae", "cifar100": "10*nce + mae"},
    "nfl+mae": {"cifar10": "nfl + mae", "cifar100": "10*nfl + mae"},
    "nce+aul": {"cifar10": "nce + 4*aul(a=6.3, q=1.5)", "cifar100": "10*nce + 0.015*aul(a=6, q=3)"},
    "nce+agce": {"cifar10": "nce + 4*agce(a=6, q=1.5)", "cifar100": "10*nce + 0.1*agce(a=1.8, q=3)"},
    "nce+ael": {"cifar10": "nce + 4*ael(a=5)", "cifar100": "10*nce + 0.1*ael(a=1.5)"},
    "ce_eps+mae": {"cifar10": "0.01*ce_eps + 10*mae"},
    "fl_eps+mae": {"cifar10": "0.01*fl_eps + 10*mae"},
}


def register_loss(info: LossInfo) -> LossInfo:
    """Add a loss to the table, or take the place of the same one.

        @loss_function(q=UNIT_INTERVAL)
        def mine(x: LossInputs, *, q: float = 0.5) -> Tensor: ...

        register_loss(LossInfo("mine", mine, "1 - p_y^q", "this work"))

    Raises:
        TypeError: `info` is no `LossInfo`, or `build` neither made by `loss_function` nor a `StatefulLoss` class.
        ValueError: a name that no spec can hold or that another loss has, a parameter without domain or default or
            with a default outside its domain, needs or a style that there are not, a title without a paper of the
            form that cards cite.
    """
    if not isinstance(info, LossInfo):
        raise TypeError(f"info must be a LossInfo, got {type(info).__name__}")
    build = info.build
    if not hasattr(build, "core") and not (isinstance(build, type) and issubclass(build, StatefulLoss)):
        raise TypeError(f"build must be made by loss_function or be a StatefulLoss class, got {build!r:.120}")
    if not re.fullmatch(r"[A-Za-z_]\w*", info.name, re.ASCII) or info.name in ("true", "false", "none"):
        raise ValueError(f"name must be an identifier and not true, false or none; got {info.name!r:.80}")
    if info.name in LOSSES and not same_code(LOSSES[info.name].build, build):
        raise ValueError(f"there is a loss {info.name!r} already")
    for name, default in info.params.items():
        if name not in ("transition_matrix", *info.domains) or default is inspect.Parameter.empty:
            raise ValueError(f"{name} of {info.name} needs a default and a domain, as loss_function({name}=POSITIVE)")
        if name in info.domains and not info.domains[name].contains(default):
            raise ValueError(
                f"{name} of {info.name} must have a default that is {info.domains[name].text}; got {default!r:.80}"
            )
    if unknown := [need for need in info.needs if need not in NEEDS]:
        raise ValueError(f"needs of {info.name} must be of {', '.join(NEEDS)}; got {unknown[0]!r:.80}")
    if info.style is not None and not _can_be_drawn(*info.style):
        raise ValueError(f"style of {info.name} must be such as ('#0072B2', 'o'); got {info.style!r:.80}")
    if info.title is not None and not re.fullmatch(CITED, info.paper):
        raise ValueError(f"paper must be such as 'Ma et al. 2020, arXiv:2006.13554'; got {info.paper!r:.120}")
    LOSSES[info.name] = info
    return info


def _can_be_drawn(colour: object, marker: object = None, *rest: object) -> bool:
    coloured = isinstance(colour, str) and re.fullmatch("#[0-9A-Fa-f]{6}", colour) is not None
    return coloured and isinstance(marker, str) and len(marker) == 1 and marker in MARKERS and not rest


def list_losses() -> list[LossInfo]:
    """All losses that a spec string may name; each has name, formula, paper, params (defaults), symmetric, needs and
    published (specs by data set where these differ from the defaults)."""
    return list(LOSSES.values())
