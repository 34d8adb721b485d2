"""No two streams of one seed agree anywhere, and the same arguments always give the same draws."""

import itertools

from hypothesis import example, given
from hypothesis import strategies as st

from fastlsr.rng import (
    SampleStream,
    Stream,
    WriteStream,
    derived_seed,
    folds_generator,
    generator,
    named_generator,
    position_uniform,
    sample_stream,
)

SEEDS = st.integers(0, 2**63 - 1)
NUMBERS = st.integers(0, 2**32 - 1)
WRITE_SEEDS = st.integers(0, 2**40 - 1)
POSITIONS = st.integers(0, 2**31 - 1)


def first_words(rng) -> tuple[int, ...]:
    return tuple(rng.integers(0, 2**64, 2, dtype="uint64").tolist())


@given(SEEDS, st.sets(NUMBERS, min_size=1, max_size=4))
@example(0, {0, 1, 2, 3})
@example(2**63 - 1, {0, 2**32 - 1})
def test_no_two_epochs_or_streams_of_a_seed_share_a_generator(seed, numbers):
    drawn = [first_words(generator(stream, seed, number)) for stream, number in itertools.product(Stream, numbers)]
    drawn += [first_words(folds_generator()), first_words(named_generator("optim.lr", seed % 2**32))]
    assert len(set(drawn)) == len(drawn)


@given(st.sets(SEEDS, min_size=2, max_size=4), st.sampled_from(Stream), NUMBERS)
@example({0, 1}, Stream.ORDER, 0)
def test_no_two_seeds_share_a_generator_or_a_derived_seed(seeds, stream, number):
    assert len({first_words(generator(stream, seed, number)) for seed in seeds}) == len(seeds)
    assert len({derived_seed(stream, seed, number) for seed in seeds}) == len(seeds)


@given(st.lists(st.tuples(st.sampled_from(SampleStream), NUMBERS), unique=True, max_size=8))
@example([(SampleStream.CROPS, 0), *((SampleStream.CROPS, 2**bit) for bit in range(32)), (SampleStream.PAIR_CROPS, 0)])
def test_no_two_epochs_or_streams_share_a_key_of_augmentation(keys):
    assert len({sample_stream(*key) for key in keys}) == len(keys)


@given(WRITE_SEEDS, POSITIONS, st.integers(1, 1000))
@example(0, 0, 1)
@example(2**40 - 1, 2**31 - 1, 1000)
def test_no_two_streams_of_a_writers_seed_agree_at_the_same_or_at_shifted_positions(seed, position, shift):
    places = itertools.product(WriteStream, (position, position + shift))
    drawn = [position_uniform(stream, seed, at) for stream, at in places]
    assert len(set(drawn)) == len(drawn)
    assert all(0 <= value < 1 for value in drawn)


@given(st.sets(WRITE_SEEDS, min_size=2, max_size=4), POSITIONS)
@example({0, 1}, 0)
def test_no_two_seeds_and_streams_of_the_writer_agree(seeds, position):
    drawn = [position_uniform(stream, seed, position) for stream, seed in itertools.product(WriteStream, seeds)]
    assert len(set(drawn)) == len(drawn)


@given(st.sampled_from(Stream), SEEDS, NUMBERS)
def test_the_same_arguments_give_the_same_generator(stream, seed, number):
    first, again = generator(stream, seed, number), generator(stream, seed, number)
    assert first_words(first) == first_words(again) != first_words(first)


def test_the_draws_of_split_and_subset_are_those_of_every_file_written_so_far():
    assert [position_uniform(WriteStream.SPLIT, 0, at) for at in range(3)] == [
        0.6524484863740322, 0.1663964394676608, 0.5098789996255109]  # fmt: skip
    assert [position_uniform(WriteStream.SUBSET, 5, at) for at in (0, 1, 1000)] == [
        0.4273213260393296, 0.07309509380006773, 0.9473693781210044]  # fmt: skip


def test_the_writers_draws_are_uniform_and_do_not_correlate_across_streams_and_neighbouring_seeds():
    sets = {
        (stream, seed): [position_uniform(stream, seed, at) for at in range(5000)]
        for stream in WriteStream
        for seed in (0, 1)
    }
    for values in sets.values():
        assert abs(sum(value < 0.3 for value in values) / 5000 - 0.3) < 0.03
    for (_, first), (_, second) in itertools.combinations(sets.items(), 2):
        for shifted in (second, second[1:]):
            products = [(a - 0.5) * (b - 0.5) for a, b in zip(first, shifted, strict=False)]
            assert abs(12 * sum(products) / len(products)) < 0.07  # the correlation; five standard errors
