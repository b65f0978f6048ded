"""N(k) and mu(k) are the paper's formulas, at their ends and in between."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from cmray.core.curricula import (
    AdaptiveMu,
    AdaptiveNumSigmas,
    DoublingNumSigmas,
    FixedMu,
    FixedNumSigmas,
    HalvingNumSigmas,
    MuField,
    NumSigmasField,
    mu_schedules,
    num_sigmas_schedules,
)


@given(s0=st.integers(2, 30), more=st.integers(0, 300), steps=st.integers(1, 3000))
def test_adaptive_n_runs_from_s0_to_s1_plus_1_without_falling(s0, more, steps):
    schedule = AdaptiveNumSigmas(s0=s0, s1=s0 + more)
    path = [schedule.num_sigmas_at(k, steps) for k in range(0, steps + 1, max(1, steps // 50))]
    assert path[0] == s0
    assert schedule.num_sigmas_at(steps, steps) == s0 + more + 1
    assert path == sorted(path)
    assert all(isinstance(n, int) for n in path)


@given(s0=st.integers(2, 20), more=st.integers(1, 200), steps=st.integers(1, 10**6), data=st.data())
def test_adaptive_n_inverts_its_formula_in_integers(s0, more, steps, data):
    # N = ceil(r - 1) + 1 means N - 1 < r <= N: squared and times K it is exact in integers.
    s1 = s0 + more
    k = data.draw(st.integers(0, steps))
    r2_times_steps = k * ((s1 + 1) ** 2 - s0**2) + s0**2 * steps
    n = AdaptiveNumSigmas(s0=s0, s1=s1).num_sigmas_at(k, steps)
    # A square root that is a whole number may be rounded to either side by the floating-point formula.
    assume(not any(r2_times_steps == m * m * steps for m in (n - 1, n)))
    assert (n - 1) ** 2 * steps < r2_times_steps < n**2 * steps


def test_adaptive_n_by_hand():
    # s0 = 2, s1 = 3, K = 12: r(k) = sqrt(k + 4), N = ceil(r - 1) + 1
    schedule = AdaptiveNumSigmas(s0=2, s1=3)
    assert [schedule.num_sigmas_at(k, 12) for k in range(13)] == [2, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4]


def test_fixed_schedules_do_not_move():
    assert {FixedNumSigmas(num_sigmas=18).num_sigmas_at(k, 100) for k in range(100)} == {18}
    assert {FixedMu(mu=0.9).mu_at(n, s0) for n in (2, 18, 151) for s0 in (None, 2)} == {0.9}


@pytest.mark.parametrize("mu0", [0.1, 0.9, 0.95])
@pytest.mark.parametrize("s0", [2, 10])
def test_adaptive_mu_by_hand_in_both_conventions(mu0, s0):
    for n in (s0, s0 + 1, 151):
        paper = AdaptiveMu(mu0=mu0, divisor="paper").mu_at(n, s0)
        reference = AdaptiveMu(mu0=mu0, divisor="reference").mu_at(n, s0)
        assert paper == pytest.approx(math.exp(s0 * math.log(mu0) / n), rel=1e-14)
        assert reference == pytest.approx(math.exp(s0 * math.log(mu0) / (n - 1)), rel=1e-14)
        assert reference < paper < 1
    # The paper's own check: mu(0) = mu0, because N(0) = s0.
    assert AdaptiveMu(mu0=mu0).mu_at(s0, s0) == pytest.approx(mu0, rel=1e-14)
    assert AdaptiveMu(mu0=mu0).divisor == "paper"


def test_the_half_life_of_adaptive_mu_grows_with_n():
    values = [AdaptiveMu(mu0=0.9).mu_at(n, 2) for n in range(2, 200)]
    assert values == sorted(values)
    assert len(set(values)) == len(values)


def test_adaptive_mu_without_s0_says_what_is_missing():
    with pytest.raises(ValueError, match="adaptive mu needs an adaptive num_sigmas"):
        AdaptiveMu().mu_at(18, None)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: AdaptiveNumSigmas(s0=10, s1=9), "s0 10 and s1 9"),
        (lambda: AdaptiveNumSigmas(s0=1), "s0"),
        (lambda: FixedNumSigmas(num_sigmas=1), "num_sigmas"),
        (lambda: FixedMu(mu=1.0), "mu"),
        (lambda: FixedMu(mu=-0.1), "mu"),
        (lambda: AdaptiveMu(mu0=0.0), "mu0"),
        (lambda: AdaptiveMu(mu0=1.0), "mu0"),
        (lambda: AdaptiveMu(divisor="papers"), "divisor"),
    ],
)
def test_bounds_are_checked_at_construction(make, field):
    with pytest.raises(ValidationError, match=field):
        make()


def test_a_bare_number_in_a_file_means_a_fixed_schedule():
    class Holder(BaseModel):
        n: NumSigmasField
        mu: MuField

    holder = Holder.model_validate({"n": 36, "mu": 0})
    assert holder.n == FixedNumSigmas(num_sigmas=36)
    assert holder.mu == FixedMu(mu=0)
    assert Holder.model_validate({"n": {"name": "adaptive", "s1": 80}, "mu": "adaptive"}).n.s1 == 80
    with pytest.raises(ValidationError, match="is a name or a mapping"):
        Holder.model_validate({"n": True, "mu": 0})


def test_both_registries_offer_fixed_and_adaptive():
    assert {"fixed", "adaptive"} <= set(num_sigmas_schedules.names())
    assert {"fixed", "adaptive"} <= set(mu_schedules.names())


def test_doubling_n_is_the_table_of_the_paper():
    """iCT, Sec. 3.4: s0 = 10, s1 = 1280 over 400,000 steps doubles every 50,000."""
    schedule = DoublingNumSigmas()
    path = [schedule.num_sigmas_at(k, 400_000) for k in range(0, 400_001, 50_000)]
    assert path == [11, 21, 41, 81, 161, 321, 641, 1281, 1281]
    assert [schedule.num_sigmas_at(k, 400_000) for k in (49_999, 50_000)] == [11, 21]


def test_doubling_n_has_as_many_stages_as_the_whole_ratio_has_doublings():
    """15/2 is floored before its logarithm is taken: a stage lasts floor(600 / (log2 7 + 1)) steps."""
    schedule = DoublingNumSigmas(s0=2, s1=15)
    stage = math.floor(600 / (math.log2(7) + 1))
    assert stage != math.floor(600 / (math.log2(7.5) + 1))
    changes = [k for k in range(1, 600) if schedule.num_sigmas_at(k, 600) != schedule.num_sigmas_at(k - 1, 600)]
    assert changes == [stage, 2 * stage, 3 * stage]
    assert schedule.num_sigmas_at(599, 600) == 16


@given(s0=st.integers(1, 20), more=st.integers(0, 2000), steps=st.integers(1, 10**6))
def test_doubling_n_never_falls_and_ends_at_s1(s0, more, steps):
    schedule = DoublingNumSigmas(s0=s0, s1=s0 + more)
    path = [schedule.num_sigmas_at(k, steps) for k in range(0, steps + 1, max(1, steps // 50))]
    assert path[0] == s0 + 1
    assert path == sorted(path)
    assert path[-1] <= s0 + more + 1


def test_halving_n_trains_the_last_two_stages_twice_as_long():
    schedule = HalvingNumSigmas(start=16, stage_steps=10)
    steps = [schedule.num_sigmas_at(k, 10**6) - 1 for k in range(75)]
    assert steps == [16] * 10 + [8] * 10 + [4] * 10 + [2] * 20 + [1] * 25
    assert [HalvingNumSigmas(start=s).units for s in (1, 2, 4, 16)] == [2, 4, 5, 7]
    assert [HalvingNumSigmas(start=16, end=e).units for e in (16, 4, 2, 1)] == [1, 3, 5, 7]


@given(start=st.sampled_from([1, 2, 4, 8, 64, 1024]), end=st.sampled_from([1, 2, 4, 8]), steps=st.integers(20, 5000))
def test_halving_n_fills_the_run(start, end, steps):
    assume(end <= start)
    schedule = HalvingNumSigmas(start=start, end=end)
    path = [schedule.num_sigmas_at(k, steps) - 1 for k in range(steps)]
    assert path[0] == start
    assert path[-1] == end
    assert path == sorted(path, reverse=True)
    unit = steps // schedule.units
    assert all(path.count(n) == length * unit for n, length in schedule.stages[:-1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"start": 48}, r"num_sigmas\.start is 48.*32 and 64"),
        ({"start": 8, "end": 3}, r"num_sigmas\.end is 3.*2 and 4"),
        ({"start": 2, "end": 4}, r"start 2 and end 4"),
    ],
)
def test_halving_refuses_what_does_not_halve(values, message):
    with pytest.raises(ValidationError, match=message):
        HalvingNumSigmas(**values)
