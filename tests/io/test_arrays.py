"""Array expressions: a fixed-size array for each row, read, computed with, kept in files, and written."""

from __future__ import annotations

import numpy as np
import pytest

from calorefine.errors import BranchError, ValueRangeError
from calorefine.io.chunks import Request
from calorefine.io.root import RootFiles
from calorefine.io.table import read_table
from calorefine.io.writer import write_tree

SHAPE = (2, 3)
N = 1000


@pytest.fixture
def arrays():
    rng = np.random.default_rng(5)
    return {
        "event": np.arange(N),
        "e": rng.uniform(1, 2, N),
        "cells": rng.exponential(size=(N, *SHAPE)).astype(np.float32),
    }


@pytest.fixture
def source(tmp_path, arrays, tree_format):
    with write_tree(tmp_path / "cells.root", "events", tree_format=tree_format) as writer:
        for first in range(0, N, 300):
            writer.extend({name: array[first : first + 300] for name, array in arrays.items()})
    return RootFiles(str(tmp_path / "cells.root"), "events")


@pytest.mark.parametrize("shape", [SHAPE, (6,)])
@pytest.mark.parametrize("max_memory_gb", [4.0, 0.0])
def test_rows_of_any_shape(source, arrays, shape, max_memory_gb):
    request = Request({"cells": "cells", "share": "(cells / e) * 1000.0", "e": "e"}, key=["event"], cut="e > 1.5")
    request = Request(**{**vars(request), "shapes": {"cells": shape, "share": shape}})
    table, *_ = read_table(source, request, max_memory_gb=max_memory_gb)
    keep = arrays["e"] > 1.5
    cells = arrays["cells"][keep].reshape(-1, *shape)
    assert table["cells"].dtype == table["share"].dtype == np.float32
    assert np.array_equal(table["cells"], cells)
    energy = arrays["e"][keep].reshape(-1, *[1] * len(shape))
    assert np.array_equal(table["share"], (cells.astype(float) / energy * 1000).astype(np.float32))
    assert np.array_equal(table["e"], arrays["e"][keep])
    parts = list(source.chunks(request, rows=77))
    assert np.array_equal(np.concatenate([part.values["share"] for part in parts]), table["share"])


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ("cells", (5,), r"branch 'cells' has 6 numbers per event, expected 5 as for shape \[5\]"),
        ("e * 2", (6,), r"'e \* 2' gives one number per event, expected an array of shape \[6\]"),
        ("cell", (6,), "no branch 'cell'; did you mean 'cells'"),
    ],
)
def test_other_shapes_are_refused(source, text, shape, message):
    with pytest.raises(BranchError, match=message):
        list(source.chunks(Request({"c": text}, key=["event"], shapes={"c": shape})))


def test_rows_with_cells_that_are_not_finite(tmp_path, arrays):
    cells = arrays["cells"].astype(np.float64)
    cells[3, 1, 1], cells[5, 0, 0], cells[5, 1, 0] = np.nan, np.inf, 1e39
    with write_tree(tmp_path / "bad.root", "events") as writer:
        writer.extend({**arrays, "cells": cells})
    source, request = RootFiles(str(tmp_path / "bad.root"), "events"), Request({"c": "cells"}, shapes={"c": SHAPE})
    with pytest.raises(ValueRangeError, match=r"in 2 rows \(c: 2\)"):
        list(source.chunks(request))
    with pytest.warns(UserWarning, match="left out 2"):
        (chunk,) = source.chunks(Request({"c": "cells"}, shapes={"c": SHAPE}, nonfinite="drop"))
    assert chunk.values["c"].shape == (N - 2, *SHAPE)


def test_entries_of_matrices_and_from_the_end(source, arrays):
    texts = {"a": "cells[1][2] - cells [0][-1]", "b": "cells[-2][-3] + e", "c": "cells[1] [0] > 1 ? 1 : 0"}
    (chunk,) = source.chunks(Request(texts))
    cells = arrays["cells"].astype(float)
    np.testing.assert_allclose(chunk.values["a"], cells[:, 1, 2] - cells[:, 0, 2])
    np.testing.assert_allclose(chunk.values["b"], cells[:, 0, 0] + arrays["e"])
    np.testing.assert_array_equal(chunk.values["c"], cells[:, 1, 0] > 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cells[1]", r"'cells\[1\]' asks for an entry, .* of shape \(2, 3\), expected as in cells\[0\]\[0\]"),
        ("cells[2][0]", r"asks for entry 2, branch 'cells' has 2, from 0 to 1"),
        ("cells[0][-4]", r"asks for entry -4, branch 'cells' has 3, from 0 to 2"),
        ("cell[0][1]", "there is no branch 'cell'; did you mean 'cells'"),
    ],
)
def test_entries_that_are_not_there(source, text, message):
    with pytest.raises(BranchError, match=message):
        list(source.chunks(Request({"a": text})))
