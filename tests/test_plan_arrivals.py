import numpy as np
import pytest

from service.plan.arrivals import Arrivals, Bursty, Poisson


@pytest.mark.parametrize("kind", [Poisson(), Bursty()], ids=lambda kind: kind.name)
def test_requests_come_in_order_at_the_rate_asked_for(kind: Arrivals) -> None:
    times = kind.times(100.0, 2000.0, seed=1)
    assert (np.diff(times) >= 0).all()
    assert 0 <= times[0] < times[-1] < 2000.0
    assert len(times) / 2000.0 == pytest.approx(100.0, rel=0.05)


@pytest.mark.parametrize("kind", [Poisson(), Bursty()], ids=lambda kind: kind.name)
def test_the_same_seed_gives_the_same_requests(kind: Arrivals) -> None:
    first, again, other = (kind.times(100.0, 10.0, seed) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()


def test_poisson_arrivals_are_as_many_in_each_second_as_poisson_says() -> None:
    counts = np.bincount(Poisson().times(50.0, 2000.0, seed=1).astype(int))
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.1)


def test_bursts_have_their_rate_and_their_share_of_the_time() -> None:
    kind = Bursty(factor=4.0, share=0.2, burst_s=50.0)
    counts = np.bincount(kind.times(100.0, 40_000.0, seed=1).astype(int))
    in_burst = counts > 200
    assert in_burst.mean() == pytest.approx(0.2, abs=0.05)
    assert counts[in_burst].mean() == pytest.approx(400.0, rel=0.02)
    assert counts[~in_burst].mean() == pytest.approx(25.0, rel=0.05)


@pytest.mark.parametrize(("factor", "share"), [(11.0, 0.1), (0.5, 0.1), (2.0, 0.0), (2.0, 1.0)])
def test_bursts_that_are_more_than_all_are_refused(factor: float, share: float) -> None:
    with pytest.raises(ValueError, match="cannot take"):
        Bursty(factor, share)


def test_even_a_moment_has_its_burst_and_its_mean_rate() -> None:
    counts = [len(Bursty().times(1000.0, 1.0, seed)) for seed in range(20)]
    assert counts == pytest.approx([1000] * 20, rel=0.15)
