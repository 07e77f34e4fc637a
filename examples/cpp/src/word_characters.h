// What `tokenizers` takes for a part of a word (\w of Rust's regex crate): letters, marks, digits, connectors.
#pragma once

namespace helium {

bool is_word_character(char32_t character);

}  // namespace helium
