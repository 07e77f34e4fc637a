"""Print `src/word_characters.inc`: the characters that `tokenizers` takes for parts of a word, asked one by one."""

import sys
from itertools import pairwise

from tokenizers import AddedToken, Tokenizer, models

SURROGATES = range(0xD800, 0xE000)
PER_LINE = 8


def is_word_character(tokenizer: Tokenizer, character: str) -> bool:
    """Return whether a token that stands alone as a word is not found beside the character."""
    return "<s>" not in tokenizer.encode(f"{character}<s>").tokens


def main() -> None:
    """Print the ranges, first and last character of each."""
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.add_special_tokens([AddedToken("<s>", single_word=True)])
    characters = (code for code in range(sys.maxunicode + 1) if code not in SURROGATES)
    word = [code for code in characters if is_word_character(tokenizer, chr(code))]
    gaps = [(before, after) for before, after in pairwise(word) if after != before + 1]
    firsts = [word[0], *(after for _, after in gaps)]
    lasts = [*(before for before, _ in gaps), word[-1]]
    ranges = [f"{{0x{first:X}, 0x{last:X}}}," for first, last in zip(firsts, lasts, strict=True)]
    print("// clang-format off")
    for start in range(0, len(ranges), PER_LINE):
        print("    " + " ".join(ranges[start : start + PER_LINE]))


if __name__ == "__main__":
    main()
