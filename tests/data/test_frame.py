"""The canonical frame: exact, and what the symmetries of the detector say."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from calorefine.data.frame import Frame
from calorefine.geometry import Geometry, Layer, segmented

PHOTONS = segmented([(3, 96), (12, 12), (12, 6)], (480.0, 480.0))


def shower(entry):
    """Energies that are functions of the distance from the entry alone: (n, cells)."""
    layers = [
        torch.exp(
            -((torch.from_numpy(one.eta) - entry[:, :1]).abs() + (torch.from_numpy(one.phi) - entry[:, 1:]).abs())
        )
        for one in PHOTONS.layers
    ]
    return torch.cat(layers, dim=1)


def test_there_and_back_again():
    cells, entry = torch.randn(200, 504), 80 * torch.rand(200, 2) - 40
    frame = Frame(PHOTONS)
    torch.testing.assert_close(frame.restored(frame.canonical(cells, entry), entry), cells, rtol=0, atol=0)
    torch.testing.assert_close(frame.canonical(cells, frame.entry(entry)).sort(1).values, cells.sort(1).values)
    assert not torch.equal(frame.canonical(cells, entry), cells)


def test_mirrored_showers_are_one_in_the_frame():
    entry = torch.tensor([[7.3, 11.2], [-7.3, 11.2], [7.3, -11.2], [-7.3, -11.2]], dtype=torch.float64)
    canonical = Frame(PHOTONS).canonical(shower(entry), entry)
    torch.testing.assert_close(canonical, canonical[:1].expand(4, -1))
    assert (shower(entry)[0] != shower(entry)[1]).any()


def test_the_cell_of_entry_is_always_the_same():
    """Strips of 5 mm: a shower that enters 3 strips further is moved by 3, the coarse layers not at all."""
    entry = torch.tensor([[1.2, 3.0], [16.2, 3.0]], dtype=torch.float64)
    first, second = Frame(PHOTONS).canonical(shower(entry), entry)
    strips = first[:288].view(3, 96), second[:288].view(3, 96)
    assert strips[0].argmax() % 96 == strips[1].argmax() % 96 == 48
    torch.testing.assert_close(strips[0][:, 10:86], strips[1][:, 10:86])
    torch.testing.assert_close(second[288:], shower(entry)[1, 288:])


def test_where_in_the_strip():
    """The strips are the only cells that are finer than others along both axes' mirrors: 5 mm, and 80 mm before."""
    frame = Frame(PHOTONS)
    within = frame.within(torch.tensor([[1.0, 0.0], [6.0, 0.0], [-9.0, 0.0]]))
    sizes = [(axis, pitch) for axis, pitch, _ in frame.fine]
    assert sizes == [(0, 5.0), (0, 40.0), (1, 40.0)]
    np.testing.assert_allclose(within[:, 0], [-0.6, -0.6, 0.6], atol=1e-6)


def test_without_a_mirror_an_axis_stays_as_it_is():
    """Mirrored along phi alone: strips are not moved along eta."""
    geometry = dataclasses.replace(PHOTONS, mirrors=(False, True))
    frame, entry = Frame(geometry), torch.tensor([[16.2, -30.0], [-16.2, 30.0]], dtype=torch.float64)
    cells = shower(entry)
    canonical = frame.canonical(cells, entry)
    assert canonical[0][:288].view(3, 96).sum(0).argmax() == cells[0][:288].view(3, 96).sum(0).argmax()
    assert torch.equal(frame.entry(entry), torch.tensor([[16.2, 30.0], [-16.2, 30.0]], dtype=torch.float64))
    assert torch.equal(frame.restored(canonical, entry), cells)


def test_without_mirrors_nothing_moves():
    layer = Layer(0, np.zeros(5), np.zeros(5))
    frame = Frame(Geometry((layer,)))
    cells, entry = torch.randn(4, 5), torch.randn(4, 2)
    assert torch.equal(frame.canonical(cells, entry), cells)
    assert torch.equal(frame.entry(entry), entry)
    assert frame.within(entry).shape == (4, 0)
