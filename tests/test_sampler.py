import pytest
import torch

from pipeline.sampler import (
    Step,
    add_noise,
    denoise_chunk,
    noise,
    predict_clean,
    steps_from_indexes,
    steps_from_timesteps,
)


@pytest.mark.parametrize(
    "indexes, shift, timesteps",
    [
        ((0, 179, 358, 679), 10.0, [999, 978, 947, 825]),
        ((0, 250, 500, 750), 5.0, [999, 937, 833, 624]),
        ((0, 179, 358, 679), 5.0, [999, 957, 899, 702]),
    ],
)
def test_each_lingbot_family_has_its_published_timesteps(indexes, shift, timesteps):
    assert [step.timestep for step in steps_from_indexes(indexes, shift)] == timesteps


def test_the_sigmas_are_those_of_the_golden_files():
    golden = [0.9997998476028442, 0.9579927921295166, 0.8994113802909851, 0.7024067044258118]
    ours = [step.sigma for step in steps_from_indexes((0, 179, 358, 679), 5.0)]
    assert ours == pytest.approx(golden, abs=1e-7)


def test_places_that_share_a_timestep_are_re_noised_to_the_second_of_them():
    grid = steps_from_indexes(range(1000), 5.0)
    assert grid[179].timestep == grid[180].timestep == 957
    assert grid[179].renoise_sigma == grid[180].renoise_sigma == grid[180].sigma
    assert grid[679].renoise_sigma == grid[679].sigma  # alone at its timestep


def test_self_forcing_has_its_published_sigmas():
    steps = steps_from_timesteps((1000, 750, 500, 250), 5.0)
    assert [step.sigma for step in steps] == pytest.approx([1, 0.9375, 0.8333333, 0.625])
    assert [step.timestep for step in steps] == pytest.approx([1000, 937.5, 833.3333, 625])


@pytest.mark.parametrize("indexes", [(), (3, 3), (5, 2), (-1, 4), (0, 1000)])
def test_indexes_that_do_not_rise_within_the_grid_are_refused(indexes):
    with pytest.raises(ValueError, match="step indexes"):
        steps_from_indexes(indexes, 5.0)


@pytest.mark.parametrize("timesteps", [(), (250, 750), (1001, 3), (500, 0)])
def test_timesteps_that_do_not_fall_are_refused(timesteps):
    with pytest.raises(ValueError, match="timesteps"):
        steps_from_timesteps(timesteps, 5.0)


def test_a_shift_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="shift"):
        steps_from_indexes((0,), 0.0)


def test_the_right_flow_leads_back_to_the_clean_latent():
    torch.manual_seed(0)
    clean, fresh = torch.randn(2, 3), torch.randn(2, 3)
    torch.testing.assert_close(predict_clean(add_noise(clean, fresh, 0.7), fresh - clean, 0.7), clean)


def test_noise_is_a_function_of_seed_chunk_and_step_alone():
    first = noise(7, 3, 1, (16, 8))
    noise(8, 0, 0, (4,))
    torch.manual_seed(5)
    assert torch.equal(first, noise(7, 3, 1, (16, 8)))
    others = [noise(*key, (16, 8)) for key in ((8, 3, 1), (7, 4, 1), (7, 3, 2), (7 + 2**32, 3, 1), (3, 7, 1))]
    others += [noise(*key, (16, 8)) for key in ((7 + 2**32 * 3, 1, 0), (2**63 - 1, 3, 1))]
    assert not any(torch.equal(first, other) for other in others)


def test_noise_is_standard_normal():
    sample = noise(1, 2, 3, (100_000,))
    assert sample.dtype == torch.float32
    assert abs(sample.mean()) < 0.02 and abs(sample.std() - 1) < 0.02


def test_noise_stays_what_it_was_so_that_old_sessions_replay():
    expected = [-1.1476657, -0.6059762, -0.5383383]
    assert noise(1, 2, 3, (3,)).tolist() == pytest.approx(expected, abs=1e-6)


def test_a_chunk_begins_with_noise_and_gets_fresh_noise_before_each_later_step():
    steps = (Step(1.0, 1000.0, 1.0), Step(0.6, 600.0, 0.5))
    target, seen = torch.full((2,), 3.0), []

    def flow(noisy, index):
        seen.append((index, noisy.tolist()))
        return (noisy - target) / steps[index].sigma

    result = denoise_chunk(steps, flow, lambda index: torch.full((2,), 10.0 + index))
    assert seen == [(0, [10.0, 10.0]), (1, [0.5 * 3 + 0.5 * 11] * 2)]
    torch.testing.assert_close(result, target)


def test_a_model_that_predicts_the_chunk_itself_is_taken_at_its_word():
    steps = (Step(1.0, 1000.0, 1.0), Step(0.6, 600.0, 0.5))
    target = torch.full((2,), 3.0)
    result = denoise_chunk(steps, lambda noisy, index: target + index, lambda index: torch.zeros(2), "sample")
    assert torch.equal(result, target + 1)
