"""Damage to bytes: what happens to files on disks and on the way between them."""

from __future__ import annotations

import random


def _flipped(rng: random.Random, data: bytearray, at: int) -> None:
    data[at] ^= 1 << rng.randrange(8)


def _changed(rng: random.Random, data: bytearray, at: int) -> None:
    data[at] = rng.randrange(256)


def _run(rng: random.Random, data: bytearray, at: int) -> None:
    stop = min(len(data), at + rng.choice([2, 4, 8, 64]))
    value = rng.choice([0, 0xFF, rng.randrange(256)])
    data[at:stop] = bytes([value]) * (stop - at)


def _removed(rng: random.Random, data: bytearray, at: int) -> None:
    del data[at : at + rng.choice([1, 4, 32])]


def _inserted(rng: random.Random, data: bytearray, at: int) -> None:
    data[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice([1, 4, 32])))


def _copied(rng: random.Random, data: bytearray, at: int) -> None:
    size, source = rng.choice([4, 16, 64]), rng.randrange(len(data))
    data[at : at + size] = data[source : source + size]


def _truncated(rng: random.Random, data: bytearray, at: int) -> None:
    del rng, data[at:]


KINDS = (_flipped, _flipped, _changed, _changed, _run, _removed, _inserted, _copied, _truncated)
IN_PLACE = (_flipped, _changed, _run)


def damaged(rng: random.Random, whole: bytes, *, in_place: bool = False, among: range | None = None) -> bytes:
    """A damaged copy; of the same length with `in_place`, at first somewhere in `among`."""
    data = bytearray(whole)
    for n in range(rng.choice([1, 1, 1, 2, 4])):
        if not data:
            break
        at = rng.choice(among) if among and n == 0 else rng.randrange(len(data))
        rng.choice(IN_PLACE if in_place else KINDS)(rng, data, at)
    return bytes(data)
