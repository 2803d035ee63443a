"""Identity of events, and everything that is random about them.

An event's key is a 64-bit hash of its (run, event, candidate) numbers.  Each random decision about an event (which
split it falls in, its bootstrap weight, its latent noise) is a pure function of that key and of a stream (purpose,
seed, replica, copy): it doesn't depend on file order, chunking, batch size, number of workers, or the machine.

The hash is the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, doi:10.1145/2714064.2660195), applied to
one number after the other; normal variates come from pairs of 32-bit uniforms by Box and Muller's transform.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

KeyArray = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_BLOCK = 8192


def _finalize(bits: KeyArray) -> KeyArray:
    bits = (bits ^ (bits >> np.uint64(30))) * _MIX_1
    bits = (bits ^ (bits >> np.uint64(27))) * _MIX_2
    return bits ^ (bits >> np.uint64(31))


def combine(key: KeyArray, number: NDArray[np.integer] | int) -> KeyArray:
    """Fold one more number into a key.

    Args:
        key: (n,) uint64.
        number: (n,) integers, or one for all; negative ones wrap around.

    Returns:
        (n,) uint64.
    """
    word = np.asarray(number).astype(np.uint64) + _GOLDEN
    return _finalize((np.atleast_1d(key) * np.uint64(3) + _GOLDEN) ^ _finalize(np.atleast_1d(word)))


def make_keys(numbers: Sequence[NDArray[np.integer]]) -> KeyArray:
    """Hash the numbers that identify an event, in their order, to one key.

    Args:
        numbers: k arrays (n,) of integers, such as run and event.

    Returns:
        (n,) uint64.
    """
    key = np.zeros(len(numbers[0]), np.uint64)
    for number in numbers:
        key = combine(key, number)
    return key


def stream(key: KeyArray, purpose: str, *, seed: int = 0, replica: int = 0, copy: int = 0) -> KeyArray:
    """Keys of an independent random stream for every event.

    Args:
        key: (n,) uint64.
        purpose: what the numbers are for, such as "latent" or "split".
        seed: the user's seed.
        replica: the bootstrap replica.
        copy: which of several samples of the same event.

    Returns:
        (n,) uint64, uniform over 64 bits.
    """
    for number in (zlib.crc32(purpose.encode()), seed, replica, copy):
        key = combine(key, number)
    return key


def group(*event_keys: KeyArray) -> NDArray[np.int64]:
    """Numbers from 0, equal for events of equal key, of all samples one after the other.

    Args:
        event_keys: (n,), (m,), ... keys of each sample.

    Returns:
        (n + m + ...,) for `calorefine.stats.group_sums`.
    """
    return np.unique(np.concatenate(event_keys), return_inverse=True)[1].astype(np.int64)


def uniform(key: KeyArray) -> NDArray[np.float64]:
    """One number per key, uniform in [0, 1).

    Args:
        key: (n,) uint64 from `stream`.

    Returns:
        (n,) float64.
    """
    return (key >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(key: KeyArray, size: int) -> NDArray[np.float32]:
    """Independent standard normal numbers for every key.

    Args:
        key: (n,) uint64 from `stream`.
        size: how many numbers per key.

    Returns:
        (n, size) float32, within 6.8 standard deviations.
    """
    out = np.empty((len(key), size), np.float32)
    pairs = (size + 1) // 2
    counters = np.arange(1, pairs + 1, dtype=np.uint64) * _GOLDEN
    for first in range(0, len(key), _BLOCK):
        bits = _finalize(key[first : first + _BLOCK, None] + counters)
        radius, angle = _polar(bits)
        out[first : first + _BLOCK, :pairs] = radius * np.cos(angle)
        out[first : first + _BLOCK, pairs:] = (radius * np.sin(angle))[:, : size - pairs]
    return out


def _polar(bits: KeyArray) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    scale = np.float32(2.0**-32)
    high = (bits >> np.uint64(32)).astype(np.uint32).astype(np.float32)
    low = bits.astype(np.uint32).astype(np.float32)
    radius = np.sqrt(np.float32(-2) * np.log((high + np.float32(0.5)) * scale))
    return radius, low * (np.float32(2 * np.pi) * scale)
