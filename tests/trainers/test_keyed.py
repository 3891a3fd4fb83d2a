from __future__ import annotations

import numpy as np
import pytest

from trainers.data.keyed import Keyed, beta, fingerprint

SAMPLES = np.arange(20_000)


def test_numbers_of_a_sample_do_not_depend_on_the_other_samples() -> None:
    together = Keyed(7, 3, SAMPLES).uniform("rotate", 5)
    alone = Keyed(7, 3, SAMPLES[1234:1235]).uniform("rotate", 5)
    np.testing.assert_array_equal(together[1234], alone[0])


def test_asking_for_more_numbers_does_not_change_the_first() -> None:
    keyed = Keyed(7, 3, SAMPLES[:10])
    np.testing.assert_array_equal(keyed.uniform("noise", 9)[:, :4], keyed.uniform("noise", 4))


def test_seed_epoch_sample_and_operation_all_change_the_numbers() -> None:
    streams = [
        Keyed(7, 3, SAMPLES[:1]).uniform("rotate", 100),
        Keyed(8, 3, SAMPLES[:1]).uniform("rotate", 100),
        Keyed(7, 4, SAMPLES[:1]).uniform("rotate", 100),
        Keyed(7, 3, SAMPLES[1:2]).uniform("rotate", 100),
        Keyed(7, 3, SAMPLES[:1]).uniform("flip", 100),
    ]
    assert len(np.unique(np.concatenate(streams))) == 500


def test_numbers_are_those_of_the_published_generator() -> None:
    """The first outputs of SplitMix64 seeded with 1234567, as its reference implementation prints them."""
    from trainers.data import keyed

    positions = np.arange(1, 4, dtype=np.uint64) * keyed._GAMMA
    values = keyed._mix(np.array([1234567], np.uint64) + positions)
    assert values.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniform_numbers_fill_the_unit_interval_evenly() -> None:
    values = Keyed(1, 0, SAMPLES).uniform("rotate")[:, 0]
    counts = np.histogram(values, bins=20, range=(0, 1))[0]
    assert values.min() >= 0
    assert values.max() < 1
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-squared with 19 degrees of freedom, p = 0.001


def test_neighbouring_samples_and_operations_are_uncorrelated() -> None:
    keyed = Keyed(1, 0, SAMPLES)
    values = np.stack([keyed.spread("rotate"), np.roll(keyed.spread("rotate"), 1), keyed.spread("scale")])
    off_diagonal = np.asarray(np.corrcoef(values))[np.triu_indices(3, 1)]
    assert np.abs(off_diagonal).max() < 4 / np.sqrt(len(SAMPLES))


def test_normal_numbers_have_the_moments_of_the_normal_distribution() -> None:
    values = Keyed(1, 0, SAMPLES).normal("noise", 7).astype(np.float64)
    assert values.shape == (20_000, 7)
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01
    assert abs((values**4).mean() - 3) < 0.1
    assert np.abs(np.asarray(np.corrcoef(values.T))[np.triu_indices(7, 1)]).max() < 0.04


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 2.0, 50.0])
def test_beta_numbers_follow_the_beta_distribution(alpha: float) -> None:
    """Kolmogorov and Smirnov's distance to numpy's own, at a level of about one in a thousand."""
    ours = np.sort(beta(Keyed(1, 0, SAMPLES).uniform("mixup")[:, 0], alpha))
    theirs = np.sort(np.random.default_rng(0).beta(alpha, alpha, len(SAMPLES)))
    places = np.concatenate([ours, theirs])
    below = [np.searchsorted(values, places, side="right") / len(SAMPLES) for values in (ours, theirs)]
    assert np.abs(below[0] - below[1]).max() < 1.95 * np.sqrt(2 / len(SAMPLES))


def test_order_is_a_permutation() -> None:
    assert sorted(Keyed(1, 0, SAMPLES).order("partner").tolist()) == SAMPLES.tolist()


def test_fingerprints_of_parts_add_up_and_tell_no_order() -> None:
    samples = np.random.default_rng(3).permutation(10_000)[:64]
    parts = fingerprint(samples[:10]) + fingerprint(samples[10:10]) + fingerprint(samples[10:])
    assert parts == fingerprint(samples) == fingerprint(samples[::-1])


def test_a_fingerprint_tells_a_skipped_a_repeated_and_another_sample() -> None:
    samples = np.arange(100, 164)
    skipped, repeated, other = samples[1:], np.append(samples, 100), np.append(samples[1:], 99)
    assert len({fingerprint(each) for each in (samples, skipped, repeated, other)}) == 4


def test_fingerprints_of_large_batches_stay_exact_numbers_of_json() -> None:
    assert 2**50 < fingerprint(np.arange(2_000_000)) < 2**53
