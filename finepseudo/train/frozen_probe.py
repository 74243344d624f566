"""The frozen probe: logistic regression on features that no label has shaped; the least that a method must beat.

Axes: G labelled videos, N videos to classify, F features, K classes.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

Floats = NDArray[np.floating]

COSTS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""C, from the strongest L2 penalty |w|^2 / (2 C) on; 1 where there is nothing to choose it by."""
FOLDS = 5
CHOSEN_ON = 2048  # labelled videos that C is chosen on, at most
ITERATIONS = 200  # of L-BFGS; of many classes the last digits are not worth more


def probe(feat_GF: Floats, label_G: NDArray[np.integer], feat_NF: Floats, num_classes: int, seed: int) -> Floats:
    """p_NK by multinomial logistic regression, each feature standardised by its mean and deviation over D_l.    [C]

        min over w:  |w|^2 / 2 + C sum over g of -log softmax(w z_g)[label_g],   z = (feat - mean_G) / std_G

    C has the smallest cross-entropy over FOLDS cross-fits of D_l; nothing but D_l decides anything.

    Args:
        label_G: of at least two classes; a class without a labelled video gets p = 0.
        seed: of the folds.
    """
    mean_F, std_F = feat_GF.mean(0), feat_GF.std(0)
    scale_F = np.where(std_F > 1e-6, std_F, 1.0)
    z_GF, z_NF = ((feat - mean_F) / scale_F for feat in (feat_GF, feat_NF))
    fitted = _fit(z_GF, label_G, _chosen(z_GF, label_G, np.random.default_rng(seed)))
    p_NK = np.zeros((len(feat_NF), num_classes), np.float32)
    p_NK[:, fitted.classes_] = fitted.predict_proba(z_NF)
    return p_NK


def _chosen(z_GF: Floats, label_G: NDArray[np.integer], rng: np.random.Generator) -> float:
    """The C of the smallest cross-entropy on videos left out; of equal ones that of the stronger penalty."""
    some = rng.permutation(len(label_G))[:CHOSEN_ON]
    z_GF, label_G = z_GF[some], label_G[some]
    fold_G = _folds(label_G)
    if fold_G.max() < 0:
        return 1.0
    loss_C = [
        sum(_loss(z_GF, label_G, fold_G == fold, cost) for fold in np.unique(fold_G[fold_G >= 0])) for cost in COSTS
    ]
    return COSTS[int(np.argmin(loss_C))]


def _folds(label_G: NDArray[np.integer]) -> NDArray[np.int64]:
    """Which fold leaves a video out: those of a class go round. -1, none, for the only video of its class."""
    fold_G, turn = np.full(len(label_G), -1), 0
    for label in np.unique(label_G):
        members = np.flatnonzero(label_G == label)
        if len(members) > 1:
            fold_G[members] = (turn + np.arange(len(members))) % FOLDS
            turn += len(members)
    return fold_G


def _loss(z_GF: Floats, label_G: NDArray[np.integer], out_G: NDArray[np.bool_], cost: float) -> float:
    """Summed cross-entropy of the videos that are left out; their classes have others that are not."""
    fitted = _fit(z_GF[~out_G], label_G[~out_G], cost)
    place_N = np.searchsorted(fitted.classes_, label_G[out_G])
    return -float(fitted.predict_log_proba(z_GF[out_G])[np.arange(len(place_N)), place_N].sum())


def _fit(z_GF: Floats, label_G: NDArray[np.integer], cost: float) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # one or two videos a class
        return LogisticRegression(C=cost, max_iter=ITERATIONS).fit(z_GF, label_G)
