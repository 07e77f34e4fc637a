import mlx.core as mx
import pytest

import helium_mlx
from helium_mlx import HeliumForCausalLM, HeliumTokenizer, TextStreamer
from helium_mlx.errors import GenerationError

Demo = tuple[HeliumForCausalLM, HeliumTokenizer]

PROMPT = "Il était une fois"


@pytest.mark.parametrize("skip_prompt", [True, False])
def test_it_prints_the_text_and_a_newline_each_time(
    demo: Demo, capsys: pytest.CaptureFixture[str], skip_prompt: bool
) -> None:
    model, tokenizer = demo
    ids = mx.array([tokenizer.encode(PROMPT)])
    streamer = TextStreamer(tokenizer, skip_prompt=skip_prompt)
    for _ in range(2):
        generated = model.generate(ids, max_new_tokens=40, streamer=streamer)[0]
        shown = generated[ids.shape[1] :] if skip_prompt else generated
        assert capsys.readouterr().out == tokenizer.decode(shown) + "\n"


def test_special_tokens_are_shown_on_demand(demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = demo
    model.generate(
        mx.array([tokenizer.encode(PROMPT)]),
        max_new_tokens=2,
        streamer=TextStreamer(tokenizer, skip_special_tokens=False),
    )
    assert capsys.readouterr().out.startswith("<s>")


def test_text_appears_while_it_is_generated(demo: Demo) -> None:
    pieces: list[tuple[str, bool]] = []

    class Kept(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            pieces.append((text, stream_end))

    ids = mx.array([demo[1].encode(PROMPT)])
    generated = demo[0].generate(ids, max_new_tokens=10, streamer=Kept(demo[1]))
    assert len(pieces) == 1 + (generated.shape[1] - ids.shape[1]) + 1
    assert [end for _, end in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[0][0] == PROMPT


def test_several_rows_are_refused(demo: Demo) -> None:
    with pytest.raises(GenerationError, match="2 rows came"):
        demo[0].generate(mx.array([[1, 5], [1, 6]]), max_new_tokens=2, streamer=TextStreamer(demo[1]))


def test_it_is_a_name_of_the_package() -> None:
    assert helium_mlx.TextStreamer is TextStreamer
