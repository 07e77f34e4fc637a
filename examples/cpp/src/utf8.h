// UTF-8 as RFC 3629 has it: no surrogates, nothing longer than need be, nothing above U+10FFFF.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace helium {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

// Takes a text byte by byte, and knows of an invalid one at the first byte that no character could have there, of a
// surrogate at its third byte: so does Python, whose pieces of text are to be had again.
class Utf8Validator {
 public:
  // Whether the bytes so far are the beginning of a valid text. Once false, it stays so.
  bool add(std::uint8_t byte);
  // Whether they are a valid text, that is, do not end inside of a character.
  bool complete() const { return valid_ && remaining_ == 0; }

 private:
  bool valid_ = true;
  int remaining_ = 0;
  std::uint8_t lead_ = 0;
  std::uint8_t lowest_ = 0x80;
  std::uint8_t highest_ = 0xBF;
};

bool is_utf8(std::string_view text);

// Bytes to text as they come, as Python decodes them with errors="replace": a character comes with its last byte, and
// each beginning of one that breaks off becomes one replacement character.
class Utf8Decoder {
 public:
  std::string add(std::uint8_t byte);
  // What is still open, once no more bytes come; the next byte begins a new text.
  std::string finish();

 private:
  std::string take(bool final);

  std::string pending_;
};

// How many bytes a character with this first byte has; 1 where none begins with it.
std::size_t sequence_length(std::uint8_t lead);

void append_utf8(std::string& text, char32_t character);

// The first and the last character of valid UTF-8, none of an empty one.
std::optional<char32_t> first_character(std::string_view text);
std::optional<char32_t> last_character(std::string_view text);

// A text as one line of UTF-8, for a message: spaces in the place of control characters, replacement characters in that
// of bytes that are not UTF-8, and of a long one the beginning and the end.
std::string one_line(std::string_view text, std::size_t limit = 2000);

// A text of a file in a message: on one line and cut to `limit` bytes, in which nothing is unprintable.
std::string shown(std::string_view text, std::size_t limit = 60);

}  // namespace helium
