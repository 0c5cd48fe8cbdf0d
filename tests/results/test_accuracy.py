"""Error metrics against values worked out by hand, and against closed forms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.results.accuracy import accuracy, pairs_in_order, rank_correlation

amount = st.floats(0.001, 1000.0)
rows = st.lists(st.tuples(amount, amount), min_size=3, max_size=30)


def test_errors_by_hand() -> None:
    errors = accuracy([10.0, 20.0, 40.0, 50.0, 100.0], [11.0, 16.0, 40.0, 65.0, 90.0])
    # signed: +0.1, -0.2, 0, +0.3, -0.1
    assert errors.median_ape == pytest.approx(0.1)
    assert errors.bias == pytest.approx(0.0)
    assert errors.p90_ape == pytest.approx(0.2 + 0.6 * 0.1)  # 0.9 * 4 = 3.6: between 0.2 and 0.3
    assert errors.rank_correlation == pytest.approx(1.0)
    assert errors.pairs_in_order == 1.0


def test_a_constant_factor_is_the_bias_and_keeps_every_order() -> None:
    measured = np.geomspace(0.01, 10.0, 40)
    errors = accuracy(measured.tolist(), (1.3 * measured).tolist())
    assert (errors.median_ape, errors.p90_ape, errors.bias) == pytest.approx((0.3, 0.3, 0.3))
    assert errors.rank_correlation == pytest.approx(1.0)


def test_nothing_is_said_of_the_rank_of_two_rows() -> None:
    assert accuracy([1.0, 2.0], [1.0, 2.0]).rank_correlation is None


def test_equal_predictions_have_no_rank_and_no_order() -> None:
    assert rank_correlation([1.0, 2.0, 3.0], [5.0, 5.0, 5.0]) is None
    assert pairs_in_order([1.0, 2.0, 3.0], [5.0, 5.0, 5.0]) == 0.0


def test_spearman_without_ties_is_the_textbook_formula() -> None:
    first, second = np.random.default_rng(7).permuted(np.tile(np.arange(20), (2, 1)), axis=1)
    squares = int(((first - second) ** 2).sum())
    assert rank_correlation(first, second) == pytest.approx(1 - 6 * squares / (20 * (400 - 1)))


def test_tied_values_share_their_mean_rank() -> None:
    # ranks 1.5 1.5 3 4 against 1 2 3 4: covariance 4.5, variances 4.5 and 5
    assert rank_correlation([7, 7, 8, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)


def test_measurements_that_repeat_each_other_are_no_pair() -> None:
    assert pairs_in_order([1.0, 1.019], [2.0, 1.0]) is None
    assert pairs_in_order([1.0, 1.021], [2.0, 1.0]) == 0.0


def test_pairs_do_not_depend_on_the_order_of_the_rows() -> None:
    measured, predicted = [3.0, 1.0, 2.0], [30.0, 20.0, 10.0]
    assert pairs_in_order(measured, predicted) == pytest.approx(2 / 3)
    assert pairs_in_order(measured[::-1], predicted[::-1]) == pytest.approx(2 / 3)


@given(rows)
def test_shares_and_correlations_stay_in_their_ranges(pairs: list[tuple[float, float]]) -> None:
    errors = accuracy(*map(list, zip(*pairs, strict=True)))
    assert 0 <= errors.median_ape <= errors.p90_ape
    assert errors.bias > -1
    assert errors.rank_correlation is None or abs(errors.rank_correlation) <= 1 + 1e-9
    assert errors.pairs_in_order is None or 0 <= errors.pairs_in_order <= 1


def test_intervals_are_absent_but_named() -> None:
    shown = accuracy([1.0], [1.0]).as_dict()
    assert list(shown) == ["median_ape", "p90_ape", "bias", "rank_correlation", "pairs_in_order",
                           "coverage_90", "median_half_width"]  # fmt: skip
    assert shown["coverage_90"] is None and shown["median_half_width"] is None
