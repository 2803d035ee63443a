"""`calorefine plot`: distributions of generated against weighted reference events, with ratio panels."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backend_bases import FigureCanvasBase

from calorefine.errors import ConfigError, nearest
from calorefine.events import Columns
from calorefine.io.provenance import recorded
from calorefine.io.sample import WeightedFiles
from calorefine.io.writer import check_outputs, replacing
from calorefine.pages.style import save_picture
from calorefine.pages.validation import overlay_figure
from calorefine.twosample.context_check import warn_of_file_contexts
from calorefine.twosample.overlay import overlay


@recorded("plot")
def plot_files(
    *,
    generated: WeightedFiles,
    reference: WeightedFiles,
    output: str,
    features: list[str] | None = None,
    tree: str = "events",
    bins: int = 40,
    columns: Columns | None = None,
    overwrite: bool = False,
) -> str:
    """Draw the distribution of each feature in a generated and a reference file.

    Both are normalized to the reference's sum of weights; statistical errors are sqrt(sum_w2) in each bin, with rows as
    independent events.  A warning tells if the contexts of both are distributed differently.

    Args:
        generated: generated events, with a weight if they have one.
        reference: reference events, with a weight of any sign.
        output: picture to write; its ending tells the format (png, pdf, svg).
        features: branches or expressions in both files; the generated features if left out.
        tree: name of the tree in samples that don't name theirs.
        bins: number of bins.
        columns: of showers, for their observables (`shower.width_eta_1`); those that the generated file was made with,
            if left out.
        overwrite: replace an existing picture.

    Returns:
        What was drawn.

    Raises:
        CalorefineError: bad input.
        WeightError: the weights don't have a positive sum.
    """
    if bins < 1:
        raise ConfigError(f"bins: {bins} found, expected at least 1")
    picture = _format(Path(output))
    check_outputs(Path(output), overwrite=overwrite)
    made = generated.within(tree, columns)
    files = made, reference.within(tree, made.shower_columns())
    names = features or list(files[0].provenance.get("columns", {}).get("features", {}))
    if not names:
        raise ConfigError(f"{generated.files}: has no provenance that names its features; name them with --features")
    wanted = {name: name for name in names}
    samples = [sample.rows(sample.request(None, wanted)) for sample in files]
    warn_of_file_contexts(*files)
    figure = overlay_figure({name: overlay(name, *samples, bins=bins) for name in names})
    with replacing(Path(output), overwrite=overwrite) as beside:
        save_picture(figure, beside, picture)
    return f"{output}: {len(names)} features of {len(samples[0])} generated and {len(samples[1])} reference events"


def _format(path: Path) -> str:
    """Picture format by the ending of the name, png without one."""
    known = FigureCanvasBase.get_supported_filetypes()
    ending = path.suffix.lstrip(".") or "png"
    if ending not in known:
        raise ConfigError(f"{path}: no known picture format{nearest(ending, known)}; there are {', '.join(known)}")
    return ending
