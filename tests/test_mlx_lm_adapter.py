"""mlx-lm's tools on the demo, through the adapter; mlx-lm comes with the extra `test`."""

import json
import threading
import types
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from inspect import signature
from pathlib import Path
from typing import cast

import mlx.core as mx
import mlx.optimizers as optim
import pytest

mlx_lm = pytest.importorskip("mlx_lm")

from mlx.utils import tree_flatten  # noqa: E402
from mlx_lm import server  # noqa: E402
from mlx_lm.models import cache as mlx_lm_cache  # noqa: E402
from mlx_lm.tokenizer_utils import TokenizerWrapper  # noqa: E402
from mlx_lm.tuner import datasets, trainer  # noqa: E402
from mlx_lm.tuner import utils as tuner_utils  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

import helium_mlx  # noqa: E402
from helium_mlx import HeliumForCausalLM, HeliumTokenizer  # noqa: E402
from helium_mlx.errors import HeliumError, TokenizerError  # noqa: E402
from helium_mlx.files.hub import DEMO_DIRECTORY  # noqa: E402
from helium_mlx.mlx_lm_adapter import MlxLmModel, adapt, model_provider  # noqa: E402
from helium_mlx.model.loading import load_model  # noqa: E402

Demo = tuple[HeliumForCausalLM, HeliumTokenizer]

PROMPTS = ["Once upon a time", "Il était une fois", "Es war einmal ein kleiner Hund, der", "C'era"]


def ours(demo: Demo, prompt: str, count: int) -> list[int]:
    chunks = helium_mlx.stream_generate(*demo, prompt, max_tokens=count)
    return [chunk.token for chunk in chunks if chunk.finish_reason != "eos"]


def test_batch_generate_gives_each_row_the_ids_that_it_gets_alone(demo: Demo) -> None:
    model, tokenizer = adapt(*demo)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    assert len({len(prompt) for prompt in prompts}) > 1
    # Two at a time: rows leave the batch, others join it.
    # mlx-lm 0.31, the last for Python 3.10, gives no ids.
    ids_too = {"return_token_ids": True} if "return_token_ids" in signature(mlx_lm.batch_generate).parameters else {}
    response = mlx_lm.batch_generate(
        model, tokenizer, prompts, max_tokens=[60, 20, 90, 5], completion_batch_size=2, **ids_too
    )
    expected = [ours(demo, prompt, count) for prompt, count in zip(PROMPTS, [60, 20, 90, 5], strict=True)]
    assert not ids_too or response.token_ids == expected
    assert response.texts == [demo[1].decode(ids) for ids in expected]


def test_stream_generate_gives_our_text_with_its_caches(demo: Demo) -> None:
    model, tokenizer = adapt(*demo)
    for prompt in PROMPTS:
        text = "".join(chunk.text for chunk in mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=40))
        assert text == demo[1].decode(ours(demo, prompt, 40))


LOGIT_CACHES = {
    "none": lambda layers: None,
    "KVCache": lambda layers: [mlx_lm_cache.KVCache() for _ in range(layers)],
    "RotatingKVCache": lambda layers: [mlx_lm_cache.RotatingKVCache(max_size=64, keep=4) for _ in range(layers)],
    "BatchKVCache": lambda layers: [mlx_lm_cache.BatchKVCache([0]) for _ in range(layers)],
    "BatchRotatingKVCache": lambda layers: [mlx_lm_cache.BatchRotatingKVCache(64, [0]) for _ in range(layers)],
}


@pytest.mark.parametrize("name", LOGIT_CACHES)
def test_logits_are_the_models_own(demo: Demo, name: str) -> None:
    model, tokenizer = adapt(*demo)
    ids = mx.array([tokenizer.encode(PROMPTS[2])])
    expected = demo[0](ids, use_cache=False).logits
    cache = LOGIT_CACHES[name](len(model.layers))
    assert mx.allclose(model(ids, cache=cache), expected, rtol=1e-4, atol=1e-4)
    if cache is not None:
        chunked = LOGIT_CACHES[name](len(model.layers))
        parts = [model(ids[:, a:b], cache=chunked) for a, b in ((0, 4), (4, 7), (7, 8), (8, 99))]
        assert mx.allclose(mx.concatenate(parts, axis=1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["BatchKVCache", "BatchRotatingKVCache"])
def test_padding_on_the_left_is_not_seen(demo: Demo, name: str) -> None:
    model, tokenizer = adapt(*demo)
    short, long = tokenizer.encode(PROMPTS[0]), tokenizer.encode(PROMPTS[2])
    padding = len(long) - len(short)
    caches = {
        "BatchKVCache": lambda: mlx_lm_cache.BatchKVCache([padding, 0]),
        "BatchRotatingKVCache": lambda: mlx_lm_cache.BatchRotatingKVCache(64, [padding, 0]),
    }
    cache = [caches[name]() for _ in model.layers]
    ids = mx.array([[3] * padding + short, long])
    parts = [model(ids[:, a:b], cache=cache) for a, b in ((0, 8), (8, len(long) - 1), (len(long) - 1, len(long)))]
    logits = mx.concatenate(parts, axis=1)
    for row, alone in enumerate((short, long)):
        expected = demo[0](mx.array([alone])).logits[0]
        assert mx.allclose(logits[row, -len(alone) :], expected, rtol=1e-4, atol=1e-4)


def test_a_rotating_cache_forgets_as_mlx_lm_has_it(demo: Demo) -> None:
    model, tokenizer = adapt(*demo)
    ids = tokenizer.encode(PROMPTS[2])
    cache = [mlx_lm_cache.RotatingKVCache(max_size=6) for _ in model.layers]
    rotated = [model(mx.array([[token]]), cache=cache)[0, -1] for token in ids]
    positions = mx.arange(len(ids))
    window = (positions[:, None] >= positions) & (positions[:, None] < positions + 6)
    expected = demo[0](mx.array([ids]), attention_mask=window[None, None], use_cache=False).logits[0]
    assert mx.allclose(mx.stack(rotated), expected, rtol=1e-3, atol=1e-3)
    assert not mx.allclose(rotated[-1], demo[0](mx.array([ids])).logits[0, -1], rtol=1e-2, atol=1e-2)


def test_a_quantized_cache_is_close(demo: Demo) -> None:
    model, tokenizer = adapt(*demo)
    ids = mx.array([tokenizer.encode(PROMPTS[2])])
    cache = [mlx_lm_cache.QuantizedKVCache(group_size=32, bits=8) for _ in model.layers]
    logits = mx.concatenate([model(ids[:, :5], cache=cache), model(ids[:, 5:], cache=cache)], axis=1)
    expected = demo[0](ids).logits
    error = mx.abs(logits - expected).max() / mx.abs(expected).max()
    assert 0 < cast(float, error.item()) < 0.03


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """Has `mx.compile` do nothing: on a CPU, the kernels of a step of training take a C++ compiler a quarter minute."""
    mx.disable_compile()
    yield
    mx.enable_compile()


def test_a_compiled_pass_is_the_plain_one(demo: Demo) -> None:
    model, tokenizer = adapt(*demo)
    ids = mx.array([tokenizer.encode(PROMPTS[0])])
    assert mx.allclose(mx.compile(model)(ids), model(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("uncompiled")
def test_lora_trains_the_merged_projections_and_its_adapters_load(demo: Demo, tmp_path: Path) -> None:
    mx.random.seed(0)
    ours, tokenizer = load_model(DEMO_DIRECTORY, dtype="float32"), demo[1]
    model, wrapper = adapt(ours, tokenizer)
    model.freeze()
    parameters = {"rank": 4, "scale": 2.0, "dropout": 0.0}
    keys = ["self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj"]
    tuner_utils.linear_to_lora_layers(model, 4, {**parameters, "keys": keys})
    names = [name for name, _ in tree_flatten(model.trainable_parameters())]
    assert len(names) == 4 * len(keys) * 2
    assert all(name.endswith(("lora_a", "lora_b")) for name in names)
    texts = [{"text": f"The {animal} reads the newspaper of {n}."} for animal in ("cat", "owl") for n in range(8)]
    data = datasets.CacheDataset(datasets.TextDataset(texts, wrapper))  # pyright: ignore[reportArgumentType]
    reported: list[float] = []
    callback = types.SimpleNamespace(
        on_train_loss_report=lambda info: reported.append(info["train_loss"]), on_val_loss_report=lambda info: None
    )
    arguments = trainer.TrainingArgs(
        batch_size=4,
        iters=12,
        steps_per_report=4,
        steps_per_save=100,
        adapter_file=str(tmp_path / "adapters.safetensors"),
    )
    trainer.train(model, optim.Adam(1e-3), data, args=arguments, training_callback=callback)  # pyright: ignore[reportArgumentType]
    assert reported[-1] < reported[0] / 2

    config = {"fine_tune_type": "lora", "num_layers": 4, "lora_parameters": {**parameters, "keys": keys}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    again = adapt(load_model(DEMO_DIRECTORY, dtype="float32"), tokenizer)[0]
    tuner_utils.load_adapters(again, str(tmp_path))
    ids = mx.array([tokenizer.encode("The cat reads")])
    model.eval()
    again.eval()
    assert mx.allclose(again(ids), model(ids), rtol=1e-4, atol=1e-4)
    assert not mx.allclose(again(ids), demo[0](ids).logits, rtol=1e-2, atol=1e-2)
    # The layers are shared: our own tools see what was trained.
    assert mx.allclose(ours(ids).logits, model(ids), rtol=1e-4, atol=1e-4)


@pytest.fixture
def address(demo: Demo) -> Iterator[str]:
    """Where mlx-lm's server answers with the demo."""
    provider = model_provider(*demo, max_tokens=12)
    generator = server.ResponseGenerator(provider, mlx_lm_cache.LRUPromptCache(2))  # pyright: ignore[reportArgumentType]
    httpd = ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *rest, **named: server.APIHandler(generator, *rest, system_fingerprint="test", **named)
    )
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    httpd.server_close()
    thread.join()
    generator.stop_and_join()


def ask(address: str, path: str, body: dict[str, object]) -> dict[str, object]:
    request = urllib.request.Request(
        address + path, json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def test_the_server_completes_as_we_do(demo: Demo, address: str) -> None:
    for prompt in PROMPTS[:2]:
        answer = ask(address, "/v1/completions", {"prompt": prompt, "seed": 1})
        batched = ask(address, "/v1/completions", {"prompt": prompt})
        for choice in (answer["choices"][0], batched["choices"][0]):  # pyright: ignore[reportIndexIssue]
            assert choice["text"] == demo[1].decode(ours(demo, prompt, 12))
    chat = ask(address, "/v1/chat/completions", {"messages": [{"role": "user", "content": "Bonjour"}]})
    assert chat["choices"][0]["message"]["content"]  # pyright: ignore[reportIndexIssue]


def test_the_server_has_the_one_model(address: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(address, "/v1/completions", {"prompt": "x", "model": "someone/else"})
    assert "this server has default_model only" in refused.value.read().decode()


def test_an_unknown_flag_of_the_server_is_refused(demo: Demo) -> None:
    with pytest.raises(HeliumError, match="max_token is not a flag"):
        model_provider(*demo, max_token=3)


def test_the_tokenizer_has_no_chat_template_and_every_eos(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo[1], "eos_token_ids", (2, 40))
    _, tokenizer = adapt(*demo)
    assert not tokenizer.has_chat_template
    assert tokenizer.eos_token_ids == {2, 40}
    assert tokenizer.get_vocab()["<s>"] == demo[1].bos_token_id
    assert tokenizer.vocab_size == demo[1].vocab_size


TEMPLATE = "{% for m in messages %}{{ bos_token }}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"


def test_the_tokenizer_encodes_into_an_array_as_mlx_lms_does(demo: Demo) -> None:
    _, tokenizer = adapt(*demo)
    reference = AutoTokenizer.from_pretrained(DEMO_DIRECTORY)
    for text in PROMPTS:
        for options in ({}, {"add_special_tokens": False}):
            ids = tokenizer.encode(text, return_tensors="mlx", **options)
            assert isinstance(ids, mx.array)
            assert ids.tolist() == reference.encode(text, return_tensors="mlx", **options).tolist()
            assert tokenizer.encode(text, **options) == reference.encode(text, **options)


def tuned(directory: Path, **settings: object) -> Path:
    """A copy of the demo without its weights, with settings of a tuned model's tokenizer."""
    for source in DEMO_DIRECTORY.iterdir():
        if source.suffix in (".json", ".model"):
            (directory / source.name).write_bytes(source.read_bytes())
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def adapted_from(demo: Demo, directory: Path) -> TokenizerWrapper:
    return adapt(demo[0], HeliumTokenizer.from_pretrained(directory))[1]


NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


@pytest.mark.parametrize(
    ("in_settings", "files"),
    [
        (TEMPLATE, {}),
        ("", {}),
        ([{"name": "default", "template": TEMPLATE}, {"name": "rag", "template": "R"}], {}),
        ([], {}),
        ("of the settings", {"chat_template.jinja": TEMPLATE + "\r\nend\n"}),
        (None, {"chat_template.jinja": TEMPLATE, "additional_chat_templates/tool_use.jinja": "T"}),
        (None, {"additional_chat_templates/rag.jinja": "R"}),
        (None, {"chat_template.json": json.dumps({"chat_template": "of a processor"})}),
    ],
)
def test_the_chat_template_is_the_checkpoints_own(
    demo: Demo, tmp_path: Path, in_settings: object, files: dict[str, str]
) -> None:
    tuned(tmp_path, **NAMED, chat_template=in_settings)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    tokenizer, reference = adapted_from(demo, tmp_path), TokenizerWrapper(AutoTokenizer.from_pretrained(tmp_path))
    assert tokenizer.chat_template == reference.chat_template
    assert tokenizer.has_chat_template == reference.has_chat_template
    if isinstance(tokenizer.chat_template, str) or "default" in (tokenizer.chat_template or {}):
        messages = [{"role": "user", "content": "Ciao"}]
        for options in ({}, {"tokenize": False}, {"tools": [], "add_generation_prompt": True}):
            assert tokenizer.apply_chat_template(messages, **options) == reference.apply_chat_template(
                messages, **options
            )


@pytest.mark.parametrize("template", [3, [3], [{"name": [], "template": "x"}], [{"name": "x"}], {"default": 3}])
def test_a_chat_template_that_is_none_is_refused(demo: Demo, tmp_path: Path, template: object) -> None:
    tokenizer = HeliumTokenizer.from_pretrained(tuned(tmp_path, chat_template=template))
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json has chat_template .*; expected a text, or texts"):
        adapt(demo[0], tokenizer)
    (tmp_path / "chat_template.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(TokenizerError, match=r"chat_template\.jinja is not UTF-8"):
        adapt(demo[0], tokenizer)


@pytest.mark.parametrize("settings", [{}, NAMED, {"unk_token": {"__type": "AddedToken", "content": "<unk>"}}])
def test_the_tokenizer_gives_what_transformers_does(demo: Demo, tmp_path: Path, settings: dict[str, object]) -> None:
    tokenizer = adapted_from(demo, tuned(tmp_path, **settings))
    reference = AutoTokenizer.from_pretrained(tmp_path, padding_side="left")
    for name in ("unk_token", "unk_token_id", "pad_token", "pad_token_id", "padding_side", "truncation_side"):
        assert getattr(tokenizer, name) == getattr(reference, name), name
    rows = [reference.encode(prompt) for prompt in PROMPTS]
    for skipped in (False, True):
        options = {"skip_special_tokens": skipped} if skipped else {}
        assert tokenizer.batch_decode(rows, **options) == demo[1].batch_decode(rows, skip_special_tokens=skipped)
        assert tokenizer.decode(rows[0], **options) == demo[1].decode(rows[0], skip_special_tokens=skipped)
        assert reference.batch_decode(rows[:1], **options) == tokenizer.batch_decode(rows[:1], **options)
    for text in PROMPTS:
        assert tokenizer.tokenize(text) == reference.tokenize(text)
        assert tokenizer.tokenize(text, add_special_tokens=True) == reference.tokenize(text, add_special_tokens=True)
        for options in (
            {"max_length": 3},
            {"max_length": 3, "truncation": True},
            {"max_length": 1, "truncation": True},
            {"max_length": 3, "truncation": True, "add_special_tokens": False},
            {"max_length": 20, "padding": "max_length"},
            {"max_length": 4, "truncation": True, "padding": "max_length"},
            {"padding": True},
        ):
            assert tokenizer.encode(text, **options) == reference.encode(text, **options), options


@pytest.mark.parametrize(("framework", "package"), [("np", "numpy"), ("pt", "torch")])
def test_the_tokenizer_gives_arrays_as_transformers_does(demo: Demo, framework: str, package: str) -> None:
    pytest.importorskip(package)
    _, tokenizer = adapt(*demo)
    reference = AutoTokenizer.from_pretrained(DEMO_DIRECTORY, padding_side="left")
    ids, expected = (each.encode(PROMPTS[0], return_tensors=framework) for each in (tokenizer, reference))
    assert (type(ids), ids.dtype, ids.tolist()) == (type(expected), expected.dtype, expected.tolist())  # pyright: ignore[reportAttributeAccessIssue]
    calls = (tokenizer._tokenizer, reference)
    batch, expected = (call(PROMPTS, padding=True, return_tensors=framework) for call in calls)
    for name in ("input_ids", "attention_mask"):
        assert (batch[name].dtype, batch[name].tolist()) == (expected[name].dtype, expected[name].tolist())


def test_arrays_of_another_framework_are_refused(demo: Demo) -> None:
    _, tokenizer = adapt(*demo)
    with pytest.raises(TokenizerError, match="return_tensors is 'tf'; expected None"):
        tokenizer.encode("x", return_tensors="tf")


def test_what_is_set_on_the_tokenizer_takes_effect_or_is_refused(demo: Demo) -> None:
    tokenizer = adapt(demo[0], HeliumTokenizer.from_pretrained(DEMO_DIRECTORY))[1]
    tokenizer.padding_side, tokenizer.pad_token = "right", "</s>"
    assert tokenizer.encode("x", padding="max_length", max_length=6)[-1] == tokenizer.eos_token_id
    with pytest.raises(TokenizerError, match="model_max_length cannot be set, since nothing reads it"):
        tokenizer.model_max_length = 3


def test_without_a_chat_template_there_is_transformers_error(demo: Demo) -> None:
    _, tokenizer = adapt(*demo)
    for call in (tokenizer.get_chat_template, lambda: tokenizer.apply_chat_template([{"role": "user"}])):
        with pytest.raises(ValueError, match=r"tokenizer\.chat_template is not set"):
            call()


@pytest.mark.parametrize("mask_prompt", [False, True])
def test_a_chat_template_may_be_set_for_data_of_prompts_and_completions(demo: Demo, mask_prompt: bool) -> None:
    _, tokenizer = adapt(*demo)
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    reference = TokenizerWrapper(AutoTokenizer.from_pretrained(DEMO_DIRECTORY, **named))
    tokenizer.chat_template = reference.chat_template = TEMPLATE
    assert tokenizer.get_chat_template() == TEMPLATE
    data = [{"prompt": "Once upon a time", "completion": "there was a dog."}, {"prompt": "é", "completion": "…"}]
    adapted, expected = (
        datasets.CompletionsDataset(data, each, "prompt", "completion", mask_prompt)  # pyright: ignore[reportArgumentType]
        for each in (tokenizer, reference)
    )
    for row in data:
        assert adapted.process(row) == expected.process(row)
    messages = [[{"role": "user", "content": "Ciao"}], [{"role": "user", "content": "Hallo, du"}]]
    assert tokenizer.apply_chat_template(messages) == reference.apply_chat_template(messages)
    assert tokenizer.apply_chat_template(messages[0], tokenize=False) == "<s>user: Ciao</s>"


def test_the_detokenizer_gives_all_text_by_its_end(demo: Demo) -> None:
    _, tokenizer = adapt(*demo)
    # The emoji comes whole, with the last of its bytes.
    ids = tokenizer.encode("Bonjour \U0001f9a6")
    detokenizer, other = tokenizer.detokenizer, tokenizer.detokenizer
    segments = []
    for token in ids:
        detokenizer.add_token(token)
        segments.append(detokenizer.last_segment)
    assert segments[-1] == "\U0001f9a6"
    detokenizer.finalize()
    assert "".join(segments) + detokenizer.last_segment == detokenizer.text == demo[1].decode(ids)
    assert (detokenizer.tokens, other.tokens, other.text) == (ids, [], "")


def test_the_adapted_model_shares_the_weights(demo: Demo) -> None:
    model, _ = adapt(*demo)
    assert isinstance(model, MlxLmModel)
    assert model.model is demo[0]
    assert (model.model_type, model.args.vocab_size) == ("helium", demo[0].config.vocab_size)
