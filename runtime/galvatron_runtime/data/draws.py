"""Random numbers and orders that are functions of what they are for: the same on every rank, after every restart."""

import numpy as np
from numpy.typing import NDArray


def draws(seed: int, step: int, samples: NDArray[np.int64]) -> NDArray[np.uint64]:
    """One 64-bit number per sample, a function of its three arguments only."""
    return mix(key_of(seed, step) + samples.astype(np.uint64))


def key_of(seed: int, number: int) -> np.uint64:
    """One 64-bit number for a step or an epoch."""
    return np.uint64(mix(mix(np.array([seed % 2**64], dtype=np.uint64)) + np.uint64(number))[0])


def mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble each number so that neighbours become unrelated.

    Source: the SplitMix64 step of Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def numbers(keys: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """Draw [rows, length] 64-bit numbers, each row from its key."""
    return mix(np.add.outer(keys, np.arange(length, dtype=np.uint64)))


def in_epochs(places: NDArray[np.int64], size: int, seed: int) -> NDArray[np.int64]:
    """Tell which of ``size`` things comes at each place of a sequence that has all of them once in an epoch.

    Args:
        places: counted through all epochs.
        size: how many things there are.
        seed: of the orders, one for each epoch.
    """
    chosen = np.empty_like(places)
    for epoch in np.unique(places // size):
        inside = places // size == epoch
        chosen[inside] = shuffled(places[inside] % size, size, key_of(seed, epoch))
    return chosen


_ROUNDS = 8
"""Of the network: four are enough against an adversary (Luby and Rackoff 1988), small sets need more to look random."""


def shuffled(positions: NDArray[np.int64], size: int, key: np.uint64) -> NDArray[np.int64]:
    """Where each position of ``0..size-1`` comes in a random order, without ever writing the order down.

    A Feistel network permutes the numbers of an even count of bits; those it sends outside are sent on until they are
    inside (cycle walking; Black and Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002).

    Args:
        positions: any of ``0..size-1``.
        size: how many there are.
        key: which of the orders.
    """
    half = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
    keys = mix(key + np.arange(1, _ROUNDS + 1, dtype=np.uint64))
    places = _permuted(positions.astype(np.uint64), half, keys)
    while (outside := places >= size).any():
        places[outside] = _permuted(places[outside], half, keys)
    return places.astype(np.int64)


def _permuted(values: NDArray[np.uint64], half: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Permute numbers of ``2 * half`` bits."""
    lower = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & lower
    for key in keys:
        left, right = right, left ^ (mix(right ^ key) & lower)
    return (left << half) | right
