"""What goes out as JSON is JSON: no NaN, no infinity, nothing that UTF-8 cannot hold."""

import json
import math
from typing import NoReturn

import pytest

from helium_mlx.json_writer import to_json


def refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, json.loads("1e999")])
def test_what_is_not_a_number_is_null(number: float) -> None:
    values = {"a": number, "b": [1.5, (number,)], "c": {"d": number}}
    expected = {"a": None, "b": [1.5, [None]], "c": {"d": None}}
    for indent in (None, 2):
        assert json.loads(to_json(values, indent=indent), parse_constant=refuse) == expected


@pytest.mark.parametrize("ascii_only", [False, True])
def test_half_a_character_is_escaped_and_whole_ones_are_kept(ascii_only: bool) -> None:
    text = to_json({"a": "\ud800 é \U0001f600", "\udce9": "\udce9"}, ascii_only=ascii_only)
    assert json.loads(text.encode()) == {"a": "\ud800 é \U0001f600", "\udce9": "\udce9"}
    assert ("é" in text) is not ascii_only
