import pytest
from chaos import PHASES, SMALL, chaos, table


@pytest.mark.slow
def test_runs_killed_at_random_moments_end_bit_for_bit_as_if_they_had_been_left_alone(tmp_path):
    landed, failed = chaos(tmp_path, num_runs=10, seed=0, config="configs/digits.py", overrides=SMALL, phases=PHASES)
    assert not failed, "\n\n".join(failed)
    assert len(landed) >= 10
    assert len({phase for phase, _ in landed}) >= 6, table(landed)
