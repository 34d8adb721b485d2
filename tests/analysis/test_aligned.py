"""The table that analyses print."""

from fastlsr.analysis import aligned


def test_the_first_column_is_flush_left_and_the_others_flush_right():
    assert aligned([["", "n"], ["lsr", "12"], ["a b", "3"]]) == "      n\nlsr  12\na b   3"


def test_no_line_ends_in_blanks():
    assert aligned([["head", "x"], ["a", ""]]) == "head  x\na"
