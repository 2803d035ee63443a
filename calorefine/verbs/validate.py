"""`calorefine validate`: generated events against a weighted reference, in numbers with errors and in pictures.

Each number answers "do they differ?" with its error, its p-value or its floor, for weights of any sign on either side:
a classifier (`classifier`), distances by column and sliced (`distances`), means, widths and efficiencies in bins of the
context (`binned`), and the distance to the nearest training event, which is too small if a generator has learned
its training sample by heart.  For a model that encodes events, given by its checkpoint, the distance of the codes of
the reference from the prior that it samples from.

Events of both samples that have the same key, or are rows of files made one from the other by `calorefine sample`,
share their conditions.  All errors and p-values take that into account, those of the pictures included.  A warning
tells if their contexts are distributed differently (`context_check`), which then shows in all other numbers.

Errors and pulls of means, widths and efficiencies hold the statistics of the generator's training sample where the
generated file's provenance tells its effective number of events.  The other p-values and the AUC's error don't: they
say whether the two samples differ, and those of a perfect generator, trained on finite data, do so a little.

Showers have numbers and a page of their own (`validate_showers`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from calorefine.errors import ConfigError
from calorefine.events import Columns, adapted_columns, unknown_columns
from calorefine.io.provenance import made_by, recorded, write_json
from calorefine.io.sample import SampleRows, WeightedFiles
from calorefine.io.writer import check_outputs, replacing
from calorefine.pages.style import save_picture
from calorefine.pages.validation import efficiency_figure, overlay_figure, widths_figure
from calorefine.simulator import Simulator
from calorefine.twosample.context_check import warn_of_contexts
from calorefine.twosample.overlay import overlay
from calorefine.twosample.pair import Samples, read_samples, read_training, warn_of_columns
from calorefine.twosample.results import LatentDistance, Validation
from calorefine.twosample.shower_classifier import N_TRAININGS, SMALL, NetworkOptions
from calorefine.twosample.shower_results import ShowerValidation
from calorefine.twosample.validation import validation
from calorefine.verbs.judged_files import require_made_with, sample_numbers, training_n_eff
from calorefine.verbs.validate_showers import validate_showers

REPETITIONS = 10


@recorded("validate")
def validate_files(
    *,
    generated: WeightedFiles,
    reference: WeightedFiles,
    output: str,
    columns: Columns | None = None,
    tree: str = "events",
    training: str | None = None,
    checkpoint: str | None = None,
    showers: bool = False,
    others: dict[str, WeightedFiles] | None = None,
    network: NetworkOptions = SMALL,
    repetitions: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Validation | ShowerValidation:
    """Compare a generated sample with a weighted reference: numbers with errors and p-values as JSON, and pictures.

    If the generated file lacks the context, it has to be the output of `calorefine sample` for the reference file: its
    context is that of the same event key, where both files have the key branches, or of the same row.

    Args:
        generated: generated events, with a weight of any sign if they have one.
        reference: reference events, likewise.
        output: JSON file to write; pictures with the same stem go beside it, of showers a page.
        columns: features, context, key and cut; those that the generated file was made with, without their cut, if
            left out.
        tree: name of the tree in samples that don't name theirs.
        training: ROOT file that the generator was trained on, to look for memorized events; its tree is named as the
            reference's.
        checkpoint: that the generated events are of, if it is one of a model that encodes events (a VAE): how far the
            codes of the reference are from the prior that was sampled from.  Of any generator of showers: its times,
            and showers of the same noise at varied conditions.
        showers: compare showers in a calorimeter: the columns tell its geometry.
        others: of showers, name of another model to its files, generated for the same reference: which of them the
            reference resembles most.
        network: of showers, the classifier of cells.
        repetitions: how often the classifier is trained on another part of the events; 10, of showers 3, if left out.
        seed: of splits, multipliers and directions.
        overwrite: replace existing outputs.

    Returns:
        All numbers.

    Raises:
        CalorefineError: bad input; nothing is written.
        WeightError: weights without a positive sum.
    """
    if Path(output).suffix != ".json":
        raise ConfigError(f"output: {output} found, expected a name that ends in .json; pictures go beside it")
    check_outputs(Path(output), overwrite=overwrite)
    files = generated.within(tree), reference.within(tree)
    if showers:
        return validate_showers(
            files,
            output=Path(output),
            columns=columns,
            training=training,
            checkpoint=checkpoint,
            others=others or {},
            network=network,
            n_trainings=repetitions or N_TRAININGS,
            seed=seed,
            overwrite=overwrite,
        )
    if others or network != SMALL:
        raise ConfigError("others, network: given without showers, expected --showers true as well, or none of them")
    samples = _samples(files, columns)
    paths = [Path(output), *_pictures(Path(output), samples.columns.feature_names)]
    with ExitStack() as stack:
        partial = [stack.enter_context(replacing(path, overwrite=overwrite)) for path in paths]
        known = read_training(training, files[1].source.tree, columns or files[0].columns) if training else None
        result = validation(
            samples,
            known,
            (sample_numbers(files[0], samples.generated.weight), sample_numbers(files[1], samples.reference.weight)),
            outputs=(paths[0], paths[1:]),
            training_n_eff=training_n_eff(files[0].provenance),
            latent_distance=_latent_distance(Path(checkpoint), files, samples.columns) if checkpoint else None,
            repetitions=repetitions or REPETITIONS,
            seed=seed,
        )
        write_json(partial[0], result.to_dict() | {"provenance": made_by()})
        for path, figure in zip(partial[1:], _figures(samples, result), strict=True):
            save_picture(figure, path)
    return result


def _samples(files: tuple[WeightedFiles, WeightedFiles], columns: Columns | None) -> Samples:
    """Both samples.

    Warns:
        CalorefineWarning: their contexts are distributed differently.
        ColumnWarning: a feature tells the samples apart, or nothing, whatever else they are like; or single precision
            loses its digits.
    """
    samples = read_samples(*files, columns=columns)
    warn_of_contexts(samples, (files[0].weight, files[1].weight))
    warn_of_columns(samples, f"{files[0].source} and {files[1].source}")
    return samples


def _latent_distance(checkpoint: Path, files: tuple[WeightedFiles, WeightedFiles], columns: Columns) -> LatentDistance:
    """Encode the reference.

    Raises:
        CheckpointError: the generated events are not of this checkpoint.
        ConfigError: its model encodes no events, or has other columns.
    """
    require_made_with(checkpoint, files[0])
    simulator = Simulator.load(checkpoint)
    given = {**columns.feature_columns, **columns.context_columns}
    known = simulator.columns
    unknown_columns(given, [*known.features, *known.context], option="columns")
    adapted = replace(adapted_columns(known, given, option="columns"), cut=columns.cut)
    request = files[1].request(adapted, adapted.expressions("features", "context"))
    return simulator.latent_distance(files[1].rows(request).events(adapted))


def _pictures(output: Path, features: list[str]) -> list[Path]:
    """Names of the pictures."""
    parts = ["features", "widths", *(f"efficiency_{re.sub(r'[^0-9A-Za-z_.-]', '_', name)}" for name in features)]
    return [output.with_name(f"{output.stem}_{part}.png") for part in parts]


def _figures(samples: Samples, result: Validation) -> Iterator[Figure]:
    """In the order of `_pictures`."""
    names = samples.columns.feature_names
    rows = [
        SampleRows(dict(zip(names, samples.features(part), strict=True)), part.weight, part.key, part.event_key)
        for part in (samples.generated, samples.reference)
    ]
    yield overlay_figure({name: overlay(name, *rows) for name in names})
    yield widths_figure(result.moments, result.moment_bins)
    for name in names:
        yield efficiency_figure(name, result.efficiencies[name], result.efficiency_bins)
