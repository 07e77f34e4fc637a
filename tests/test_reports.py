"""What reports, tokenizers, engines and streams look like: a line in a console, a small table in a notebook."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html import unescape

import pytest
from waiting import LONGEST_WAIT, wait_for

from helium_mlx import ComparisonReport, ConversionReport, ExportReport, HeliumEngine, HeliumTokenizer, Score
from helium_mlx.comparison.figures import ComparedModel, LanguageFigures
from helium_mlx.publishing.upload import UploadedFile, UploadReport
from helium_mlx.quantization.calibration import CalibrationReport

HOSTILE = "<script>alert('&')</script>\n" * 20
ENGLISH = LanguageFigures(0.00123456, 0.0001, 0.1, 0.98, 9.0, 9.1, 1.0123456, 0.001, 1.0, 1.1, 1000, 4000)
MODEL = ComparedModel(HOSTILE, "helium_mlx", "float32", 2_000_000, 4.5)
FILE = UploadedFile(HOSTILE, 12345, "0" * 64, True)

REPORTS = {
    "comparison": ComparisonReport(
        **vars(ENGLISH), languages={HOSTILE: ENGLISH, "fr": ENGLISH}, reference=MODEL, candidate=MODEL, window=512,
        windows=3, layers={HOSTILE: 0.001},
    ),
    "conversion": ConversionReport(
        HOSTILE, HOSTILE, None, None, {HOSTILE: "0" * 64}, {}, {}, "bfloat16", None, 10**9, 4.5, 10**9, 3.21, 10, 10,
        {}, {"logits": {}}, None, [HOSTILE],
    ),
    "upload": UploadReport(
        HOSTILE, HOSTILE, HOSTILE, None, None, True, (FILE,) * 30, (HOSTILE,), (), 12345, True, (HOSTILE,)
    ),
    "export": ExportReport(HOSTILE, HOSTILE, 4096, 7, 10**9, 10**9, 4.5, 10, 0.00012345, 3.21),
    "score": Score([1, 2, 3], [None, -1.0, -2.0], [{}, {}, {}], ["", HOSTILE, "b"], 5),
    "calibration": CalibrationReport(HOSTILE, 1000, 100, HOSTILE, 0.2, 0.1, [HOSTILE], {HOSTILE: 1.0}, 1, 2, 3, 4),
}  # fmt: skip


def cells(html: str) -> list[str]:
    return [unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", html)]


def titles(html: str) -> list[str]:
    return [unescape(title) for title in re.findall(r"<th>(.*?)</th>", html)]


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_is_a_short_line(name: str) -> None:
    said = repr(REPORTS[name])
    assert said.startswith(f"{type(REPORTS[name]).__name__}(") and said.endswith(")")
    assert len(said) < 200 and said.isprintable(), said


@pytest.mark.parametrize("name", REPORTS)
def test_a_table_escapes_every_name(name: str) -> None:
    html = REPORTS[name]._repr_html_()
    assert set(re.findall(r"<(\w+)>", html)) <= {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert "&lt;script&gt;" in html and "\n" not in html and len(html) < 30_000


@pytest.mark.parametrize("name", REPORTS)
def test_a_cell_has_one_number_and_its_heading_the_unit(name: str) -> None:
    html = REPORTS[name]._repr_html_()
    figures = [cell for cell in cells(html) if re.match(r"[\d-]", cell)]
    assert figures and all(re.fullmatch(r"-?[\d,.]+(e-\d+)?|-", cell) for cell in figures), figures
    units = ("MB", "s", "bytes", "tokens", "nats", "%", "B / A", "a weight", "a token", "a byte")
    unitless = {title for title in titles(html) if not title.endswith(tuple(f", {unit}" for unit in units))}
    assert unitless <= {
        "language", "only this from B", "directory", "verified", "warnings", "file", "change", "bundle", "text",
        "rounding", "tokens",
    }  # fmt: skip


def test_figures_are_those_of_the_report() -> None:
    assert repr(ENGLISH) == (
        "LanguageFigures(mean_kl=0.0012346, top1_agreement=0.98, perplexity_ratio=1.0123, tokens=1000)"
    )
    assert cells(REPORTS["conversion"]._repr_html_())[1:] == ["1,000.0", "4.50", "yes", "1", "3.2"]
    assert cells(REPORTS["export"]._repr_html_())[1:] == ["4,096", "1,000.0", "4.50", "0.0123", "3.2"]
    assert cells(REPORTS["score"]._repr_html_())[1:] == ["3", "-3.000", "4.482", "0.8656"]


def test_an_upload_of_many_files_shows_the_first() -> None:
    shown = cells(REPORTS["upload"]._repr_html_())
    assert len(shown) == 3 * 21 and shown[1:3] == ["12,345", "to send"] and shown[-3] == "and 11 more"
    upload = UploadReport(
        "a/b", "u", "main", "c", None, True, (replace(FILE, is_sent=False),), ("x",), (), 0, False, ()
    )
    assert cells(upload._repr_html_())[2:] == ["same", "x", "", "removed"]


def test_a_score_of_one_token_has_no_perplexity() -> None:
    score = Score([1], [None], [{}], ["a"], 0)
    assert repr(score) and cells(score._repr_html_())[1:] == ["1", "0.000", "-", "nan"]


def test_a_tokenizer_says_how_many_ids_it_has_and_which_are_special(demo: tuple[object, HeliumTokenizer]) -> None:
    tokenizer = demo[1]
    assert repr(tokenizer) == (
        f"HeliumTokenizer(vocab_size={tokenizer.vocab_size}, added={len(tokenizer) - tokenizer.vocab_size}, "
        f"bos_token_id=1, eos_token_ids=(2,), pad_token_id={tokenizer.pad_token_id})"
    )
    assert repr(HeliumTokenizer.__new__(HeliumTokenizer)).startswith("<helium_mlx.")


def test_an_engine_and_its_streams_say_how_they_stand() -> None:
    with HeliumEngine("demo", memory_limit=64_000_000, batch_size=1, buffer=4) as engine:
        assert repr(engine) == "HeliumEngine(model='demo', state='open', rows=0, waiting=0, memory_limit=64000000)"
        prompt = "Once upon a time there was a girl who lived near the harbour."
        stream, other = engine.stream(prompt, max_tokens=30, ignore_eos=True), engine.stream("A", max_kv_size=9)
        assert repr(stream).startswith("EngineStream(prompt='Once upon a time there was a girl who …, state='open', ")
        wait_for(lambda: "waiting=1" in repr(engine))
        next(stream)
        assert re.search(r"state='open', tokens=1, unread=\d\)", repr(stream))
        other.cancel()
        assert "state='cancelled', tokens=0" in repr(other)
        stream.result()
        assert "state='length', tokens=30, unread=0" in repr(stream)
        engine.pause()
        assert "state='paused'" in repr(engine)
    assert repr(engine) == "HeliumEngine(model='demo', state='closed', rows=0, waiting=0, memory_limit=64000000)"
    assert repr(HeliumEngine.__new__(HeliumEngine)) == "HeliumEngine(state='closed')"


def test_a_repr_waits_for_no_lock() -> None:
    with HeliumEngine("demo") as engine, ThreadPoolExecutor() as another:
        stream = engine.stream("Once", max_tokens=4)
        with engine._worker._lock, stream._channel._condition:
            said = another.submit(lambda: f"{engine!r} {stream!r}").result(timeout=LONGEST_WAIT)
    assert said.startswith("HeliumEngine(model='demo'") and "EngineStream(prompt='Once'" in said


def test_an_engine_whose_worker_died_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = HeliumEngine("demo")
    monkeypatch.setattr(engine._worker.scheduler, "step", lambda: 1 / 0)
    stream = engine.stream("Once")
    wait_for(lambda: not engine._worker.is_alive)
    assert "state='dead'" in repr(engine) and "state='failed'" in repr(stream)
    engine.close()
    assert "state='closed'" in repr(engine)
