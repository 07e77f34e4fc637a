"""`compare` against a comparison in plain Python, one window at a time; against transformers: `parity/`."""

import hashlib
import math
import random
import shutil
import weakref
from dataclasses import asdict, fields
from pathlib import Path
from typing import cast

import mlx.core as mx
import pytest
from compared_checkpoints import TEXTS, Plain, flat, plain_comparison, write_pair

import helium_mlx
from helium_mlx import ComparisonError, ComparisonReport, HeliumForCausalLM, HeliumTokenizer, compare
from helium_mlx.comparison import comparison
from helium_mlx.comparison import passes as comparison_runs
from helium_mlx.comparison import sides as compared_models
from helium_mlx.comparison.comparison import compare_all
from helium_mlx.comparison.figures import LanguageFigures
from helium_mlx.comparison.sides import HeliumSide
from helium_mlx.comparison.text import documents_of
from helium_mlx.errors import UsageError
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.files.names import WEIGHTS_FILE
from helium_mlx.model.loading import load_model

WINDOW = 8

Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def report(pair: Pair) -> ComparisonReport:
    return compare(*pair, texts=TEXTS, window=WINDOW, batch_size=3)


@pytest.mark.parametrize(("ids", "bos"), [([5, 5000], 1), ([5], 5000)])
def test_ids_that_a_model_lacks_are_refused(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, ids: list[int], bos: int
) -> None:
    def opened(name: str, **options: object) -> HeliumSide:
        side = HeliumSide(name, Path(name))
        monkeypatch.setattr(side, "encode", lambda text: ids)
        side.bos = bos
        return side

    monkeypatch.setattr(comparison, "open_side", opened)
    with pytest.raises(ComparisonError, match=r"its tokenizer gives the id 5000, and the model has \d+ rows; fetch"):
        compare(*pair, texts=TEXTS)


def windows_of(language: str) -> list[list[int]]:
    """Cut the texts of a language by hand: the fewest windows, the first as short as the others or by one shorter."""
    tokenizer = HeliumTokenizer.from_pretrained(DEMO_DIRECTORY)
    windows: list[list[int]] = []
    for text in TEXTS[language]:
        ids = tokenizer.encode(text)[1:]
        left = math.ceil(len(ids) / WINDOW)
        while ids:
            length = len(ids) // left
            windows.append([1, *ids[:length]])
            ids, left = ids[length:], left - 1
    return windows


def expected_figures(plain: Plain, data: int) -> dict[str, float | None]:
    reference, candidate, kl = flat(plain.reference), flat(plain.candidate), flat(plain.divergences)
    n, m = len(reference), len(plain.reference)
    ranked, rank = sorted(kl), 0.99 * (n - 1)
    mean_kl, mean_loss = sum(kl) / n, (sum(candidate) - sum(reference)) / n
    kl_squares = sum((sum(a) - len(a) * mean_kl) ** 2 for a in plain.divergences)
    loss_squares = sum(
        (sum(b) - sum(a) - len(a) * mean_loss) ** 2 for a, b in zip(plain.reference, plain.candidate, strict=True)
    )
    return {
        "mean_kl": mean_kl,
        "mean_kl_error": math.sqrt(m / (m - 1) * kl_squares) / n,
        "p99_kl": ranked[int(rank)] + (rank % 1) * (ranked[int(rank) + 1] - ranked[int(rank)]),
        "top1_agreement": sum(flat(plain.agreements)) / n,
        "reference_perplexity": math.exp(sum(reference) / n),
        "candidate_perplexity": math.exp(sum(candidate) / n),
        "perplexity_ratio": math.exp(mean_loss),
        "perplexity_ratio_error": math.exp(mean_loss) * math.sqrt(m / (m - 1) * loss_squares) / n,
        "reference_bits_per_byte": sum(reference) / data / math.log(2),
        "candidate_bits_per_byte": sum(candidate) / data / math.log(2),
        "tokens": n,
        "bytes": data,
    }


def figures_of(figures: LanguageFigures) -> dict[str, float | None]:
    return {field.name: getattr(figures, field.name) for field in fields(LanguageFigures)}


def test_every_figure_is_that_of_a_slow_and_obvious_comparison(pair: Pair, report: ComparisonReport) -> None:
    models = [load_model(path, dtype="float32") for path in pair]
    parts = {language: plain_comparison(models[0], models[1], windows_of(language)) for language in TEXTS}
    data = {language: len("".join(texts).encode()) for language, texts in TEXTS.items()}
    assert list(report.languages) == list(TEXTS)
    for language, figures in report.languages.items():
        expected = expected_figures(parts[language], data[language])
        assert figures_of(figures) == pytest.approx(expected, rel=2e-4), language
    whole = Plain(*(flat([getattr(part, field.name) for part in parts.values()]) for field in fields(Plain)))  # pyright: ignore
    assert figures_of(report) == pytest.approx(expected_figures(whole, sum(data.values())), rel=2e-4)
    assert report.windows == len(whole.reference)
    assert report.window == WINDOW
    assert report.notes == ()
    assert [text.name for text in report.texts] == [name for name in TEXTS for _ in TEXTS[name]]
    assert report.texts[0].sha256 == hashlib.sha256(TEXTS["en"][0].encode()).hexdigest()
    # The pair differs enough for the figures to mean something.
    assert report.mean_kl is not None and report.mean_kl > 1e-3
    assert report.top1_agreement is not None and 0.1 < report.top1_agreement < 0.999


def test_a_model_is_at_no_distance_from_itself(pair: Pair) -> None:
    report = compare(pair[1], pair[1], texts=TEXTS, window=WINDOW)
    for figures in (report, *report.languages.values()):
        assert (figures.mean_kl, figures.mean_kl_error, figures.p99_kl, figures.top1_agreement) == (0, 0, 0, 1)
        assert (figures.perplexity_ratio, figures.perplexity_ratio_error) == (1, 0)
        assert figures.reference_bits_per_byte == figures.candidate_bits_per_byte


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_batches_change_nothing(pair: Pair, report: ComparisonReport, batch_size: int) -> None:
    other = compare(*pair, texts=TEXTS, window=WINDOW, batch_size=batch_size)
    for language, figures in other.languages.items():
        assert figures_of(figures) == pytest.approx(figures_of(report.languages[language]), rel=1e-4)
    assert figures_of(other) == pytest.approx(figures_of(report), rel=1e-4)


def test_the_order_of_texts_changes_nothing(pair: Pair, report: ComparisonReport) -> None:
    shuffled = [(language, random.Random(1).sample(texts, len(texts))) for language, texts in TEXTS.items()]
    other = compare(*pair, texts=dict(reversed(shuffled)), window=WINDOW, batch_size=2)
    assert list(other.languages) == list(reversed(TEXTS))
    for language, figures in other.languages.items():
        assert figures_of(figures) == pytest.approx(figures_of(report.languages[language]), rel=1e-4)


def scored_with(monkeypatch: pytest.MonkeyPatch, pair: Pair, **options: object) -> list[tuple[list[int], int]]:
    """Return the rows that the reference was run on, each with its length."""
    rows: list[tuple[list[int], int]] = []
    helium = compared_models.logits_of_helium

    def noted(model: HeliumForCausalLM) -> compared_models.LogitsOfRows:
        logits_of = helium(model)

        def logits(ids: mx.array, lengths: list[int]):  # noqa: ANN202
            rows.extend(zip(cast("list[list[int]]", ids.tolist()), lengths, strict=True))
            return logits_of(ids, lengths)

        return logits  # pyright: ignore[reportReturnType]

    monkeypatch.setattr(compared_models, "logits_of_helium", noted)
    compare(*pair, texts=TEXTS, **options)  # pyright: ignore[reportArgumentType]
    assert rows[: len(rows) // 2] == rows[len(rows) // 2 :]
    return rows[: len(rows) // 2]


def test_each_window_has_one_bos_at_its_start(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = scored_with(monkeypatch, pair, window=WINDOW)
    assert len(rows) > 6
    for ids, length in rows:
        assert ids[0] == 1
        assert ids[:length].count(1) == 1
        assert length <= WINDOW


def test_each_token_is_predicted_once_from_its_window_and_nothing_after_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = scored_with(monkeypatch, pair, window=WINDOW, batch_size=2)
    expected = [window for language in TEXTS for window in windows_of(language)]
    # A window's last token is predicted and not run.
    assert sorted(ids[:length] for ids, length in rows) == sorted(window[:-1] for window in expected)


def test_the_default_window_is_512_or_the_context_of_the_smaller_model(pair: Pair, tmp_path: Path) -> None:
    small = write_pair(tmp_path, max_position_embeddings=20)[0]
    assert compare(pair[0], small, texts={"en": TEXTS["en"]}).window == 20
    assert compare("demo", "demo", texts={"en": "A cat."}).window == 512


def test_a_text_of_several_windows_does_not_see_across_them(pair: Pair) -> None:
    model = load_model(pair[0], dtype="float32")
    first, second = windows_of("fr")[:2]
    tokenizer = HeliumTokenizer.from_pretrained(DEMO_DIRECTORY)
    apart = plain_comparison(model, model, [first, second])
    together = plain_comparison(model, model, [first + second[1:]])
    report = compare(pair[0], pair[0], texts={"fr": TEXTS["fr"]}, window=WINDOW)
    assert flat(apart.reference)[len(first) :] != pytest.approx(together.reference[0][len(first) :], abs=1e-2)
    whole = flat(plain_comparison(model, model, windows_of("fr")).reference)
    assert report.reference_perplexity == pytest.approx(math.exp(sum(whole) / len(whole)), rel=1e-4)
    assert report.tokens == len(tokenizer.encode(TEXTS["fr"][0])) - 1


def test_one_model_is_in_memory_at_a_time(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[weakref.ref[HeliumForCausalLM]] = []
    alive: list[int] = []

    def noted(*arguments: object, **options: object) -> HeliumForCausalLM:
        alive.append(sum(model() is not None for model in models))
        model = load_model(*arguments, **options)  # pyright: ignore[reportArgumentType]
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(compared_models, "load_model", noted)
    reports = list(compare_all(pair[0], [pair[1], pair[0], pair[1]], documents_of(TEXTS), window=WINDOW))
    assert alive == [0, 0, 0, 0]
    assert [report.candidate.name for report in reports] == [str(pair[1]), str(pair[0]), str(pair[1])]
    assert [report.mean_kl for report in reports] == [reports[0].mean_kl, 0, reports[0].mean_kl]


def with_norm_of(value: float, source: Path, destination: Path) -> Path:
    shutil.copytree(source, destination)
    weights = cast("dict[str, mx.array]", mx.load(str(destination / WEIGHTS_FILE)))
    weights["model.norm.weight"] = mx.full(weights["model.norm.weight"].shape, value)
    mx.eval(weights)
    mx.save_safetensors(str(destination / WEIGHTS_FILE), weights, {"format": "pt"})
    return destination


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_named(pair: Pair, tmp_path: Path, value: float) -> None:
    broken = with_norm_of(value, pair[0], tmp_path / "broken")
    for sides in ((broken, pair[0]), (pair[0], broken)):
        with pytest.raises(
            ComparisonError, match=r"broken: its weight model\.norm\.weight holds NaN or infinity; fetch or convert"
        ):
            compare(*sides, texts=TEXTS)


def test_logits_that_are_not_finite_though_the_weights_are_need_a_wider_dtype(pair: Pair, tmp_path: Path) -> None:
    large = with_norm_of(1e6, pair[0], tmp_path / "large")
    with pytest.raises(ComparisonError, match=r"large: its logits are not finite in float16; take dtype float32$"):
        compare(pair[0], large, texts=TEXTS, dtype="float16")
    larger = with_norm_of(3e38, pair[0], tmp_path / "larger")
    with pytest.raises(ComparisonError, match=r"larger: its logits are not finite in float32, though its weights are$"):
        compare(pair[0], larger, texts=TEXTS)


def test_what_a_model_does_not_use_is_not_blamed(pair: Pair, tmp_path: Path) -> None:
    larger = with_norm_of(3e38, pair[0], tmp_path / "larger")
    weights = cast("dict[str, mx.array]", mx.load(str(larger / WEIGHTS_FILE)))
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = mx.full((4,), math.nan)
    mx.eval(weights)
    mx.save_safetensors(str(larger / WEIGHTS_FILE), weights, {"format": "pt"})
    with pytest.raises(ComparisonError, match="not finite in float32, though its weights are"):
        compare(pair[0], larger, texts=TEXTS)


def test_both_compute_in_the_wider_of_their_dtypes_unless_told_otherwise(pair: Pair, tmp_path: Path) -> None:
    helium_mlx.convert(str(pair[0]), str(tmp_path / "half"), dtype="bfloat16", verify=False)
    texts = {"en": "A cat."}
    for sides, dtype, computed in (
        ((pair[0], tmp_path / "half"), None, "float32"),
        ((tmp_path / "half", pair[0]), None, "float32"),
        ((tmp_path / "half", tmp_path / "half"), None, "bfloat16"),
        ((pair[0], tmp_path / "half"), "bfloat16", "bfloat16"),
    ):
        report = compare(*sides, texts=texts, dtype=dtype)
        assert report.reference.dtype == report.candidate.dtype == computed
    assert compare(pair[0], tmp_path / "half", texts=texts, dtype="bfloat16").mean_kl == 0


def test_size_and_bits_are_those_on_disk(pair: Pair, tmp_path: Path) -> None:
    converted = helium_mlx.convert(str(pair[0]), str(tmp_path / "q"), quantize=True, q_group_size=32, verify=False)
    report = compare(pair[0], tmp_path / "q", texts={"en": "A cat."})
    assert report.candidate.weight_bytes == converted.total_bytes
    assert report.candidate.bits_per_weight == pytest.approx(converted.bits_per_weight, abs=1e-3)
    assert report.reference.bits_per_weight == 32
    assert (report.reference.name, report.reference.program) == (str(pair[0]), "helium_mlx")


@pytest.fixture(scope="module")
def other_tokenizer(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The candidate, whose tokenizer has no piece for a full stop and spells it in bytes."""
    directory = Path(shutil.copytree(pair[1], tmp_path_factory.mktemp("other") / "candidate"))
    path = directory / "tokenizer.json"
    text = path.read_text(encoding="utf-8")
    assert text.count('["."') == 1
    path.write_text(text.replace('["."', '["‽"'), encoding="utf-8")
    return directory


def test_other_tokenizers_are_compared_by_bytes(pair: Pair, other_tokenizer: Path, report: ComparisonReport) -> None:
    other = compare(pair[0], other_tokenizer, texts=TEXTS, window=WINDOW)
    assert (other.mean_kl, other.mean_kl_error, other.p99_kl, other.top1_agreement) == (None, None, None, None)
    assert other.perplexity_unit == "byte"
    assert other.notes == (
        "the two tokenizers give different ids, so KL and top-1 cannot be compared; perplexities are those of a byte",
    )
    assert other.reference_bits_per_byte == pytest.approx(report.reference_bits_per_byte)
    assert other.reference_perplexity == pytest.approx(2**other.reference_bits_per_byte)
    assert other.candidate_perplexity == pytest.approx(2**other.candidate_bits_per_byte)
    assert other.perplexity_ratio == pytest.approx(other.candidate_perplexity / other.reference_perplexity)
    # Over the documents of English: as in `expected_figures`, with bytes for tokens.
    english, losses = other.languages["en"], []
    for text in TEXTS["en"]:
        one = compare(pair[0], other_tokenizer, texts={"en": text}, window=WINDOW)
        assert one.perplexity_ratio_error is None
        assert one.notes[1:] == ("there is a single window to compare, and so no standard error",)
        losses.append((math.log(one.perplexity_ratio) * one.bytes, one.bytes))
    mean = sum(loss for loss, _ in losses) / sum(data for _, data in losses)
    squares = 2 * sum((loss - data * mean) ** 2 for loss, data in losses)
    assert english.perplexity_ratio_error == pytest.approx(
        math.exp(mean) * math.sqrt(squares) / sum(data for _, data in losses), rel=1e-3
    )


def test_vocabularies_of_another_size_are_compared_by_bytes(pair: Pair, tmp_path: Path) -> None:
    larger = write_pair(tmp_path, vocab_size=2100)[0]
    report = compare(pair[0], larger, texts={"en": TEXTS["en"]})
    assert report.mean_kl is None
    assert report.notes[0].startswith("the two vocabularies differ in size")


def test_the_logits_of_the_reference_are_written_only_if_they_are_needed(
    pair: Pair, other_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    monkeypatch.setattr(comparison_runs.LogitsFile, "append", lambda self, logits: written.append(logits.shape[0]))
    compare(pair[0], other_tokenizer, texts={"en": TEXTS["en"]})
    assert written == []


def test_progress_counts_the_tokens_of_both_models(pair: Pair) -> None:
    seen: list[tuple[int, int]] = []
    report = compare(*pair, texts=TEXTS, on_progress=lambda *done: seen.append(done))
    assert seen[-1] == (2 * report.tokens, 2 * report.tokens)
    assert seen == sorted(seen)


def test_groups_of_layers_are_measured_with_the_rest_from_the_reference(pair: Pair, report: ComparisonReport) -> None:
    whole = compare(*pair, texts=TEXTS, window=WINDOW, by_layers=True)
    assert list(whole.layers) == ["embedding", "layer 0", "layer 1", "head"]
    assert all(kl > 0 for kl in whole.layers.values())
    assert figures_of(whole) == pytest.approx(figures_of(report), rel=1e-4)
    same = compare(pair[0], pair[0], texts=TEXTS, window=WINDOW, by_layers=True)
    assert set(same.layers.values()) == {0}


def test_groups_of_layers_need_two_models_of_one_shape(pair: Pair, other_tokenizer: Path, tmp_path: Path) -> None:
    deeper = write_pair(tmp_path, num_hidden_layers=3)[0]
    for candidate, said in ((deeper, "is not of the shape of"), (other_tokenizer, "these two give different ids")):
        with pytest.raises(ComparisonError, match=said):
            next(compare_all(pair[0], [candidate], documents_of(TEXTS), by_layers=True))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": 0}, "window is 0; it must be a whole number, at least 1"),
        ({"window": True}, "window is True"),
        ({"window": 257}, "window is 257; expected at most 256, the context of "),
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number, at least 1"),
        ({"dtype": "float64"}, "dtype is 'float64'; known are bfloat16, float16, float32"),
        ({"texts": {}}, "there is no text to compare on"),
        ({"texts": {"en": []}}, "there is no text to compare on"),
        ({"texts": {"en": " \n"}}, "a text of 'en' is empty; leave it out"),
        ({"texts": {"en": b"abc"}}, "a text of 'en' is a bytes, not a string"),
        ({"texts": "abc"}, "texts is 'abc'; give a mapping of languages, or other names, to texts"),
        ({"texts": {"en": "a <s> b"}}, "en: the text spells out the token that begins"),
        ({"languages": ["en"]}, "languages are those of the package's own text; leave them out"),
        ({"texts": None, "languages": ["en", "pl"]}, "language 'pl': there is text in en, fr, de, it, pt, es"),
        ({"texts": None, "languages": []}, "language none: there is text in"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(pair: Pair, options: dict[str, object], said: str) -> None:
    with pytest.raises((ComparisonError, UsageError)) as caught:
        compare(*pair, **{"texts": TEXTS, **options})  # pyright: ignore[reportArgumentType]
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_none_of_ours_is_pointed_to_mlx_lm(pair: Pair, tmp_path: Path) -> None:
    foreign = Path(shutil.copytree(pair[0], tmp_path / "foreign"))
    config = (foreign / "config.json").read_text()
    (foreign / "config.json").write_text(config.replace('"model_type": "helium"', '"model_type": "gpt_neox"'))
    with pytest.raises(helium_mlx.ConfigError, match=r"what mlx-lm can open is compared as mlx-lm:.*foreign$"):
        compare(pair[0], foreign, texts=TEXTS)


def test_a_report_is_plain_data(report: ComparisonReport) -> None:
    values = asdict(report)
    assert set(values) >= {"mean_kl", "p99_kl", "top1_agreement", "perplexity_ratio", "languages", "tokens"}
    assert values["languages"]["de"]["tokens"] == report.languages["de"].tokens
    assert isinstance(HeliumSide("demo", DEMO_DIRECTORY).vocab_size, int)
