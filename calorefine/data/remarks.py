r"""What the training events say about their columns that the description doesn't, each with its remedy.

*A function of the context* is no feature: generated values scatter about it, which any classifier sees.  At
`HELD_OUT` events each scalar is predicted by a polynomial of second order in the context (of first order, if there are
many columns), fitted to the nearest other events; polynomials are predicted exactly, smooth functions to third order in
the distance of the neighbors.  It is a function if half of the events are within `EXACT` of the feature's width; a
detector with a resolution of 0.1 % is far above.

*Integers* are generated with values in between, unless the column says so.  Where 1 is below a hundredth of the width
nobody would see it.

*A hard edge*, a density that ends and doesn't fade, is smeared.  Of the k outermost events a share of 1/2 is in the
outer half of their range, if the density is constant up to its end; 1/4 if it fades linearly, less for tails.  An edge
has more than `FADING`, by three standard errors of the weighted sum, and more than that of the outermost tenth of them
as well, which a steep rise has not.  An atom at the end is known as a bound.

Of *two samples* that are compared, or one of which is weighted to be like the other, edges and integers don't matter;
but each is asked for features that are functions of all other columns, and for integers in one of them alone.

*Single precision* loses the digits of values far from 0: a training takes an offset off, others are told which one.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from calorefine import keys
from calorefine.data.knots import LEAST_ATOM
from calorefine.events import Arrays, Column, Columns, Events
from calorefine.stats import FloatArray, n_eff, sum_w2

MOST_EVENTS, HELD_OUT, EXACT = 20_000, 200, 3e-4
MOST_TERMS, FEW_TERMS, MOST_NAMED = 60, 30, 6
VISIBLE = 100.0
OUTERMOST, FADING, SIGNIFICANT = 0.05, 0.35, 3.0
LEAST_EVENTS = 400


def remarks(events: Events, columns: Columns) -> list[str]:
    """Find what a column's options don't say of these events; events of weight 0 say nothing.

    Args:
        events: in the units of the columns, less their offsets, with weights of any sign.
        columns: what they are; only features that are single numbers are looked at.

    Returns:
        One sentence for each, with the option to set.
    """
    described = {name: column for name, column in columns.feature_columns.items() if not column.shape}
    used = events.take(events.weight != 0)
    if len(used) < LEAST_EVENTS or not described:
        return []
    x = np.stack([used.x[:, columns.slices[name].start] for name in described], axis=1).astype(np.float64)
    functions = _functions(x, used, list(described), columns)
    texts = list(functions.values())
    for values, (name, column) in zip(x.T, described.items(), strict=True):
        if name not in functions:
            texts += _integer(values, name, column) or _edges(values, used.weight, name, column)
    return texts


def remarks_on_pair(generated: Events, reference: Events, columns: Columns) -> list[str]:
    """Find features that tell nothing new about two samples, or tell them apart whatever else they are like.

    Args:
        generated: events of any weight; copies of the same features count once.
        reference: likewise.
        columns: what they are; only features that are single numbers are looked at.

    Returns:
        One sentence for each.
    """
    names = [name for name, column in columns.feature_columns.items() if not column.shape]
    samples = {"reference": reference, "generated": generated}
    if not names or any(len(events) < LEAST_EVENTS for events in samples.values()):
        return []
    functions = {which: _redundant(events, names, columns) for which, events in samples.items()}
    texts = []
    for name in names:
        told, place = f"feature '{name}': ", columns.slices[name].start
        of = {which: found[name] for which, found in functions.items() if name in found}
        whole = [which for which, events in samples.items() if _whole(events.x[:, place])]
        if len(of) == 2:
            texts.append(f"{told}is a function of {of['reference']}, and tells nothing that these don't; leave it out")
        elif of:
            which, others = next(iter(of.items()))
            text = (
                f"is a function of {others} in the {which} events alone, which tells the samples apart whatever else "
            )
            texts.append(f"{told}{text}they are like; leave it out, or set it from the others in both")
        elif len(whole) == 1 and _fractional(
            samples["generated" if whole == ["reference"] else "reference"].x[:, place]
        ):
            text = f"all values are integers in the {whole[0]} events alone, which tells the samples apart"
            texts.append(f"{told}{text}; expected transform: integer in the training, or rounded values in both")
    return texts


def coarse(table: Arrays, columns: Columns) -> list[str]:
    """Find columns of a table (n,) whose digits single precision doesn't keep; a sentence with the offset for each."""
    texts = []
    for kind, group in (("feature", columns.feature_columns), ("context", columns.context_columns)):
        for name, column in group.items():
            if column.shape or column.categories:
                continue
            values = np.asarray(table[name], np.float64) - (column.offset or 0)
            found = replace(column, offset=None).centered(values).offset
            if found is not None:
                step = float(np.spacing(np.float32(np.abs(values).max())))
                text = (
                    f"{kind} '{name}': single precision has steps of {step:.3g} there, {step / width_of(values):.2g} of"
                )
                texts.append(f"{text} the half-width; expected offset: {found + (column.offset or 0):.15g}")
    return texts


def dominant(events: Events, columns: Columns) -> str | None:
    """Say which event has more than half of the sum of squared weights, and thus determines n_eff; None if none has."""
    squares = np.square(events.weight / np.abs(events.weight).max())
    row = int(np.argmax(squares))
    if len(events) < 2 or squares[row] <= 0.5 * squares.sum():
        return None
    names = [*columns.feature_names, *columns.context_names][:MOST_NAMED]
    values = ", ".join(f"{name} = {value:.6g}" for name, value in zip(names, events.table[row], strict=False))
    text = f"one event, with weight {events.weight[row]:.3g} and {values}, has {squares[row] / squares.sum():.1%} of "
    text += f"the sum of squared weights: {len(events)} events count as {n_eff(events.weight):.1f}"
    return f"{text}; check that weight, or cut the event away"


def _integer(values: FloatArray, name: str, column: Column) -> list[str]:
    """Integers that are not described as such; who chose `standard` has seen the column."""
    if column.transform != "quantile" or np.any(values != np.round(values)) or width_of(values) > VISIBLE:
        return []
    if np.mean(values == np.median(values)) > 1 - LEAST_ATOM:
        return []
    low, high = values.min() + (column.offset or 0), values.max() + (column.offset or 0)
    text = f"feature '{name}': all values are integers, from {low:.15g} to {high:.15g}, and others would be generated"
    return [f"{text} in between; expected transform: integer"]


def _edges(values: FloatArray, weight: FloatArray, name: str, column: Column) -> list[str]:
    """Hard edges where the column has no bound."""
    texts = []
    for side, bound, place in zip((1, -1), column.bounds or (None, None), (0, 1), strict=True):
        if bound is None and (edge := hard_edge(side * values, weight, (column.offset or 0) * side)) is not None:
            bounds = ["null", "null"]
            bounds[place] = f"{side * edge:.15g}"
            texts.append(
                f"feature '{name}': the density ends at {side * edge:.15g}, and values beyond would be generated; "
                f"expected bounds: [{', '.join(bounds)}] (where another end is known, give both)"
            )
    return texts


def hard_edge(values: FloatArray, weight: FloatArray, offset: float = 0.0) -> float | None:
    """Lowest value that a density ends at, rounded within the distance of its outermost events; None if it fades.

    Args:
        values: (n,) of a column, or its negative for the other end.
        weight: (n,) any sign.
        offset: what the values lack.
    """
    k = int(np.clip(OUTERMOST * len(values), LEAST_EVENTS // 4, 2000))
    order = np.argpartition(values, k)[: k + 1]
    order = order[np.argsort(values[order], kind="stable")]
    distance, end = values[order] - values[order[0]], values[order[0]]
    if np.mean(values == end) > LEAST_ATOM or distance[-1] == 0:
        return None
    for count, significant in ((k, SIGNIFICANT), (max(k // 10, LEAST_EVENTS // 4), 0.0)):
        excess = weight[order[:count]] * ((distance[:count] <= distance[count] / 2) - FADING)
        if excess.sum() <= significant * math.sqrt(sum_w2(excess)):
            return None
    return round_down(float(end) + offset, 5 * distance[-1] / k)


def round_down(value: float, most: float) -> float:
    """Shortest decimal number at or below a value, by at most so much.

    >>> round_down(75.0003, 0.01)
    75.0
    """
    for digits in range(-15, 15):
        rounded = math.floor(value * 10.0**digits) / 10.0**digits
        if value - rounded <= most:
            return rounded
    return value


def _functions(x: FloatArray, events: Events, names: list[str], columns: Columns) -> dict[str, str]:
    """What to say of features (n, s) that are functions of the context, by name."""
    order = np.argsort(keys.stream(events.event_key, "remarks"), kind="stable")[:MOST_EVENTS]
    context, x = events.context[order].astype(np.float64), x[order]
    widths = np.array([width_of(values) for values in x.T])
    texts: dict[str, str] = {}
    if context.shape[1] == 0:
        return {}
    held_out = events.event_key[order] == events.event_key[order[HELD_OUT - 1]]
    held_out[:HELD_OUT] = True
    known = _encoded_by_name(context, columns)
    parts = known | {", ".join(known): np.concatenate([*known.values()], axis=1)}
    for of, part in parts.items():
        for index in np.flatnonzero(_is_function(part, x, held_out, widths)):
            text = f"feature '{names[index]}': is a function of the context ({of}), and generated values would scatter "
            remedy = "about it; leave it out of the features, and set it from the context"
            texts.setdefault(names[index], text + remedy)
    return texts


def _redundant(events: Events, names: list[str], columns: Columns) -> dict[str, str]:
    """Features that are functions of a context or of all other columns, later ones first, and of which."""
    order = np.argsort(keys.stream(events.event_key, "remarks"), kind="stable")[:MOST_EVENTS]
    x = events.x[order][:, [columns.slices[name].start for name in names]].astype(np.float64)
    if len(names) > 1:
        order = order[(first := np.sort(np.unique(x, axis=0, return_index=True)[1]))]
        x = x[first]
    context = _encoded_by_name(events.context[order].astype(np.float64), columns)
    others = {name: ((x[:, [k]] - x[:, k].mean()) / (x[:, k].std() or 1.0)) for k, name in enumerate(names)} | context
    found: dict[str, str] = {}
    for k, name in reversed(list(enumerate(names))):
        given = {other: part for other, part in others.items() if other not in (name, *found)}
        held_out = np.zeros(len(x), bool)
        held_out[np.flatnonzero(~_at_atom(x[:, k]))[:HELD_OUT]] = True
        if not given or held_out.sum() < HELD_OUT // 2 or len(x) < LEAST_EVENTS:
            continue
        more = ", ..." if len(given) > MOST_NAMED else ""
        together = {f"({', '.join(list(given)[:MOST_NAMED])}{more})": np.concatenate([*given.values()], axis=1)}
        width = np.array([width_of(x[:, k])])
        for of, part in (context | together).items():
            if _is_function(part, x[:, [k]], held_out, width, most_terms=FEW_TERMS)[0]:
                found[name] = of
                break
    return found


def _at_atom(values: FloatArray) -> NDArray[np.bool_]:
    """Which values (n,) are the most frequent one, if that is an atom: known without being a function."""
    unique, counts = np.unique(values, return_counts=True)
    most = int(np.argmax(counts))
    return np.asarray((values == unique[most]) & (counts[most] > LEAST_ATOM * len(values)))


def _whole(values: NDArray[np.float32]) -> bool:
    """Whether values (n,) are integers, and near enough for that to be seen."""
    return bool(np.all(values == np.round(values)) and 0 < width_of(values.astype(np.float64)) < VISIBLE)


def _fractional(values: NDArray[np.float32]) -> bool:
    """Whether most values (n,) are no integers."""
    return bool(np.mean(values == np.round(values)) < 0.5)


def _encoded_by_name(context: FloatArray, columns: Columns) -> dict[str, FloatArray]:
    """Columns of each context, in units of their spread; categories far apart."""
    out, first = {}, 0
    for name, column in columns.context_columns.items():
        part = context[:, first : first + len(column.categories or [0])]
        first += part.shape[1]
        out[name] = 100 * part if column.categories else (part - part.mean(axis=0)) / (part.std(axis=0) or 1.0)
    return out


def _is_function(
    c: FloatArray, x: FloatArray, held_out: NDArray[np.bool_], widths: FloatArray, *, most_terms: int = MOST_TERMS
) -> NDArray[np.bool_]:
    """Whether each feature x (n, s) is predicted exactly by context c (n, q), at half of the events held out."""
    pairs = list(combinations_with_replacement(range(c.shape[1]), 2))
    second = 1 + c.shape[1] + len(pairs) <= most_terms
    terms = 1 + c.shape[1] + second * len(pairs)
    k = min(3 * terms + 5, int(np.sum(~held_out)))
    near = KDTree(c[~held_out]).query(c[held_out], k=np.arange(1, k + 1))[1]
    u = c[~held_out][near] - c[held_out][:, None]
    u /= np.maximum(np.abs(u).max(axis=(1, 2), keepdims=True), 1e-300)
    parts = [np.ones((*u.shape[:2], 1)), u] + [u[..., [i]] * u[..., [j]] for i, j in pairs if second]
    predicted = (np.linalg.pinv(np.concatenate(parts, axis=2), rcond=1e-10)[:, :1] @ x[~held_out][near])[:, 0]
    residual = np.median(np.abs(predicted - x[held_out]), axis=0)
    return np.asarray((widths > 0) & (residual < EXACT * widths))


def width_of(values: FloatArray) -> float:
    """Half of the width of the central 68 % of values (n,)."""
    low, high = np.quantile(values, [0.16, 0.84])
    return float(high - low) / 2
