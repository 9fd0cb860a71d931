import pytest
import torch
from dycoke_trt.eval.statistics import bootstrap, paired_difference, wilson


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    # Wilson score intervals without continuity correction, textbook values.
    [(8, 10, 0.490, 0.943), (0, 10, 0.0, 0.278), (10, 10, 0.722, 1.0), (450, 500, 0.871, 0.923)],
)
def test_wilson(right: int, n: int, low: float, high: float) -> None:
    estimate = wilson(right, n)
    assert estimate.value == right / n
    assert estimate.low == pytest.approx(low, abs=1e-3)
    assert estimate.high == pytest.approx(high, abs=1e-3)


def test_bootstrap_interval_is_about_two_standard_errors() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)).tolist()
    estimate = bootstrap(values)
    error = float(torch.tensor(values).std()) / 400**0.5
    assert estimate.value == pytest.approx(sum(values) / 400)
    assert estimate.value - estimate.low == pytest.approx(1.96 * error, rel=0.1)
    assert estimate.high - estimate.value == pytest.approx(1.96 * error, rel=0.1)
    assert bootstrap(values) == estimate  # seeded


def test_pairing_removes_what_samples_have_in_common() -> None:
    easy = [float(i % 2) for i in range(200)]  # half of the samples are hopeless for both
    better = [1.0 if i < 10 else value for i, value in enumerate(easy)]
    paired = paired_difference(better, easy)
    assert paired.value == pytest.approx(0.025)
    assert paired.low > 0
    unpaired = bootstrap(better).high - bootstrap(better).low
    assert paired.high - paired.low < unpaired / 2
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0], [1.0, 0.0])
