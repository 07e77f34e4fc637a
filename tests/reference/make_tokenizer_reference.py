"""Writes `tokenizer_cases.json`: what transformers makes of the sample tokenizer and of the demo checkpoint's.

    python tests/reference/make_tokenizer_reference.py

Needs the `parity` and `train` extras; the tests that read the file need neither. It also checks that the hand-written
`tokenizer_samples.tokenizer_json` is, to the byte, what transformers' `HeliumConverter` makes of the same model.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

REFERENCE = Path(__file__).parent
CASES_FILE = REFERENCE / "tokenizer_cases.json"
DEMO = REFERENCE.parents[1] / "helium_mlx" / "demo"

TEXTS = (
    "", " ", "  ", "the", " the", "the ", "The capital of France is", "The capital of France is ",
    "Bonjour, le monde !", "the\nfile", "\n", "\n\n", "\nthe", "the\n", "the \n file", "a\n\n\nb",
    "the\r\nfile", "\tthe\tfile",
    "L'été, Noël et l'œuvre.", "Straße, Größe", "Zażółć gęślą jaźń", "Γειά σου Κόσμε", "Здравей, свят",  # noqa: RUF001
    "中国", "the 中 file", "😀", "👍🏽 the", "👩‍👩‍👧 family", "e\u0301te\u0301", "\ufb01le",
    "10\u00a0000\u00a0€", "\u00a0", "\u00a0the", "▁", "the▁file", "<0x41>", "\x00\x07", "\ufffd", "\ufeffthe",
    "<s>", "<s> the", "<s><s> the", "the <s> file", "the</s>", "the </s>", "<|im_start|> user", "<|im_sp_07|>", "<unk>",
    "def f(x):\n    return x + 1\n", "x" * 50, "the file " * 20,
)  # fmt: skip


def cases_of(tokenizer_file: Path, texts: tuple[str, ...] = TEXTS) -> list[dict[str, object]]:
    """Ids and decoded texts, with and without special tokens, by transformers' fast tokenizer."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), clean_up_tokenization_spaces=False)
    cases: list[dict[str, object]] = []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        cases.append(
            {
                "text": text,
                "ids": ids,
                "ids_without_special": tokenizer(text, add_special_tokens=False)["input_ids"],
                "decoded": tokenizer.decode(ids, skip_special_tokens=True),
                "decoded_with_special": tokenizer.decode(ids, skip_special_tokens=False),
            }
        )
    return cases


def check_sample_against_converter() -> Path:
    """Convert the sample model with transformers and return the path of the resulting `tokenizer.json`."""
    sys.path.insert(0, str(REFERENCE.parent))
    import tokenizer_samples
    from transformers.convert_slow_tokenizer import HeliumConverter

    directory = Path(tempfile.mkdtemp())
    model_file = directory / "tokenizer.model"
    for reserved_type in (tokenizer_samples.CONTROL, tokenizer_samples.USER_DEFINED):
        rows = tokenizer_samples.vocabulary(reserved_type=reserved_type)
        model_file.write_bytes(tokenizer_samples.sentencepiece_model(rows))
        converted = HeliumConverter(str(model_file)).converted().to_str()
        if converted != tokenizer_samples.tokenizer_json(rows):
            raise SystemExit("tokenizer_samples.tokenizer_json differs from HeliumConverter")
    return tokenizer_samples.write_json_checkpoint(directory / "sample") / "tokenizer.json"


def main() -> None:
    """Write the file."""
    import transformers

    reference: dict[str, object] = {"sample": {"cases": cases_of(check_sample_against_converter())}}
    demo_file = DEMO / "tokenizer.json"
    if demo_file.exists():
        digest = hashlib.sha256(demo_file.read_bytes()).hexdigest()
        reference["demo"] = {"sha256": digest, "cases": cases_of(demo_file)}
    reference = {"transformers": transformers.__version__, **reference}
    # One case a line: a change of one case is then a change of one line.
    text = json.dumps(reference, ensure_ascii=True).replace('{"text"', '\n{"text"')
    CASES_FILE.write_text(text + "\n", encoding="utf-8")
    print(f"wrote {CASES_FILE}: {', '.join(name for name in reference if name != 'transformers')}", file=sys.stderr)


if __name__ == "__main__":
    main()
