"""The hierarchy of errors: as `errors.py` draws it, and as callers meet it."""

import inspect
import pickle
import re

import pytest

import helium_mlx
from helium_mlx import errors
from helium_mlx.errors import GenerationError, HeliumError, KeywordError, OptionError, UsageError


def test_the_hierarchy_is_drawn_as_it_is() -> None:
    drawn: dict[str, set[str]] = {}
    ancestors: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"( +(?:[│├└─]+ |[│ ]+[├└]── )?)([A-Z]\w+Error)\b", line)
        if found:
            column, name = found.start(2), found[2]
            ancestors = [(at, parent) for at, parent in ancestors if at < column]
            drawn.setdefault(name, set()).update(parent for _, parent in ancestors[-1:])
            ancestors.append((column, name))
    classes = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind)}
    own = {
        name: {base.__name__ for base in kind.__bases__ if issubclass(base, HeliumError)}
        for name, kind in classes.items()
        if issubclass(kind, HeliumError)
    }
    assert drawn == own


def test_every_error_is_public() -> None:
    own = {name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, HeliumError)}
    assert own <= set(helium_mlx.__all__)


def test_only_options_of_generation_raise_a_kind_of_generation_error(tmp_path: object) -> None:
    with pytest.raises(UsageError) as uploading:
        helium_mlx.upload(str(tmp_path), "user/name", revision="a..b")
    with pytest.raises(UsageError) as comparing:
        helium_mlx.compare("demo", "demo", window=0)
    with pytest.raises(UsageError) as exporting:
        helium_mlx.export("demo", f"{tmp_path}/bundle", context=1)
    assert not any(isinstance(caught.value, GenerationError) for caught in (uploading, comparing, exporting))
    assert issubclass(OptionError, GenerationError)


FUNCTIONS = sorted(name for name in helium_mlx.__all__ if inspect.isfunction(getattr(helium_mlx, name)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_misspelled_keyword_is_named_with_the_nearest(name: str) -> None:
    function = getattr(helium_mlx, name)
    known = inspect.signature(function).parameters
    keyword = list(known)[-1]
    with pytest.raises(KeywordError) as caught:
        function(**{f"{keyword}x": 1})
    assert str(caught.value) == f"{name}() has no argument {keyword}x; did you mean {keyword}?"
    with pytest.raises(KeywordError) as caught:
        function(quux=1)
    assert str(caught.value).startswith(f"{name}() has no argument quux; it takes {next(iter(known))}")
    assert isinstance(caught.value, TypeError)


def test_what_is_misspelled_often_is_found() -> None:
    for function, given, meant in (
        (helium_mlx.convert, "quantise", "quantize"),
        (helium_mlx.generate, "max_token", "max_tokens"),
        (helium_mlx.generate, "temp", "temperature"),
        (helium_mlx.compare, "text", "texts"),
    ):
        with pytest.raises(KeywordError, match=rf"no argument {given}; did you mean {meant}\?"):
            function(**{given: 1})  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_functions_are_still_what_they_were() -> None:
    for name in FUNCTIONS:
        function = getattr(helium_mlx, name)
        assert pickle.loads(pickle.dumps(function)) is function
        assert (function.__name__, bool(function.__doc__)) == (name, True)
    with pytest.raises(TypeError, match="missing 1 required positional argument") as caught:
        helium_mlx.convert("demo")  # pyright: ignore[reportCallIssue]
    assert not isinstance(caught.value, HeliumError)


def test_a_misspelled_keyword_of_an_engine_is_answered_with_the_nearest() -> None:
    with pytest.raises(KeywordError, match=r"HeliumEngine\(\) has no argument batchsize; did you mean batch_size\?"):
        helium_mlx.HeliumEngine("demo", batchsize=3)  # pyright: ignore[reportCallIssue]
    with helium_mlx.HeliumEngine("demo") as engine:
        for call in (engine.stream, engine.complete):
            with pytest.raises(KeywordError, match=r"stream\(\) has no argument max_token; did you mean max_tokens\?"):
                call("Once", max_token=3)  # pyright: ignore[reportCallIssue]
        with pytest.raises(KeywordError, match=r"score\(\) has no argument toplogprobs; did you mean top_logprobs\?"):
            engine.score("Once", toplogprobs=3)  # pyright: ignore[reportCallIssue]
