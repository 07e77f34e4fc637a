"""A generation is saved and resumed, by another engine, with the same tokens; nothing else is taken for one."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import mlx.core as mx
import pytest
from passes import rows_and_columns

import helium_mlx
from helium_mlx import CheckpointError, GenerationError, HeliumEngine
from helium_mlx.engine.state import DIGEST, RECORD
from helium_mlx.engine.stream import EngineStream
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

Demo = tuple[HeliumForCausalLM, HeliumTokenizer]

OPTIONS: dict[str, dict[str, object]] = {
    "greedy": {"max_tokens": 14, "ignore_eos": True},
    "sampled": {
        "max_tokens": 14,
        "temperature": 1.1,
        "seed": 2**64 - 1,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.01,
        "repetition_penalty": 1.3,
        "repetition_context_size": 9,
        "logit_bias": {9: 1.5},
        "banned_ids": [444, 12],
    },
    # Three tokens that take turns by how often each has come.
    "counted": {
        "max_tokens": 14,
        "presence_penalty": 1.0,
        "frequency_penalty": 2.0,
        "logit_bias": {401: 40.0, 402: 40.0, 403: 40.0},
    },
    "stopped": {"max_tokens": 60, "stop": ["qu", "."], "logprobs": 1},
    "healed": {"max_tokens": 14, "heal": True, "temperature": 1.0, "seed": 3, "logprobs": 2},
    "ended by another token": {"max_tokens": 60, "ignore_eos": True, "extra_eos": [".", ","]},
}


@pytest.fixture(scope="module")
def engine() -> Iterator[HeliumEngine]:
    with HeliumEngine("demo", dtype="float32") as engine:
        yield engine


def ask(engine: HeliumEngine, prompt: object, **options: object) -> EngineStream:
    return cast(Callable[..., EngineStream], engine.stream)(prompt, **options)


@pytest.mark.parametrize("with_cache", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
def test_another_engine_goes_on_with_the_same_tokens(
    engine: HeliumEngine, demo: Demo, tmp_path: Path, name: str, with_cache: bool
) -> None:
    stream_generate = cast(Callable[..., Iterator[helium_mlx.GenerationChunk]], helium_mlx.stream_generate)
    alone = list(stream_generate(*demo, "Il était une fois", **OPTIONS[name]))
    for count in (0, 1, 5):
        stream = ask(engine, "Il était une fois", **OPTIONS[name])
        read = [next(stream) for _ in range(count)]
        stream.save(tmp_path / f"{count}", with_cache=with_cache)
        stream.close()
    with HeliumEngine("demo", dtype="float32") as other:
        for count in (0, 1, 5):
            chunks = list(other.continue_stream(tmp_path / f"{count}"))
            rest = alone[count:]
            assert [chunk.token for chunk in chunks] == [chunk.token for chunk in rest]
            assert [chunk.text for chunk in chunks] == [chunk.text for chunk in rest]
            assert chunks[-1].finish_reason == rest[-1].finish_reason
            assert [chunk.generated_tokens for chunk in chunks] == [chunk.generated_tokens for chunk in rest]
            assert chunks[0].prompt_tokens == alone[0].prompt_tokens
    assert len(read) == 5


def test_a_cache_in_the_file_is_not_computed_again(
    engine: HeliumEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = engine.stream([1] * 50, max_tokens=9, ignore_eos=True)
    read = [next(stream).token for _ in range(3)]
    stream.save(tmp_path / "with")
    stream.save(tmp_path / "without", with_cache=False)
    assert (tmp_path / "without").stat().st_size < 4096 < (tmp_path / "with").stat().st_size
    columns: list[int] = []
    embed = type(engine._worker.model.model).embed

    def counting(self: object, ids: mx.array) -> mx.array:
        columns.append(rows_and_columns(ids)[1])
        return cast(Callable[..., mx.array], embed)(self, ids)

    whole = stream.result().tokens
    monkeypatch.setattr(type(engine._worker.model.model), "embed", counting)
    assert [*read, *engine.continue_stream(tmp_path / "with").result().tokens] == whole
    assert columns == [1] * 6
    columns.clear()
    # As another process does, which has no prefixes.
    engine.pause()
    engine.resume()
    assert [*read, *engine.continue_stream(tmp_path / "without").result().tokens] == whole
    assert columns == [53, *[1] * 5]


def test_a_continued_stream_can_be_saved_again(engine: HeliumEngine, demo: Demo, tmp_path: Path) -> None:
    text, path = "", tmp_path / "state"
    stream = engine.stream("Es war", max_tokens=9, temperature=1.0)
    for _ in range(8):
        text += next(stream).text
        stream.save(path)
        stream.close()
        stream = engine.continue_stream(path)
    end = stream.result()
    assert end.generated_tokens == 9
    assert len(end.tokens) == 1
    seed = cast(int, stream._request.options.seed)
    assert text + end.text == helium_mlx.generate(*demo, "Es war", max_tokens=9, temperature=1.0, seed=seed)


def test_a_paused_engine_saves_and_takes_up(engine: HeliumEngine, demo: Demo, tmp_path: Path) -> None:
    for keep in (False, True):
        stream = engine.stream("Es war", max_tokens=12)
        text = next(stream).text + next(stream).text
        engine.pause(keep_caches=keep)
        stream.save(tmp_path / "state")
        stream.close()
        continued = engine.continue_stream(tmp_path / "state")
        engine.resume()
        assert text + continued.result().text == helium_mlx.generate(*demo, "Es war", max_tokens=12)


def test_what_has_ended_or_is_unbatched_is_not_saved(engine: HeliumEngine, tmp_path: Path) -> None:
    stream = engine.stream("A", max_tokens=2)
    stream.result()
    with pytest.raises(GenerationError, match=r"has ended \(length\)"):
        stream.save(tmp_path / "state")
    with pytest.raises(GenerationError, match="kv_bits or prompt_lookup cannot be saved"):
        engine.stream("A", prompt_lookup=3).save(tmp_path / "state")
    with pytest.raises(GenerationError, match="logits_processors cannot be saved"):
        engine.stream("A", logits_processors=[lambda ids, scores: scores]).save(tmp_path / "state")
    with pytest.raises(CheckpointError, match="cannot be written"):
        engine.stream("A").save(tmp_path / "nowhere" / "state")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [None, 5, b"x", "x\0y", ""], ids=repr)
def test_what_names_no_file_is_refused_in_one_line(engine: HeliumEngine, path: object) -> None:
    with engine.stream("A", max_tokens=9) as stream:
        for use in (engine.continue_stream, stream.save):
            with pytest.raises(CheckpointError, match="; name a file") as refused:
                cast(Callable[[object], object], use)(path)
            assert "\n" not in str(refused.value) and "\0" not in str(refused.value)
    with pytest.raises(GenerationError, match="with_cache is 'no'; it must be True or False"):
        cast(Callable[..., object], engine.stream("A").save)("x", with_cache="no")


@pytest.fixture(scope="module")
def saved(engine: HeliumEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("state") / "state"
    stream = engine.stream("A", max_tokens=9, ignore_eos=True)
    next(stream)
    next(stream)
    stream.save(path)
    return path


def rewritten(
    saved: Path, path: Path, change: Callable[[dict[str, object]], object], *, is_signed: bool = False
) -> Path:
    """Write the file, one without a cache if its hash is to fit, anew with its record changed, the rest as it was."""
    length = int.from_bytes(saved.read_bytes()[:8], "little")
    header, data = json.loads(saved.read_bytes()[8 : 8 + length]), saved.read_bytes()[8 + length :]
    record = json.loads(header["__metadata__"][RECORD])
    change(record)
    header["__metadata__"][RECORD] = json.dumps(record, separators=(",", ":"))
    if is_signed:
        header["__metadata__"][DIGEST] = hashlib.sha256(header["__metadata__"][RECORD].encode()).hexdigest()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_a_file_written_anew_as_it_was_is_taken(engine: HeliumEngine, saved: Path, tmp_path: Path) -> None:
    path = rewritten(saved, tmp_path / "same", lambda record: None)
    assert engine.continue_stream(path).result().generated_tokens == 9


@pytest.mark.parametrize("name", ["extra_eos", "presence_penalty", "frequency_penalty", "heal"])
def test_a_file_from_before_there_was_an_option_is_taken(engine: HeliumEngine, tmp_path: Path, name: str) -> None:
    stream = engine.stream("A", max_tokens=9, ignore_eos=True)
    next(stream)
    stream.save(tmp_path / "state", with_cache=False)
    path = rewritten(
        tmp_path / "state",
        tmp_path / "older",
        lambda record: cast("dict[str, object]", record["options"]).pop(name),
        is_signed=True,
    )
    assert engine.continue_stream(path).result().tokens == stream.result().tokens[1:]


CHANGES: dict[str, tuple[Callable[[dict[str, object]], object], str]] = {
    "version": (lambda record: record.update(version=1), "its version is 1, and this program reads 2"),
    "no options": (lambda record: record.pop("options"), "its options are None"),
    "an option more": (lambda record: cast("dict[str, object]", record["options"]).update(new=1), "its options"),
    "a temperature": (lambda record: cast("dict[str, object]", record["options"]).update(temperature="1"), "its temp"),
    "a flag": (lambda record: cast("dict[str, object]", record["options"]).update(ignore_eos=1), "its ignore_eos is 1"),
    "a number": (lambda record: cast("dict[str, object]", record["options"]).update(top_k=True), "its top_k is True"),
    "a range": (lambda record: cast("dict[str, object]", record["options"]).update(top_p=7), "top_p is 7"),
    "a seed": (lambda record: cast("dict[str, object]", record["options"]).update(seed=2**64), "seed is"),
    "a bias": (lambda record: cast("dict[str, object]", record["options"]).update(logit_bias={"x": 1}), "logit_bias"),
    "a stop": (lambda record: cast("dict[str, object]", record["options"]).update(stop=[1]), "stop is"),
    "a token": (
        lambda record: cast("dict[str, object]", record["options"]).update(extra_eos=[1.5]),
        "extra_eos has 1.5",
    ),
    "no max_tokens": (lambda record: record.pop("max_tokens"), "its max_tokens is None, after 2"),
    "max_tokens reached": (lambda record: record.update(max_tokens=2), "its max_tokens is 2"),
    "another prompt": (lambda record: record.update(prompt=[1, 2]), "its cache is of other tokens"),
    "no prompt": (lambda record: record.update(prompt=[], generated=[]), "prompt has no tokens"),
    "ids": (lambda record: record.update(generated=[10**6]), "its generated is"),
    "a bool for an id": (lambda record: record.update(prompt=[True]), "its prompt is"),
    "another token": (lambda record: cast("list[int]", record["generated"]).__setitem__(-1, 9), "its SHA-256 differs"),
    "another seed": (lambda record: cast("dict[str, object]", record["options"]).update(seed=1), "its SHA-256 differs"),
    "a long text": (lambda record: record.update(prompt=[1] * 4097), "the prompt has 4097 tokens"),
    "a text that is full": (lambda record: record.update(prompt=[1] * 4096), "leave no room in the model's context"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_record_that_does_not_hold_is_refused_in_one_line(
    engine: HeliumEngine, saved: Path, tmp_path: Path, name: str
) -> None:
    change, said = CHANGES[name]
    path = rewritten(saved, tmp_path / "changed", change)
    with pytest.raises(CheckpointError) as refused:
        engine.continue_stream(path)
    assert said in str(refused.value) and "\n" not in str(refused.value) and str(path) in str(refused.value)


def test_files_that_hold_no_generation_are_refused(engine: HeliumEngine, saved: Path, tmp_path: Path) -> None:
    for path, said in (
        (tmp_path / "missing", "missing"),
        (DEMO_DIRECTORY / "model.safetensors", "holds no generation"),
        (DEMO_DIRECTORY / "config.json", "safetensors"),
    ):
        with pytest.raises(CheckpointError, match=f"{said}.*; name a"):
            engine.continue_stream(path)


def changed(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut": (lambda data: data[:-100], "cut short"),
    "no header": (lambda data: data[:4], "cut short"),
    "longer": (lambda data: data + b"x", "bytes after its last tensor"),
    "no JSON": (lambda data: data[:8] + b"[" + data[9:], "the safetensors header"),
    "no such dtype": (lambda data: data.replace(b'"F32"', b'"F33"', 1), "has dtype 'F33'"),
    "another name": (lambda data: data.replace(b"layers.0.keys", b"layers.0.kezs", 1), "holds no cache"),
    "the first bit of the cache": (
        lambda data: changed(data, 8 + int.from_bytes(data[:8], "little")),
        "its SHA-256 differs",
    ),
    "the last bits of the cache": (lambda data: changed(data, len(data) - 1), "its SHA-256 differs"),
    "a bit in the middle of the cache": (lambda data: changed(data, len(data) - 1000), "its SHA-256 differs"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_not_spoken_of_as_a_checkpoints(
    engine: HeliumEngine, saved: Path, tmp_path: Path, name: str
) -> None:
    damage, said = DAMAGES[name]
    path = tmp_path / "damaged"
    path.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(CheckpointError) as refused:
        engine.continue_stream(path)
    message = str(refused.value)
    assert said in message and message.endswith("; name another file")
    assert "again" not in message and "\n" not in message


def test_damage_of_a_state_without_a_cache_is_found(engine: HeliumEngine, tmp_path: Path) -> None:
    with engine.stream("A", max_tokens=9, seed=12345) as stream:
        next(stream)
        stream.save(tmp_path / "state", with_cache=False)
    data = (tmp_path / "state").read_bytes()
    (tmp_path / "state").write_bytes(data.replace(b"12345", b"12445"))
    with pytest.raises(CheckpointError, match="its SHA-256 differs"):
        engine.continue_stream(tmp_path / "state")


def test_another_model_or_dtype_does_not_go_on(saved: Path) -> None:
    with (
        HeliumEngine("demo", dtype="bfloat16") as engine,
        pytest.raises(CheckpointError, match="written with another model and dtype"),
    ):
        engine.continue_stream(saved)
