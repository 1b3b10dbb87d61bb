"""The papers of the table of losses, as BibTeX."""

import re

from hf_common.references import Paper, bibtex

from .table import CITED, LossInfo

# As the table names them -> title.
TITLES = {
    "Lin et al. 2017, arXiv:1708.02002": "Focal Loss for Dense Object Detection",
    "Szegedy et al. 2016, arXiv:1512.00567": "Rethinking the Inception Architecture for Computer Vision",
    "Ghosh et al. 2017, arXiv:1712.09482": "Robust Loss Functions under Label Noise for Deep Neural Networks",
    "Wang et al. 2019, arXiv:1908.06112": "Symmetric Cross Entropy for Robust Learning with Noisy Labels",
    "Zhang & Sabuncu 2018, arXiv:1805.07836": "Generalized Cross Entropy Loss for Training Deep Neural Networks with "
    "Noisy Labels",
    "Ma et al. 2020, arXiv:2006.13554": "Normalized Loss Functions for Deep Learning with Noisy Labels",
    "Zhou et al. 2021, arXiv:2106.03110": "Asymmetric Loss Functions for Learning with Noisy Labels",
    "Ye et al. 2023, arXiv:2412.02373": "Active Negative Loss Functions for Learning with Noisy Labels",
    "Wang et al. 2024, NeurIPS (epsilon-softmax)": "$\\epsilon$-Softmax: Approximating One-Hot Vectors for Mitigating "
    "Label Noise",
    "Wang et al. 2025, arXiv:2507.17692": "Joint Asymmetric Loss for Learning with Noisy Labels",
    "Feng et al. 2020, IJCAI": "Can Cross Entropy Loss Be Robust to Label Noise?",
    "Menon et al. 2020, ICLR (PHuber)": "Can Gradient Clipping Mitigate Label Noise?",
    "Englesson & Azizpour 2021, arXiv:2105.04522": "Generalized Jensen-Shannon Divergence Loss for Learning with "
    "Noisy Labels",
    "Amid et al. 2019, arXiv:1906.03361": "Robust Bi-Tempered Logistic Loss Based on Bregman Divergences",
    "Wei et al. 2023, arXiv:2212.04055": "Mitigating Memorization of Noisy Labels by Clipping the Model Prediction",
    "Zhu et al. 2023, arXiv:2112.14869": "Label Distributionally Robust Losses for Multi-class Classification: "
    "Consistency, Robustness and Adaptivity",
    "Liu et al. 2020, arXiv:2007.00151": "Early-Learning Regularization Prevents Memorization of Noisy Labels",
    "Ye et al. 2025, arXiv:2412.08941": "Optimized Gradient Clipping for Noisy Label Learning",
    "Patrini et al. 2017, arXiv:1609.03683": "Making Deep Neural Networks Robust to Label Noise: a Loss Correction "
    "Approach",
    "Kim et al. 2019, arXiv:1908.07387": "NLNL: Negative Learning for Noisy Labels",
}


def loss_bibtex(info: LossInfo) -> str | None:
    """The entry of a loss's paper; None for a loss that is no paper's, such as cross-entropy."""
    title, cited = info.title or TITLES.get(info.paper), re.fullmatch(CITED, info.paper)
    if title is None or cited is None:
        return None
    authors, year, where = cited.groups()
    arxiv = where.removeprefix("arXiv:") if where.startswith("arXiv:") else None
    paper = Paper(authors, title, where.partition(" (")[0], arxiv)
    return bibtex(paper, year, suffix=info.name.partition("_")[0])
