"""The closed-form losses as pure per-sample functions: `nce(logits, labels)`, `gce(logits, labels, q=0.5)`.

Each takes (B, K) logits and (B,) int64 labels as `base.LossInputs` describes them, and gives (B,) float32 (float64
for float64 logits), zero where the label is -100. Notation: p = softmax(logits), p_y that of the given label.
"""

from .asymmetric import ael, agce, amse, aul, jal_ce, jal_fl
from .base import IGNORE_INDEX
from .cross_entropy import ce, fl, gce, js, ls, phuber_ce, taylor_ce
from .epsilon_softmax import ce_eps, fl_eps
from .logits import bi_tempered, ldr_kl, logit_clip
from .negative import anl_ce, anl_fl, nnce, nnfl
from .normalised import (
    mae,
    nce,
    nfl,
    ngce,
    nmae,
    nrce,
    rce,
    sce,
)

__all__ = [
    "IGNORE_INDEX",
    "ael",
    "agce",
    "amse",
    "anl_ce",
    "anl_fl",
    "aul",
    "bi_tempered",
    "ce",
    "ce_eps",
    "fl",
    "fl_eps",
    "gce",
    "jal_ce",
    "jal_fl",
    "js",
    "ldr_kl",
    "logit_clip",
    "ls",
    "mae",
    "nce",
    "nfl",
    "ngce",
    "nmae",
    "nnce",
    "nnfl",
    "nrce",
    "phuber_ce",
    "rce",
    "sce",
    "taylor_ce",
]
