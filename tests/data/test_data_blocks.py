"""Blocks cover the dataset once for any number of processes; training orders can be taken up anywhere."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optcam_pl.data import BlockSampler, ShuffleSampler
from optcam_pl.data.blocks import choose, seeded_order


@given(st.integers(0, 50), st.integers(1, 9), st.sampled_from([1, 2, 3, 7]), st.data())
@settings(deadline=None)
def test_every_index_is_in_one_block_of_one_rank(n: int, size: int, world: int, data: st.DataObject) -> None:
    blocks = -(-n // size)
    every = data.draw(st.one_of(st.none(), st.lists(st.integers(0, max(blocks - 1, 0)), unique=True, max_size=blocks)))
    todo = None if every is None else sorted(every)
    ranks = [list(BlockSampler(n, size, rank, world, todo)) for rank in range(world)]
    assert {len(rank) for rank in ranks} == {len(BlockSampler(n, size, 0, world, todo))}
    assert len(ranks[0]) >= 1
    assert all(len(block) == size for rank in ranks for block in rank)
    real = [block for rank in ranks for block in rank if block != [-1] * size]
    expected = range(blocks) if todo is None else todo
    assert sorted(real) == [[i if i < n else -1 for i in range(k * size, k * size + size)] for k in expected]
    for position, k in enumerate(expected):  # position p of todo is rank p mod world's block number p div world
        assert ranks[position % world][position // world][0] == k * size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 2), "`n`"),
        ((3, 0), "`block_size`"),
        ((3, 2, 2, 2), "`rank`"),
        ((3, 2, 0, 1, [2]), "`todo` to name blocks from 0 to 1"),
        ((3, 2, 0, 1, [1, 1]), "each once"),
    ],
)
def test_wrong_blocks_are_refused_in_words(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockSampler(*arguments)


@given(st.integers(1, 50), st.integers(1, 9), st.sampled_from([1, 2, 3, 7]), st.integers(0, 3), st.data())
@settings(deadline=None)
def test_training_blocks_are_full_and_hold_every_image(
    n: int, size: int, world: int, epoch: int, data: st.DataObject
) -> None:
    samplers = [ShuffleSampler(n, size, 5, rank, world) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    ranks = [list(sampler) for sampler in samplers]
    assert {len(blocks) for blocks in ranks} == {len(samplers[0])} == {-(-n // (size * world))}
    assert all(len(block.indices) == size and block.epoch == epoch for blocks in ranks for block in blocks)
    seen = sorted(index for blocks in ranks for block in blocks for index in block.indices)
    assert set(seen) == set(range(n))
    assert max(map(seen.count, seen)) - min(map(seen.count, seen)) <= 1
    start = data.draw(st.integers(0, len(samplers[0])))
    samplers[0].start = (epoch, start)
    assert list(samplers[0]) == ranks[0][start:]
    samplers[0].set_epoch(epoch + 1)
    assert len(list(samplers[0])) == len(ranks[0])  # the start is that of one epoch


def test_epochs_and_seeds_shuffle_differently() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = ShuffleSampler(20, 20, seed)
        sampler.set_epoch(epoch)
        return next(iter(sampler)).indices

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed, epoch in ((0, 0), (0, 1), (7, 0))}) == 3
    with pytest.raises(ValueError, match="`n` to be a positive integer"):
        ShuffleSampler(0, 2)


def test_a_random_choice_depends_on_names_and_seed_alone() -> None:
    names = [f"{i}" for i in range(40)]
    chosen = choose(names, names, 10, seed=3)
    assert set(chosen) == set(choose(names[::-1], names[::-1], 10, seed=3))
    assert set(choose(names, names, 7, seed=3)) < set(chosen)
    assert chosen != choose(names, names, 10, seed=4)
    assert seeded_order(["\udcff"], 0) == [0]  # a file name that is not UTF-8
