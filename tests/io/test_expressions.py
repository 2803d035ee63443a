"""Expressions: what physicists write is understood, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest

from calorefine.errors import BranchError, ExpressionError
from calorefine.io.expressions import evaluate_arrays, evaluate_plain, plain_branches
from calorefine.io.names import quoted

A, F, FLAG = np.array([1.0, -2.0, 3.0]), np.array([0.1, 0.2, 0.3], np.float32), np.array([True, False, True])
K, J = np.array([-7, 2**52 + 1, 5], np.int64), np.array([0, 3, 5], np.int32)
U, U8 = np.array([2**53, 0, 7], np.uint64), np.array([255, 0, 2], np.uint8)
TABLE = {"a": A, "f": F, "flag": FLAG, "i": K, "j": J, "u": U, "u8": U8, "where": A}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a > 1 && flag", (A > 1) & FLAG),
        ("a > 1 || flag", (A > 1) | FLAG),
        ("a>1&&!flag||a<0", (A > 1) & ~FLAG | (A < 0)),
        ("!(a > 1)", ~(A > 1)),
        ("a != 1 && !flag", (A != 1) & ~FLAG),
        ("not a > 1 or flag and j == 3", ~(A > 1) | (FLAG & (J == 3))),
        ("-2 < a <= 3", (A > -2) & (A <= 3)),
        ("0 < j < a + 1 && flag", (J > 0) & (J < A + 1) & FLAG),
        ("j && a > 0", (J != 0) & (A > 0)),
        ("!j", J == 0),
        ("not (j and flag)", ~((J != 0) & FLAG)),
        ("u8 || flag", (U8 != 0) | FLAG),
        ("flag", FLAG),
        ("flag == 1", FLAG),
        ("~flag & (a > 0)", ~FLAG & (A > 0)),
        ("flag | (a > 2)", FLAG | (A > 2)),
        ("True", np.ones(3, bool)),
        ("a == 1 && 1", A == 1),
        ("(j & 1) != 0", (J & 1) != 0),
        ("j & 1 == 1 && flag", ((J & 1) == 1) & FLAG),
        ("!(j & 4)", (J & 4) == 0),
        ("flag & flag", FLAG),
        ("!j == 1", J == 0),
        ("!a != 1 && flag", (A != 0) & FLAG),
        ("not a == 1", A != 1),
        ("!!j", J != 0),
        ("~!flag", FLAG),
        ("(a > 1) & !flag", (A > 1) & ~FLAG),
        ("a > 1 && !(3 < 2.5 < a)", A > 1),
        ("!(1 < 2)", np.zeros(3, bool)),
        ("!(1 < 2) || flag", FLAG),
        ("1 && flag", FLAG),
        ("(1 < 2) & (a > 1)", A > 1),
        ("True & flag", FLAG),
        ("1 < 2 < a", A > 2),
        ("~flag", ~FLAG),
        ("flag ? a > 2 : a < 0", np.where(FLAG, A > 2, A < 0)),
    ],
)
def test_conditions(text, expected):
    result = evaluate_plain(text, TABLE)
    assert result.dtype == bool
    assert np.array_equal(result, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", A),
        ("(a)", A),
        ("  a ", A),
        ("a\n  + f", A + F.astype(np.float64)),
        ("f", F.astype(np.float64)),
        ("f * 2", F.astype(np.float64) * 2),
        ("j % 3", J % 3),
        ("u % 2 + u8", U % np.uint64(2) + U8),
        ("u8 + 1", np.array([256.0, 1.0, 3.0])),
        ("u - 8", U.astype(np.float64) - 8),
        ("u", U.astype(np.float64)),
        ("i", K.astype(np.float64)),
        ("-i", -K.astype(np.float64)),
        ("j / 2", J / 2),
        ("i * i", K.astype(np.float64) ** 2),
        ("a ** 2 - -a", A**2 + A),
        ("sqrt(abs(a))", np.sqrt(np.abs(A))),
        ("arctan2(a, f) + log10(abs(a)) * exp(f)", np.arctan2(A, F.astype(float)) + np.log10(abs(A)) * np.exp(F * 1.0)),
        ("where(flag, a, -a)", np.abs(A)),
        ("where", A),
        ("flag ? a : -a", np.abs(A)),
        ("2 * (a > 2 ? 1 : a < 0 ? -1 : j) + sqrt(flag ? 4 : 9)", [2.0, 1.0, 4.0]),
        ("a if flag else f", np.where(FLAG, A, F.astype(float))),
        ("where(j, 1, 2)", np.where(J != 0, 1.0, 2.0)),
        ("j ? 1 : 2", np.where(J != 0, 1.0, 2.0)),
        ("j & 5 | 2", (J & 5 | 2) * 1.0),
        ("u8 >> 1 & 3", ((U8 >> 1) & 3) * 1.0),
        ("(j << 3) + a", (J << 3) + A),
        ("~i & 255", (~K & 255) * 1.0),
        ("i & (1 << 52)", [2.0**52, 2.0**52, 0.0]),
        ("flag + 1", FLAG + 1.0),
        ("flag * a", FLAG * A),
        ("3", np.full(3, 3.0)),
        ("1.5e3", np.full(3, 1500.0)),
    ],
)
def test_values(text, expected):
    result = evaluate_plain(text, TABLE)
    assert result.dtype == np.float64
    assert result.shape == (3,)
    np.testing.assert_allclose(result, expected, rtol=1e-6 if "arctan2" in text else 1e-15)


def test_division_by_zero_and_logarithms_give_values_that_the_reader_counts():
    result = evaluate_plain("1 / (a - 1) + log(a)", TABLE)
    assert np.isinf(result[0])
    assert np.isnan(result[1])
    assert np.isfinite(result[2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sqt(a)", "no function 'sqt'; did you mean 'sqrt'"),
        ("atan2(a, f)", r"write arctan2\(y, x\)"),
        ("pow(a, 2)", r"no function 'pow'; write x \*\* y"),
        ("qqq(a, 2)", "no function 'qqq'; there are abs, arccos"),
        ("Sum$(a)", r"can't be parsed: .*; write sum\(x\)"),
        ("a ? j", "can't be parsed"),
        ("a +* 2", "can't be parsed: invalid syntax at character 4"),
        ("a = 1", "can't be parsed"),
        ("", "can't be parsed"),
        ("TMath::Abs(a)", "can't be parsed: .*; write the function's name"),
        ("a; j", "can't be parsed"),
        ("a.real", "'a.real' is not understood"),
        ("__import__('os').system('touch x')", "is not understood"),
        ("eval('1')", "is not understood"),
        ("eval(a)", "no function 'eval'"),
        ("__builtins__", "__builtins__"),
        ("a.__class__.__bases__[0]", "is not understood"),
        ("a[b]", "is not understood"),
        ("(lambda: a)()", "is not understood"),
        ("[b for b in a]", "is not understood"),
        ("f'{a}'", "is not understood"),
        ("(b := a)", "is not understood"),
        ("sqrt(x=a)", "is not understood"),
        ("sqrt(*a)", "is not understood"),
        ("'text'", "is not understood"),
        ("None", "is not understood"),
        ("2j * a", "is not understood"),
        ("a is f", "Is is not understood"),
        ("a in f", "In is not understood"),
        ("a @ f", "MatMult is not understood"),
        ("a ^ 2", "write \\*\\* for powers"),
        ("a & 1", "'a' is of type float64, expected integers beside"),
        ("j & 1.5", "'1.5' stands beside &"),
        ("j & (a + 1)", r"'a \+ 1' stands beside &"),
        ("j & (a > 1)", "can't be evaluated: .*conditions or on integers, not on both"),
        ("sin(a, f)", "can't be evaluated"),
        ("1 / 0", "can't be evaluated: .*division by zero"),
        ("10 ** 400 * a", "can't be evaluated"),
        ("9 ** 9 ** 9 ** 9", "can't be evaluated"),
        ("9" * 400, "can't be parsed"),
        ("-" * 100_000 + "a", "can't be parsed"),
        ("a\0", "can't be parsed"),
    ],
)
def test_refused(text, message):
    with pytest.raises((ExpressionError, BranchError), match=message):
        evaluate_plain(text, TABLE)


def test_missing_branch_names_the_nearest():
    with pytest.raises(BranchError, match="'A > 1' needs a branch 'A', which isn't there; did you mean 'a'"):
        evaluate_plain("A > 1", TABLE)


@pytest.mark.parametrize("values", [np.array([2**53 + 1], np.uint64), np.array([-(2**60)], np.int64)])
def test_integers_that_double_precision_cannot_hold_are_refused(values):
    """Such as `event % 10` of a 64-bit hash, which would be wrong without a word."""
    with pytest.raises(ExpressionError, match=r"branch 'event' holds integers up to .* expected at most 2\*\*53"):
        evaluate_plain("event % 10 == 3", {"event": values})


def test_branches_are_named_once_and_without_functions():
    assert plain_branches("where(where > 0, px, py) + px && a") == ("where", "px", "py", "a")


@pytest.mark.parametrize("name", ["sin", "where", "sum", "real", "contains", "min", "ones_like"])
def test_branches_may_have_the_name_of_a_function(name):
    table = {name: A, "flag": FLAG}
    np.testing.assert_array_equal(evaluate_plain(f"{name} * 2", table), A * 2)
    np.testing.assert_array_equal(
        evaluate_plain(f"where(flag, {name}, sin({name}))", table), np.where(FLAG, A, np.sin(A))
    )


@pytest.mark.parametrize("name", ["cells", "K-pt", "sin"])
def test_arrays_alone_are_rounded_whatever_their_name(name):
    table = {name: np.array([[2**60, 1]])}
    np.testing.assert_array_equal(evaluate_arrays(quoted(name), table, (2,)), table[name].astype(np.float32))


def test_empty_table():
    assert evaluate_plain("a > 1 && u < 3", {name: array[:0] for name, array in TABLE.items()}).shape == (0,)


def test_bits_of_integers_that_double_precision_cannot_hold():
    words = np.array([2**62 + 5, 1, 0], np.uint64)
    assert evaluate_plain("(trigger & (1 << 62)) != 0", {"trigger": words}).tolist() == [True, False, False]
    assert evaluate_plain("trigger & 4", {"trigger": words}).tolist() == [4, 0, 0]
    with pytest.raises(ExpressionError, match=r"up to 9223372036854775808, expected at most 2\*\*63 - 1"):
        evaluate_plain("trigger & 4", {"trigger": np.array([2**63], np.uint64)})


LABELS = {'kind == "TT"': np.array([True, False, True]), "a": A}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('kind == "TT"', [True, False, True]),
        ("kind != 'TT'", [False, True, False]),
        ('kind=="TT" && a > 1', [False, False, True]),
        ('!(kind == "TT") || a > 2', [False, True, True]),
        ('where(kind == "TT", 1, 2) + 0 * a', [1.0, 2.0, 1.0]),
        ('(kind == "TT" ? 1 : 2) + 0 * a', [1.0, 2.0, 1.0]),
    ],
)
def test_text_is_compared_with_a_value(text, expected):
    assert plain_branches(text)[0] == 'kind == "TT"'
    np.testing.assert_array_equal(evaluate_plain(text, LABELS), expected)


def test_text_alone_has_a_hint():
    with pytest.raises(ExpressionError, match="not understood; text is compared with a branch, as in label =="):
        evaluate_plain("'TT' == kind", TABLE)
