"""Scores against numbers calculated by hand."""

import pytest

from rcig_eqx.evaluation import ars, hlr, ior, lrs, relative_accuracy, rr

# name: the score, and its value by hand
BY_HAND = {
    "HLR": (lambda: hlr(0.9, 0.75), 0.15),
    "HLR, nothing lost": (lambda: hlr(0.9, 0.92), -0.02),
    "IOR": (lambda: ior(0.8, 0.5), 0.3),
    # α = 0.5 · 0.3 − 0.5 · 0.15 = 0.075; (e^0.075 − e⁻¹) / (e − e⁻¹) = 0.7100047095 / 2.3504023873
    "LRS": (lambda: lrs(0.9, 0.75, 0.8, 0.5), 0.3020779),
    # α = 0.8 · 0.3 − 0.2 · 0.15 = 0.21; (1.2336780600 − 0.3678794412) / 2.3504023873
    "LRS, weighted": (lambda: lrs(0.9, 0.75, 0.8, 0.5, weight=0.8), 0.3683619),
    "LRS, the worst": (lambda: lrs(1.0, 0.0, 0.0, 1.0), 0.0),
    "LRS, the best": (lambda: lrs(0.0, 1.0, 1.0, 0.0), 1.0),
    # β = 0.5 · 0.1 + 0.5 · 0.3 = 0.2; (1.2214027582 − 0.3678794412) / 2.3504023873
    "ARS": (lambda: ars(0.8, 0.5, 0.7, 0.6), 0.3631392),
    # β = 0.25 · 0.1 + 0.75 · 0.3 = 0.25; (1.2840254167 − 0.3678794412) / 2.3504023873
    "ARS, weighted": (lambda: ars(0.8, 0.5, 0.7, 0.6, weight=0.25), 0.3897826),
    # 1 − (0.8 − 0.3) / (0.8 − 0.2) = 1 / 6
    "RR": (lambda: rr(0.8, [0.4, 0.2]), 1 / 6),
    "RR, one attack": (lambda: rr(0.8, [0.2]), 0.0),
    "RR, no attack lowers it": (lambda: rr(0.8, [0.8, 0.9]), 1.0),
    "relative": (lambda: relative_accuracy(0.6, 0.8), 0.75),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_scores_are_those_calculated_by_hand(name):
    score, value = BY_HAND[name]
    assert score() == pytest.approx(value, abs=1e-6)


# name: the call, the argument, and what is said
REFUSED = {
    "a percentage": (lambda: hlr(91.1, 0.75), "full", "a fraction of one"),
    "a negative one": (lambda: ior(0.8, -0.1), "random", "a fraction of one"),
    "NaN": (lambda: lrs(0.9, float("nan"), 0.8, 0.5), "hard", "a fraction of one"),
    "a weight": (lambda: ars(0.8, 0.5, 0.7, 0.6, weight=2.0), "weight", "a fraction of one"),
    "no attack": (lambda: rr(0.8, []), "attacked", "one accuracy per attack"),
    "an attack": (lambda: rr(0.8, [0.2, 20.0]), "attacked", "a fraction of one"),
    "nothing to compare with": (lambda: relative_accuracy(0.5, 0.0), "full", "positive"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_fraction_is_refused(name):
    call, argument, says = REFUSED[name]
    with pytest.raises(ValueError, match=says) as info:
        call()
    assert info.value.argument == argument  # pyright: ignore[reportAttributeAccessIssue]
