"""`calorefine validate --showers true`: generated showers against a weighted reference, as JSON and a page."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from calorefine.data.shower_conditions import showers_of
from calorefine.errors import CalorefineWarning, ConfigError
from calorefine.events import Columns, Events
from calorefine.io.provenance import made_by, write_json
from calorefine.io.sample import WeightedFiles
from calorefine.io.writer import check_outputs, replacing
from calorefine.pages.page import collected, write_page
from calorefine.pages.showers import shower_sections
from calorefine.simulator_map import load_simulator
from calorefine.twosample.binned import context_values
from calorefine.twosample.context_check import warn_of_contexts
from calorefine.twosample.pair import Samples, read_samples, read_training
from calorefine.twosample.shower_classifier import NetworkOptions
from calorefine.twosample.shower_pictures import Traversal, shower_pictures
from calorefine.twosample.shower_results import ShowerValidation, Times
from calorefine.twosample.shower_validation import ShowerSamples, shower_validation
from calorefine.twosample.showers import Showers
from calorefine.verbs.judged_files import require_made_with, sample_numbers, training_n_eff
from calorefine.verbs.shower_generator import times, traversals

GENERATED = "generated"  # name of the model of the first file among others
Files = tuple[WeightedFiles, WeightedFiles]


def validate_showers(
    files: Files,
    *,
    output: Path,
    columns: Columns | None,
    training: str | None,
    checkpoint: str | None,
    others: Mapping[str, WeightedFiles],
    network: NetworkOptions,
    n_trainings: int,
    seed: int,
    overwrite: bool,
) -> ShowerValidation:
    """Read, compute, draw and write; arguments as of `calorefine.verbs.validate.validate_files`.

    Raises:
        CalorefineError: bad input; nothing is written.
    """
    page = output.with_suffix(".html")
    check_outputs(output, page, overwrite=overwrite)
    tell = _progress()
    with collected() as warned:
        tell("reading")
        samples = read_samples(*files, columns=columns)
        warn_of_contexts(samples, (files[0].weight, files[1].weight))
        showers = _shower_samples(samples, files, columns, training, others)
        took, varied = _of_generator(checkpoint, files[0], samples, seed, tell)
        found = shower_validation(
            showers,
            (sample_numbers(files[0], showers.generated.weight), sample_numbers(files[1], showers.reference.weight)),
            outputs=(output, page),
            training_n_eff=training_n_eff(files[0].provenance),
            times=took,
            options=network,
            n_trainings=n_trainings,
            seed=seed,
            tell=tell,
        )
        tell("pictures")
        sections = shower_sections(found, shower_pictures(showers.pair, showers.geometry, varied), warned)
    for text in warned:
        warnings.warn(text, CalorefineWarning, stacklevel=2)
    title, lead = "Generated showers against a reference", ", ".join(found.generated.files)
    with ExitStack() as stack:
        numbers = stack.enter_context(replacing(output, overwrite=overwrite))
        write_json(numbers, found.to_dict() | {"provenance": made_by()})
        write_page(page, title, sections=sections, lead=lead, overwrite=overwrite)
    return found


def _progress() -> Callable[[str], None]:
    """Return what tells the standard error what begins, and when."""
    start = time.perf_counter()
    return lambda what: print(f"{time.perf_counter() - start:.0f} s: {what}", file=sys.stderr)  # noqa: T201


def _shower_samples(
    samples: Samples,
    files: Files,
    columns: Columns | None,
    training: str | None,
    others: Mapping[str, WeightedFiles],
) -> ShowerSamples:
    """All showers as records.

    Raises:
        ConfigError: the columns don't say that they are showers.
    """
    described = samples.columns
    geometry = showers_of(described).calorimeter
    if GENERATED in others:
        raise ConfigError(f"others: '{GENERATED}' is the name of the model of the option generated; take another one")
    known = read_training(training, files[1].source.tree, columns or files[0].columns) if training else None
    reference = files[1]
    further = {
        name: read_samples(one.within(reference.source.tree), reference, columns=described).generated
        for name, one in others.items()
    }
    return ShowerSamples(
        generated=shower_record(samples.generated, described),
        reference=shower_record(samples.reference, described),
        geometry=geometry,
        twins=samples.twins,
        training=None if known is None else shower_record(known, described),
        others={name: shower_record(events, described) for name, events in further.items()},
    )


def shower_record(events: Events, columns: Columns) -> Showers:
    """Showers of events whose columns say that they are.

    Raises:
        ConfigError: the columns don't.
        ValueRangeError: incident energies that are not positive.
    """
    showers = showers_of(columns)
    context = context_values(columns, events)
    entry = [np.asarray(context[name], np.float64) for name in showers.entry]
    return Showers(
        events.x[:, columns.slices[columns.cells]],
        np.asarray(context[showers.e_inc], np.float64) * columns.mev(showers.e_inc),
        events.weight,
        events.event_key,
        np.stack(entry, axis=1) if entry else np.zeros((len(events), 0)),
    )


def _of_generator(
    checkpoint: str | None, generated: WeightedFiles, samples: Samples, seed: int, tell: Callable[[str], None]
) -> tuple[Times | None, list[Traversal]]:
    """Times and traversals of the generator, if its checkpoint is given.

    Raises:
        CheckpointError: the generated showers are not of this checkpoint.
    """
    if checkpoint is None:
        return None, []
    require_made_with(Path(checkpoint), generated)
    tell("times of the generator")
    simulator, columns = load_simulator(checkpoint), samples.columns
    context = context_values(columns, samples.reference)
    took = times(simulator, context, columns.n_features)
    return took, traversals(simulator, context, samples.reference.weight, columns, seed=seed)
