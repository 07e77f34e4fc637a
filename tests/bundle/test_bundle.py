"""Bundles that are damaged, foreign or not what they say are refused, each with one line that names the file."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from bundle_samples import write_text_checkpoint

from helium_mlx import backend, export
from helium_mlx.bundle import bundle as bundle_module
from helium_mlx.bundle.bundle import open_bundle
from helium_mlx.bundle.manifest import ArraySpec, bundle_files
from helium_mlx.bundle.runner import BundleRunner
from helium_mlx.errors import BundleError

Json = dict
Change = Callable[[Json], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    source = write_text_checkpoint(root / "source", model_type="llama", num_key_value_heads=2, num_hidden_layers=2)
    export(source, root / "bundle", context=40, verify=False)
    return root / "bundle"


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(made, tmp_path / "bundle")


def change_manifest(bundle: Path, change: Change) -> None:
    path = bundle / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def refused(bundle: Path, said: str, **options: bool) -> None:
    with pytest.raises(BundleError, match=said) as error:
        open_bundle(bundle, **options)
    assert "\n" not in str(error.value)
    assert str(bundle) in str(error.value)


def test_what_was_exported_opens(made: Path) -> None:
    manifest = open_bundle(made).manifest
    assert manifest.context == 40
    assert manifest.capacities == [40]
    assert manifest.backend == backend.name()


def zeros(specs: list[dict]) -> list[mx.array]:
    """Arrays as a manifest describes them."""
    return [ArraySpec(spec["name"], tuple(spec["shape"]), spec["dtype"]).zeros() for spec in specs]


def test_functions_take_what_the_manifest_says_and_give_what_it_says(made: Path) -> None:
    opened = open_bundle(made)
    weights = opened.load_weights()
    for entry in json.loads((made / "manifest.json").read_text())["functions"]:
        function = mx.import_function(str(made / entry["file"]))
        assert callable(function)
        inputs = zeros(entry["inputs"])
        outputs = function(*inputs, *weights)
        found = [(list(array.shape), str(array.dtype).removeprefix("mlx.core.")) for array in outputs]
        assert found == [(spec["shape"], spec["dtype"]) for spec in entry["outputs"]]
        with pytest.raises(ValueError, match="No imported function"):
            function(*inputs[:-1], *weights)


def test_weights_are_there_once(made: Path) -> None:
    tensors = sum(array.nbytes for array in open_bundle(made).load_weights())
    files = {name: (made / name).stat().st_size for name in bundle_files(made)}
    assert tensors < files["weights.safetensors"] < tensors + 10_000
    # Two functions of two layers; with weights in them each would be as large as the weights.
    assert all(size < tensors / 5 for name, size in files.items() if name.startswith("functions/"))


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such directory")


@pytest.mark.parametrize(
    "name",
    ["manifest.json", "weights.safetensors", "vectors.json", "tokenizer.model", "tokenizer.json",
     "functions/decode_40.mlxfn", "functions/prefill_16_40.mlxfn"],
)  # fmt: skip
def test_every_file_that_is_missing_or_cut_short_is_named(bundle: Path, name: str) -> None:
    path = bundle / name
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    refused(bundle, name)
    path.unlink()
    refused(bundle, name)


@pytest.mark.parametrize("name", ["weights.safetensors", "vectors.json", "functions/decode_40.mlxfn"])
def test_a_flipped_bit_is_found_by_its_hash(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[-1] ^= 1
    (bundle / name).write_bytes(data)
    refused(bundle, "SHA-256")
    open_bundle(bundle, check_hashes=False)


def test_a_manifest_that_is_no_json_is_named(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("{")
    refused(bundle, "manifest.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(format="other"), "format is 'other'"),
        (lambda m: m.update(format_version=1), "format_version is 1"),
        (lambda m: m.update(backend="abacus"), "made on 'abacus'"),
        (lambda m: m["versions"].update(mlx="0.1.0"), "made with MLX '0.1.0'"),
        (lambda m: m.pop("versions"), "made with MLX None"),
        (lambda m: m.pop("eos_token_ids"), "lacks one of its fields"),
        (lambda m: m.update(reserved_ids=["six"]), "special ids"),
        (lambda m: m.update(bos_token_id=-1), "special ids that are not all from 0 to"),
        (lambda m: m.update(bos_token_id=True), "special ids"),
        (lambda m: m.update(eos_token_ids=[2**31]), "special ids"),
        (lambda m: m.update(sampling={}), "no number for each of temperature"),
        (lambda m: m["sampling"].update(top_k="many"), "no number for each of temperature"),
        (lambda m: m.update(format_version=True), "format_version is True"),
        (lambda m: m.update(context=0), "lacks one of its fields"),
        (lambda m: m.update(context=41), "no function for its context"),
        (lambda m: m["model"].update(num_hidden_layers=10**9), "malformed model"),
        (lambda m: m["model"].update(dtype="float64"), "malformed model"),
        (lambda m: m["model"].update(bits_per_weight=-1), "malformed model"),
        (lambda m: m["model"].update(head_dim=8), "function 'decode_40'"),
        (lambda m: m["tokenizer"].pop("literals"), "tokenizer"),
        (lambda m: m["tokenizer"].update(model="../tokenizer.model"), "tokenizer"),
        (lambda m: m["weights"].update(files=["../weights.safetensors"]), "malformed weights"),
        (lambda m: m["weights"]["inputs"].pop(), "malformed weights"),
        (lambda m: m["weights"]["dtypes"].__setitem__(0, "complex64"), "malformed weight"),
        (lambda m: m["weights"]["dtypes"].__setitem__(0, []), "malformed weight"),
        (lambda m: m["weights"]["shapes"].__setitem__(0, [3, 5]), "tensor"),
        (lambda m: m["functions"].pop(0), "one function for decoding"),
        (lambda m: m["functions"].append(m["functions"][0]), "one function for decoding"),
        (lambda m: m["functions"][0].update(file="functions/../../f.mlxfn"), "function 'decode_40'"),
        (lambda m: m["functions"][1]["inputs"].pop(2), "function 'prefill_16_40'"),
        (lambda m: m["files"].pop("functions/decode_40.mlxfn"), "functions/decode_40.mlxfn"),
        (lambda m: m["files"]["vectors.json"].pop("sha256"), "vectors.json"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(bundle: Path, change: Change, said: str) -> None:
    change_manifest(bundle, change)
    refused(bundle, said)


def test_another_backend_is_refused(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = backend.name()
    monkeypatch.setattr(backend, "name", lambda: "another")
    refused(made, f"made on '{here}', and MLX computes on 'another' here")


@pytest.mark.parametrize(("here", "is_read"), [("0.32.99", True), ("0.33.0", False), ("1.32.4", False)])
def test_a_bundle_is_good_for_one_minor_version(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, here: str, is_read: bool
) -> None:
    change_manifest(bundle, lambda m: m["versions"].update(mlx="0.32.4"))
    monkeypatch.setattr(bundle_module, "version", lambda _: here)
    if is_read:
        open_bundle(bundle)
    else:
        refused(bundle, f"this is {here}")


@pytest.mark.parametrize("name", ["../outside", "functions/../../outside", "{}/outside", "functions", ""])
def test_a_name_that_leads_out_of_the_bundle_is_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"")
    entry = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    change_manifest(bundle, lambda m: m["files"].update({name.format(tmp_path): entry}))
    refused(bundle, "which no bundle has")


def test_a_link_out_of_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    outside = shutil.move(bundle / "vectors.json", tmp_path / "vectors.json")
    os.symlink(outside, bundle / "vectors.json")
    refused(bundle, "vectors.json")


def test_a_function_file_that_mlx_cannot_read_is_named(bundle: Path) -> None:
    path = bundle / "functions/decode_40.mlxfn"
    path.write_bytes(b"\x06" + bytes(path.stat().st_size - 1))
    runner = BundleRunner(open_bundle(bundle, check_hashes=False))
    with pytest.raises(BundleError, match="decode_40"):
        runner.feed([1])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda logits, *caches: (logits[:, :4], *caches),
        lambda logits, *caches: (logits.astype(mx.int8), *caches),
        lambda logits, *caches: (logits, *caches[:-1]),
        lambda logits, *caches: (logits, *(cache[:, :, :8] for cache in caches)),
        lambda *outputs: (),
    ],
    ids=["few logits", "integers", "a cache too few", "small caches", "nothing"],
)
def test_a_function_that_gives_something_else_than_the_manifest_says_is_named(
    bundle: Path, wrong: Callable[..., tuple[mx.array, ...]]
) -> None:
    path, weights = bundle / "functions/decode_40.mlxfn", open_bundle(bundle).load_weights()
    entry = json.loads((bundle / "manifest.json").read_text())["functions"][0]
    inputs, outputs = zeros(entry["inputs"]), zeros(entry["outputs"])
    # A function has to give something: in place of nothing, its first input.
    mx.export_function(str(path), lambda *given: wrong(*outputs) or given[:1], *inputs, *weights)
    change_manifest(bundle, lambda m: m["files"][str(path.relative_to(bundle))].update(bytes=path.stat().st_size))
    with pytest.raises(BundleError, match=r"decode_40.mlxfn: it gives other arrays than the manifest says"):
        BundleRunner(open_bundle(bundle, check_hashes=False)).feed([1])


def test_a_tokenizer_that_sentencepiece_cannot_read_is_named(bundle: Path) -> None:
    path = bundle / "tokenizer.model"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(BundleError, match=r"tokenizer\.model"):
        open_bundle(bundle, check_hashes=False).tokenizer()
