"""The page of `calorefine validate --showers true`: classifiers, response, showers, profiles, distances."""

from __future__ import annotations

from collections.abc import Sequence

from calorefine.pages.page import Picture, Section, Table, absent, summary
from calorefine.pages.shower_panels import (
    MOST_OF_LAYERS,
    average_picture,
    means_picture,
    observable_pictures,
    response_pictures,
    singles_picture,
    traversal_picture,
)
from calorefine.text import first_three, number, percent, with_error
from calorefine.twosample.results import SampleNumbers
from calorefine.twosample.separation_power import SeparationPower
from calorefine.twosample.shower_judges import SEEN, Judgment
from calorefine.twosample.shower_pictures import MOST_LAYERS, ShowerPictures
from calorefine.twosample.shower_results import (
    GROWS,
    TIMES,
    ShowerValidation,
    calls_text,
    classifier_rows,
    distance_rows,
    posterior_rows,
    response_rows,
    sees_text,
    times_text,
    training_text,
    worst_rows,
)

MOST_SEPARATIONS = 30
SIGNIFICANT = 3.0  # pulls, and separation powers in errors above what is by accident, that are pointed out


def shower_sections(found: ShowerValidation, pictures: ShowerPictures, warned: Sequence[str]) -> list[Section]:
    """All of the page.

    Args:
        found: all numbers.
        pictures: what is drawn beside them.
        warned: warnings of the command.
    """
    sections = [
        _samples(found, warned),
        _classifiers(found),
        _response(found),
        _showers(pictures),
        _means(found, pictures),
        _observables(found, pictures),
        _distances(found),
        _training(found),
        _generator(found, pictures),
    ]
    return [summary(sections), *sections]


def _samples(found: ShowerValidation, warned: Sequence[str]) -> Section:
    samples = [("generated", found.generated), ("reference", found.reference)]
    table = Table.of(
        "Samples",
        samples,
        {
            "sample": lambda one: one[0],
            "files": lambda one: first_three(one[1].files),
            "weight": lambda one: one[1].weight,
            "showers": lambda one: number(one[1].n),
            "sum_w": lambda one: number(one[1].sum_w, 5),
            "n_eff": lambda one: number(one[1].n_eff, 5),
        },
    )
    text = [
        f"{found.n_cells} cells; a cell below {number(found.threshold_mev, 3)} MeV counts as 0 on both sides.",
        f"Showers of both samples that share their conditions are known by: {found.twins}. Errors take that into "
        "account. They are statistical; there is no band of an ensemble's members in these pictures.",
    ]
    refused = [f"{name} refused: {why}" for name, why in found.refused.items()]
    return Section("Samples", text, [*warned, *refused], [table], numbers=_sizes(samples))


def _sizes(samples: Sequence[tuple[str, SampleNumbers]]) -> list[tuple[str, str]]:
    return [(f"{name} showers", f"{one.n}, n_eff {number(one.n_eff, 5)}") for name, one in samples]


def _classifiers(found: ShowerValidation) -> Section:
    if not found.classifiers:
        return Section("Classifiers", ["Refused: see the samples."], missing=["refused"])
    rows = classifier_rows(found.classifiers)
    text = [
        f"AUC of 0.5: the classifier can't tell generated from reference showers. {_upper(GROWS)}.",
        "What a classifier can't see: one half of the reference, each of its cells times 1 + s z with a standard "
        f"normal z, against the other half. It sees s where the AUC is {SEEN:g} errors above 0.5 and above that of the "
        f"halves as they are. {' '.join(_weakness(one) for one in found.classifiers.values())}",
    ]
    numbers = [(f"AUC, {one.about}", f"{with_error(one.auc, one.auc_error)} of {n_of(one)}") for one in _all(found)]
    tables = [_table("Classifiers; halves are those of the reference", rows), _smearings(found)]
    return Section("Classifiers", text, _told_apart(found), tables, numbers=numbers)


def _told_apart(found: ShowerValidation) -> list[str]:
    """Classifiers that can tell."""
    effect = f"more than {SIGNIFICANT:g} errors above 0.5: generated showers are told from the reference's"
    return [
        f"{_upper(one.about)}: AUC {with_error(one.auc, one.auc_error)} of {n_of(one)}, {effect}"
        for one in _all(found)
        if one.auc - 0.5 > SIGNIFICANT * one.auc_error
    ]


def _all(found: ShowerValidation) -> list[Judgment]:
    return list(found.classifiers.values())


def n_of(judgment: Judgment) -> str:
    """Numbers of showers, as they are stated beside an AUC."""
    return f"{judgment.n_generated} + {judgment.n_reference} showers"


def _upper(text: str) -> str:
    """Begin a sentence."""
    return text[0].upper() + text[1:]


def _weakness(judgment: Judgment) -> str:
    told = "doesn't see" if judgment.sees is None else "sees"
    return f"{_upper(judgment.about)}: {told} {sees_text(judgment).removeprefix('not ')}."


def _smearings(found: ShowerValidation) -> Table:
    levels = list(_all(found)[0].smeared)
    header = ["classifier", "not smeared", *(f"{100 * float(level):g} %" for level in levels), "of n"]
    rows = []
    for one in _all(found):
        aucs = [with_error(one.smeared[level], one.smeared_error[level]) for level in levels]
        rows.append([one.about, with_error(one.floor, one.floor_error), *aucs, " + ".join(map(str, one.n_floor))])
    return Table("AUC of one half of the reference, its cells smeared by so much, against the other", header, rows)


def _table(caption: str, rows: Sequence[Sequence[str]], marked: Sequence[int] = ()) -> Table:
    return Table(caption, rows[0], rows[1:], marked)


def _response(found: ShowerValidation) -> Section:
    text = [
        "Response: energy of all cells over the incident energy. Errors of ratios hold the statistics of the "
        "generator's training sample, if the generated file tells it.",
    ]
    pulls = [[abs(getattr(one, k).pull or 0) for k in ("mean", "std")] for one in found.responses]
    marked = [k for k, row in enumerate(pulls) if max(row) > SIGNIFICANT]
    table = _table(f"Response; rows beyond {SIGNIFICANT:g} errors are marked", response_rows(found), marked)
    beyond = f"The response at {len(marked)} of {len(pulls)} energies is more than {SIGNIFICANT:g} errors off"
    numbers = [*_worst_response(found, "mean", "mean"), *_worst_response(found, "std", "width")]
    return Section("Response", text, [beyond] if marked else [], [table], response_pictures(found), numbers=numbers)


def _worst_response(found: ShowerValidation, what: str, title: str) -> list[tuple[str, str]]:
    pairs = [(getattr(one, what), at) for one, at in zip(found.responses, found.energy_bins, strict=True)]
    known = [(pair, at) for pair, at in pairs if pair.ratio is not None]
    if not known:
        return []
    pair, at = max(known, key=lambda one: abs(one[0].ratio - 1))
    ratio = with_error(pair.ratio, pair.ratio_error)
    return [(f"response, {title} farthest from the reference's", f"{ratio} of it at {at.center / 1000:.3g} GeV")]


def _showers(pictures: ShowerPictures) -> Section:
    n = len(pictures.geometry.layers)
    text = ["Cells without energy are gray."]
    if any(pictures.geometry.mirrors):
        text[0] += " Single showers are where they entered; for averages all are moved to enter at the same cell."
    if n > MOST_LAYERS:
        text.append(f"{MOST_LAYERS} of {n} layers are shown, those of most energy.")
    return Section("Showers", text, figures=[average_picture(pictures), singles_picture(pictures)])


def _means(found: ShowerValidation, pictures: ShowerPictures) -> Section:
    text = [
        "Weighted means per shower, with errors as bands and bars. The probability of the largest pull is that of one "
        "as large in any of the bins, as if these were independent. Errors here don't hold the statistics of the "
        "generator's training sample.",
        "Lateral profiles are around the point of entry where it is known; they span 99 % of a layer's energy.",
    ]
    rows = worst_rows(found)
    marked = [k for k, one in enumerate(found.means.values()) if one.worst and abs(one.worst[1]) > SIGNIFICANT]
    table = _table("Largest pulls of generated over reference", rows, marked)
    drawn: list[Picture] = [
        means_picture(name, one, pictures.geometry) for name, one in found.means.items() if _is_shown(name, pictures)
    ]
    return Section("Profiles, occupancy and cells", text, tables=[table], figures=drawn)


def _is_shown(name: str, pictures: ShowerPictures) -> bool:
    shown = [str(pictures.geometry.layers[k].number) for k in pictures.shown]
    return not name.startswith("lateral") or name.split("_")[1] in shown


def _observables(found: ShowerValidation, pictures: ShowerPictures) -> Section:
    ranked = [(one.name, one.separation) for one in found.observables if one.separation]
    apart = [name for name, power in ranked if _above(power) > SIGNIFICANT]
    text = [
        "Separation power: 0 for equal distributions, 1 for those that have nothing in common. By accident it is above "
        f"0; rows more than {SIGNIFICANT:g} standard deviations above that are marked.",
        f"Listed are the worst {MOST_SEPARATIONS} at most of {len(found.observables)}; the JSON file has all.",
    ]
    if len(pictures.geometry.layers) > MOST_OF_LAYERS:
        text.append(f"Drawn are those of the {MOST_OF_LAYERS} layers with the largest separation power.")
    table = Table.of(
        "Worst first",
        ranked[:MOST_SEPARATIONS],
        {
            "observable": lambda one: one[0],
            "separation power": lambda one: with_error(one[1].value, one[1].error),
            "by accident": lambda one: with_error(one[1].floor, one[1].floor_error),
            "deviations above": lambda one: f"{_above(one[1]):+.1f}",
        },
        marked=lambda one: one[0] in apart,
    )
    worst = [
        ("worst separation power", f"{value} ({name}; by accident {floor})") for name, value, floor, _ in table.rows[:1]
    ]
    warned = [f"{len(apart)} of {len(ranked)} observables are distributed differently: {', '.join(apart)}"]
    drawn = observable_pictures(found.observables, pictures.geometry)
    return Section("Observables", text, warned if apart else [], [table], drawn, numbers=worst)


def _above(power: SeparationPower) -> float:
    """How far a separation power is above what is by accident, in standard deviations of the latter."""
    return (power.value - power.floor) / power.floor_error


def _distances(found: ShowerValidation) -> Section:
    text = [
        "On the observables of the CaloChallenge without those along the radius. The floor, one half of the reference "
        "against the other, is that of half as many showers."
    ]
    numbers = [(name.upper(), with_error(one.value.value, one.value.error)) for name, one in found.distances.items()]
    tables = [_table("Distances and overlap", distance_rows(found))]
    if found.posterior:
        text.append(
            "A network that tells the models apart, asked for the reference: the mean logarithm of each model's "
            "probability. It ranks models, and says nothing about how good the best one is. Differences that "
            "the models' own showers have as well are the network's."
        )
        tables.append(_table("Models, the most probable first", posterior_rows(found.posterior)))
    return Section("Distances", text, tables=tables, numbers=numbers)


def _training(found: ShowerValidation) -> Section:
    if found.training is None:
        return absent("Training showers", "training", "the file that the generator was trained on")
    ratio, error = found.training.median.ratio, found.training.median.ratio_error
    text = [f"{_upper(training_text(found.training))}. Well below 1: showers were learned by heart."]
    near = ratio is not None and error is not None and 1 - ratio > SIGNIFICANT * error
    learned = [f"Generated showers are nearer to training showers than the reference's: {with_error(ratio, error)}"]
    numbers = [
        ("median distance to the nearest training shower", f"{with_error(ratio, error)} of the reference's"),
        ("copies of training showers", percent(found.training.copies)),
    ]
    return Section("Training showers", text, learned if near else [], numbers=numbers)


def _generator(found: ShowerValidation, pictures: ShowerPictures) -> Section:
    if found.times is None:
        return absent("Generator", "checkpoint", "the generator that made the showers")
    text = [
        f"{times_text(found.times)}, the inverse preprocessing included.",
        "Below, one condition is varied, and everything else, the noise included, is the same.",
    ]
    drawn = [traversal_picture(one, pictures) for one in pictures.traversals]
    return Section("Generator", text, figures=drawn, numbers=[(TIMES, calls_text(found.times))])
