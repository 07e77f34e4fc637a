"""Caches on disk and their reuse: cached = cold at every split, nothing mutated, no file believed."""

import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from fuzzing import mutated_json, mutated_safetensors
from measures import relative_error
from tiny_checkpoints import LLAMA, CaseLoader, config_values

from helium_mlx import load_cache, save_cache
from helium_mlx.checkpoint.config import HeliumConfig
from helium_mlx.errors import CheckpointError, GenerationError, HeliumError
from helium_mlx.files.hub import DEMO_DIRECTORY
from helium_mlx.files.safetensors_header import read_header_and_metadata
from helium_mlx.generation.prompt_cache import PromptCache, common_prefix, fingerprint_of, reuse
from helium_mlx.generation.streaming import stream_generate
from helium_mlx.kv_cache.cache import KVCache
from helium_mlx.kv_cache.disk import RECORD
from helium_mlx.kv_cache.make import copy_cache, make_cache
from helium_mlx.kv_cache.rotating import SPARE, RotatingKVCache
from helium_mlx.model.helium import HeliumForCausalLM
from helium_mlx.tokenizer.tokenizer import HeliumTokenizer, _read_model_ids

Demo = tuple[HeliumForCausalLM, HeliumTokenizer]

KINDS: dict[str, dict[str, int]] = {
    "growing": {},
    "rotating": {"max_kv_size": 9},
    "quantized": {"kv_bits": 8, "kv_group_size": 32},
    "both": {"max_kv_size": 9, "kv_bits": 4, "kv_group_size": 32},
}


@pytest.fixture(scope="module")
def model() -> HeliumForCausalLM:
    mx.random.seed(3)
    values = config_values(**LLAMA, head_dim=32, num_key_value_heads=2, num_hidden_layers=2, initializer_range=0.1)
    return HeliumForCausalLM(HeliumConfig.from_dict(values))


def ids(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(96) for _ in range(length)]


def run(model: HeliumForCausalLM, tokens: list[int], cache: list[KVCache]) -> mx.array:
    logits = model.next_logits(mx.array([tokens]), cache)
    mx.eval(logits)
    return logits


def contents(cache: list[KVCache]) -> list[object]:
    return [(layer.offset, [part.astype(mx.float32).tolist() for part in layer.parts]) for layer in cache]


# --- on disk


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 8, 41, 60])
def test_what_is_loaded_goes_on_as_what_was_saved(
    model: HeliumForCausalLM, tmp_path: Path, kind: str, length: int
) -> None:
    cache, path = make_cache(model, **KINDS[kind]), tmp_path / "a.safetensors"
    run(model, ids(length), cache)
    save_cache(path, cache)
    loaded = load_cache(path)
    assert [type(layer) for layer in loaded] == [type(layer) for layer in cache]
    assert contents(loaded) == contents(cache)
    for token in ids(SPARE + 20, seed=1):
        assert mx.array_equal(run(model, [token], loaded), run(model, [token], cache)).item()
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_step_taken_back_stays_so_on_disk(model: HeliumForCausalLM, tmp_path: Path) -> None:
    cache = make_cache(model, max_kv_size=9)
    run(model, ids(50), cache)
    for layer in cache:
        layer.trim(5)
    save_cache(tmp_path / "a", cache)
    loaded = load_cache(tmp_path / "a")
    assert loaded[0].trimmable == cache[0].trimmable == SPARE + 1 - 5
    assert mx.array_equal(run(model, [7], loaded), run(model, [7], cache)).item()


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_cache_is_kept_as_one(model: HeliumForCausalLM, tmp_path: Path, kind: str) -> None:
    emptied = make_cache(model, **KINDS[kind])
    run(model, ids(5), emptied)
    for layer in emptied:
        layer.trim(5)
    for cache in (make_cache(model, **KINDS[kind]), emptied):
        save_cache(tmp_path / "a", cache)
        loaded = load_cache(tmp_path / "a")
        assert [layer.offset for layer in loaded] == [0, 0]
        expected = run(model, ids(5), make_cache(model, **KINDS[kind]))
        assert mx.array_equal(run(model, ids(5), loaded), expected).item()


def test_bfloat16_is_kept(tmp_path: Path) -> None:
    cache = KVCache()
    x = mx.random.normal((1, 2, 300, 32)).astype(mx.bfloat16)
    cache.update_and_fetch(x, -x)
    save_cache(tmp_path / "a", [cache])
    (loaded,) = load_cache(tmp_path / "a")
    assert loaded.dtype == mx.bfloat16
    assert mx.array_equal(loaded.parts[0], x).item()
    assert (tmp_path / "a").stat().st_size < 2 * x.nbytes + 4096


def test_saving_changes_no_cache(model: HeliumForCausalLM, tmp_path: Path) -> None:
    cache = make_cache(model)
    run(model, ids(10), cache)
    before, nbytes = contents(cache), cache[0].nbytes
    save_cache(tmp_path / "a", cache)
    assert contents(cache) == before
    assert cache[0].nbytes == nbytes


def test_layers_that_differ_are_refused(model: HeliumForCausalLM, tmp_path: Path) -> None:
    for cache in ([], [KVCache(), RotatingKVCache(9)]):
        with pytest.raises(GenerationError, match="layers of different kinds"):
            save_cache(tmp_path / "a", cache)
    cache = make_cache(model)
    run(model, ids(4), cache)
    with pytest.raises(GenerationError, match="the cache holds 4 tokens, and 3 came with it"):
        save_cache(tmp_path / "a", cache, tokens=ids(3))
    assert not list(tmp_path.iterdir())


def test_a_save_that_fails_leaves_the_old_file(
    model: HeliumForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = tmp_path / "a", make_cache(model)
    run(model, ids(4), cache)
    save_cache(path, cache)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\)"):
        save_cache(path, cache)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a"]


def test_a_place_that_cannot_be_written_to_is_an_error_of_one_line(
    model: HeliumForCausalLM, demo: Demo, tmp_path: Path
) -> None:
    for path, problem in ((tmp_path / "no" / "a", "No such file"), (tmp_path, "is a directory")):
        with pytest.raises(CheckpointError, match=problem) as caught:
            save_cache(path, make_cache(model))
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"cannot be written, since .* is not a directory; name another place"):
        PromptCache.open(tmp_path / "no" / "a", *demo)


def test_a_link_is_written_through(model: HeliumForCausalLM, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real" / "file")
    save_cache(link, make_cache(model))
    assert link.is_symlink()
    assert len(load_cache(link)) == 2


# --- reuse


def test_common_prefix() -> None:
    assert common_prefix([], [1]) == 0
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([1, 2], [1, 2, 3]) == 2
    assert common_prefix([5], [1]) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [12, 60])
def test_cached_is_cold_at_every_split_point(model: HeliumForCausalLM, kind: str, length: int) -> None:
    prompt, options = ids(length), KINDS[kind]
    cold = run(model, prompt, make_cache(model, **options))
    cached = make_cache(model, **options)
    run(model, prompt, cached)
    for split in range(0, length + 1, 1 if length < 20 else 7):
        other = [*prompt[:split], *[(token + 1) % 96 for token in prompt[split:]]]
        expected = run(model, other, make_cache(model, **options))
        cache, held = reuse(cached, prompt, other)
        assert held in (min(split, length - 1), 0)
        if "max_kv_size" not in options or length <= options["max_kv_size"] + SPARE:
            assert held == min(split, length - 1)
        else:
            assert (held > 0) == (length - split <= SPARE + 1)
        assert cache[0].offset == held
        # Codes of few bits may flip where rounding differs in the last place.
        tolerance = 1e-5 if "kv_bits" not in options else 0.02
        assert relative_error(run(model, other[held:], cache), expected) < tolerance, split
    assert relative_error(run(model, prompt[-1:], reuse(cached, prompt, prompt)[0]), cold) < 0.02


def test_reuse_leaves_the_cache_as_it_was(model: HeliumForCausalLM) -> None:
    for options in KINDS.values():
        cached, prompt = make_cache(model, **options), ids(50)
        run(model, prompt, cached)
        before = contents(cached)
        for other in (prompt, [*prompt[:30], 1, 2, 3], [*prompt, 4, 5], ids(20, seed=9)):
            cache, held = reuse(cached, prompt, other)
            run(model, other[held:], cache)
            for token in range(5):
                run(model, [token], cache)
        assert contents(cached) == before


def test_copies_go_their_own_ways(model: HeliumForCausalLM) -> None:
    for options in KINDS.values():
        cache = make_cache(model, **options)
        run(model, ids(48), cache)
        copies = [copy_cache(cache) for _ in range(2)]
        for i, token in enumerate((3, 5)):
            run(model, [token], copies[i])
        assert [layer.offset for layer in cache] == [48, 48]
        for i, token in enumerate((3, 5)):
            fresh = make_cache(model, **options)
            run(model, ids(48), fresh)
            run(model, [token], fresh)
            assert contents(copies[i]) == contents(fresh)


def test_a_copy_takes_no_memory(model: HeliumForCausalLM) -> None:
    cache = KVCache()
    x = mx.zeros((1, 2, 100_000, 32))
    cache.update_and_fetch(x, x)
    mx.eval(cache.state)
    before = mx.get_active_memory()
    copies = copy_cache([cache])
    mx.eval(copies[0].state)
    assert mx.get_active_memory() - before < x.nbytes / 10


def test_one_token_is_left_to_run_and_an_empty_prompt_takes_nothing(model: HeliumForCausalLM) -> None:
    cached = make_cache(model)
    run(model, ids(5), cached)
    assert reuse(cached, ids(5), ids(5))[1] == 4
    assert reuse(cached, ids(5), ids(5)[:1])[1] == 0
    assert reuse(cached, ids(5), [])[1] == 0
    assert reuse(make_cache(model), [], ids(5))[1] == 0
    with pytest.raises(GenerationError, match="the cache holds 5 tokens, and 4 came with it"):
        reuse(cached, ids(4), ids(5))


# --- the command's steps


def completion(
    demo: Demo, prompt: list[int], path: Path | None, count: int = 12, **options: int
) -> tuple[list[int], int]:
    """Run a prompt as the command does; return the ids and how many tokens of the prompt were run."""
    model, tokenizer = demo
    tokens, cache, held = list(prompt), make_cache(model, **options), 0
    prompts = None
    if path is not None:
        prompts = PromptCache.open(path, model, tokenizer, **options)
        cache, held = prompts.prepare(prompt)
    chunks = list(stream_generate(model, tokenizer, prompt[held:], max_tokens=count, cache=cache, ignore_eos=True))
    tokens += [chunk.token for chunk in chunks]
    if prompts is not None:
        prompts.store(cache, tokens)
    return tokens, chunks[0].prompt_tokens


@pytest.mark.parametrize("options", [{}, {"max_kv_size": 16}], ids=["growing", "rotating"])
def test_runs_with_a_cache_give_the_ids_of_runs_without(demo: Demo, tmp_path: Path, options: dict[str, int]) -> None:
    prompt, path = demo[1].encode("Once upon a time there was a little dog who"), tmp_path / "cache"
    cold, n_run = completion(demo, prompt, None, **options)
    assert n_run == len(prompt)
    assert completion(demo, prompt, path, **options) == (cold, len(prompt))
    assert completion(demo, prompt, path, **options) == (cold, 1)
    # Going on with the text: what was run is what is new, and the last token, which was not fed back.
    longer, n_run = completion(demo, [*cold, 17, 21], path, **options)
    assert n_run == 3
    assert longer == completion(demo, [*cold, 17, 21], None, **options)[0]
    for split in (1, 2, len(prompt) - 1):
        other = [*prompt[:split], 30, 31]
        assert completion(demo, other, path, **options)[0] == completion(demo, other, None, **options)[0]


def test_a_run_ended_early_stores_what_was_emitted(demo: Demo, tmp_path: Path) -> None:
    model, tokenizer = demo
    prompt = tokenizer.encode("Once upon a time")
    for options in ({}, {"max_kv_size": 6}):
        prompts = PromptCache.open(tmp_path / f"cache{len(options)}", model, tokenizer, **options)
        cache, _ = prompts.prepare(prompt)
        stream, tokens = stream_generate(model, tokenizer, prompt, cache=cache, max_tokens=200, ignore_eos=True), []
        for chunk in stream:
            tokens.append(chunk.token)
            if len(tokens) == 60:
                break
        stream.close()  # pyright: ignore[reportAttributeAccessIssue]
        prompts.store(cache, [*prompt, *tokens])
        assert prompts.tokens == (*prompt, *tokens[:-1])
        reopened = PromptCache.open(prompts.path, model, tokenizer, **options)
        assert reopened.tokens == prompts.tokens
        assert contents(reopened.cache) == contents(cache)


def test_what_is_stored_is_not_changed_by_what_follows(demo: Demo, tmp_path: Path) -> None:
    model, tokenizer = demo
    prompts = PromptCache.open(tmp_path / "a", model, tokenizer)
    cache, _ = prompts.prepare(ids(10))
    run(model, ids(10), cache)
    prompts.store(cache, ids(10))
    run(model, ids(3), cache)
    assert prompts.cache[0].offset == 10
    assert prompts.prepare([*ids(10), 5])[1] == 10


# --- files of others


def test_a_file_of_another_model_tokenizer_or_dtype_is_refused(
    demo: Demo, load_case: CaseLoader, tmp_path: Path
) -> None:
    model, tokenizer = demo
    path = tmp_path / "cache"
    completion(demo, ids(5), path)
    other = HeliumForCausalLM(model.config)
    other.load_weights(list(model.tensors().items()), strict=True)
    assert fingerprint_of(other, tokenizer) == fingerprint_of(model, tokenizer)
    other.model.layers[1].mlp.down_proj.weight = other.model.layers[1].mlp.down_proj.weight * 1.01  # pyright: ignore
    with pytest.raises(CheckpointError, match="was written with another model; use what it was written with"):
        PromptCache.open(path, other, tokenizer)
    other.set_dtype(mx.bfloat16)
    with pytest.raises(CheckpointError, match="was written with another model and dtype"):
        PromptCache.open(path, other, tokenizer)
    special = replace(_read_model_ids(DEMO_DIRECTORY), pad=7)
    renamed = HeliumTokenizer(tokenizer._vocabulary, special, ())
    with pytest.raises(CheckpointError, match="was written with another tokenizer"):
        PromptCache.open(path, model, renamed)


def test_a_file_of_other_options_is_refused(demo: Demo, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    completion(demo, ids(5), path, max_kv_size=9)
    with pytest.raises(
        CheckpointError, match="was written with max_kv_size 9, and this run has neither max_kv_size nor kv_bits"
    ):
        PromptCache.open(path, *demo)
    with pytest.raises(CheckpointError, match="this run has max_kv_size 10; give the same"):
        PromptCache.open(path, *demo, max_kv_size=10)


Edit = Callable[[dict[str, object]], object]


def rewrite(path: Path, edit: Edit) -> None:
    """Change the record of a file, and nothing else: `edit` changes it in place, or returns the text to put there."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    record = json.loads(header["__metadata__"][RECORD])
    text = edit(record)
    header["__metadata__"][RECORD] = text if isinstance(text, str) else json.dumps(record)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda r: r.update(version=2), "its version is 2, and this program reads 1"),
        (lambda r: r.pop("version"), "its version is None"),
        (lambda r: r.update(offset=4), "its offset 4 does not go with the 5 tokens"),
        (lambda r: r.update(offset=4, written=4), "its tokens are"),
        (lambda r: r.update(offset=4, written=4, tokens=[]), r"layers.0.keys is F32 of shape .*; expected F32 of"),
        (lambda r: r.update(offset=-1), "its offset is -1"),
        (lambda r: r.update(layers=2**40), "its layers is 1099511627776"),
        (lambda r: r.update(layers=1), "tensor 'layers.[1-9].* is not one of a cache"),
        (lambda r: r.update(layers=900), "tensor 'layers.[0-9]*.*' is missing"),
        (lambda r: r.update(shape=[1, 1, 1]), "expected F32 of"),
        (lambda r: r.update(shape=None), "its shape is None"),
        (lambda r: r.update(dtype="float64"), "its dtype is 'float64'"),
        (lambda r: r.update(dtype="bfloat16"), "expected BF16 of"),
        (lambda r: r.update(kind={"bits": 8}), "its kind of cache is"),
        (lambda r: r.update(kind={"bits": 8, "group_size": 16}), "kv_group_size is 16"),
        (lambda r: r.update(kind={"bits": 1, "group_size": 32}), "kv_bits is 1"),
        (lambda r: r.update(kind={"max_size": 1, "keep": 1}), "max_kv_size is 1"),
        (lambda r: r.update(kind=[]), "its kind of cache is"),
        (lambda r: r.update(tokens=[1, 2, 3, 4, -5]), "its tokens are not all ids"),
        (lambda r: r.update(tokens=[1, 2, 3, 4, True]), "its tokens are not all ids"),
        (lambda r: r.update(tokens=[1, 2, 3, 4, 10**6]), "has ids from vocab_size"),
        (lambda r: r.update(tokens=[]), "does not name the 5 tokens that it holds"),
        (lambda r: r.update(fingerprint={"model": 1}), "its fingerprint is"),
        (lambda r: r.update(fingerprint={}), "was written with another model and tokenizer and dtype"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(demo: Demo, tmp_path: Path, edit: Edit, problem: str) -> None:
    model, path = demo[0], tmp_path / "cache"
    cache = make_cache(model)
    run(model, ids(5), cache)
    save_cache(path, cache, tokens=ids(5), fingerprint=fingerprint_of(*demo))
    rewrite(path, lambda record: None)
    assert PromptCache.open(path, *demo).tokens == tuple(ids(5))
    rewrite(path, edit)
    with pytest.raises(CheckpointError, match=problem) as caught:
        PromptCache.open(path, *demo)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "name another file" in str(caught.value)


def test_a_place_that_a_rotating_cache_cannot_be_in_is_refused(model: HeliumForCausalLM, tmp_path: Path) -> None:
    path, cache = tmp_path / "cache", make_cache(model, max_kv_size=9)
    run(model, ids(80), cache)
    save_cache(path, cache)
    rewrite(path, lambda record: record.update(offset=80 - SPARE - 1))
    assert load_cache(path)[0].trimmable == 0
    rewrite(path, lambda record: record.update(offset=80 - SPARE - 2))
    with pytest.raises(CheckpointError, match="its offset 46 does not go with the 80 tokens"):
        load_cache(path)


def test_files_that_are_no_caches_are_refused(demo: Demo, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    mx.save_safetensors(str(tmp_path / "weights.safetensors"), {"a": mx.zeros(3)})
    whole = tmp_path / "whole"
    completion(demo, ids(5), whole)
    data = whole.read_bytes()
    contents_of = {
        "empty": b"",
        "text": b"hello, this is no cache at all",
        "cut": data[:-1],
        "cut header": data[:50],
        "longer": data + b"\0",
        "weights": (tmp_path / "weights.safetensors").read_bytes(),
    }
    for name, data in contents_of.items():
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="; name another file") as caught:
            PromptCache.open(path, *demo)
        assert "\n" not in str(caught.value), name
        assert "download" not in str(caught.value), name
    for other in (tmp_path, Path("/dev/null")):
        with pytest.raises(CheckpointError):
            PromptCache.open(other, *demo)


@pytest.mark.parametrize("kind", ["growing", "both"])
def test_mutated_files_are_read_or_refused(model: HeliumForCausalLM, tmp_path: Path, kind: str) -> None:
    cache, source, path = make_cache(model, **KINDS[kind]), tmp_path / "source", tmp_path / "mutated"
    run(model, ids(45), cache)
    save_cache(source, cache, tokens=ids(45), fingerprint={"model": "a", "tokenizer": "b", "dtype": "float32"})
    data, opened = source.read_bytes(), 0
    record = json.loads(read_header_and_metadata(source)[1][RECORD])
    for number in range(250):
        rng = random.Random(number)
        if number % 2:
            path.write_bytes(mutated_safetensors(rng, data))
        else:
            path.write_bytes(data)
            text = mutated_json(rng, json.loads(json.dumps(record))).decode()
            rewrite(path, lambda _, text=text: text)
        try:
            loaded = load_cache(path)
        except HeliumError as error:
            assert str(error).isprintable(), number
            assert len(str(error)) < 1000, number
            continue
        opened += 1
        # What was let in can be used.
        for layer in loaded:
            assert layer.slots <= 45
            mx.eval(layer.state)
    assert 5 < opened < 150
