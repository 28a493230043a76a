"""Random numbers that are functions of what they are for: the same on every rank and after every restart."""

import numpy as np
from numpy.typing import NDArray


def draws(seed: int, step: int, samples: NDArray[np.int64]) -> NDArray[np.uint64]:
    """One 64-bit number per sample, a function of its three arguments only."""
    key = mix(mix(np.array([seed % 2**64], dtype=np.uint64)) + np.uint64(step))
    return mix(key + samples.astype(np.uint64))


def mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble each number so that neighbours become unrelated.

    Source: the SplitMix64 step of Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
