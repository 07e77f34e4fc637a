#include "utf8.h"

#include <algorithm>
#include <cstdio>

namespace helium {

bool Utf8Validator::add(std::uint8_t byte) {
  if (!valid_) return false;
  if (remaining_ > 0) {
    valid_ = lowest_ <= byte && byte <= highest_;
    const bool is_surrogate = lead_ == 0xED && remaining_ == 2 && byte >= 0xA0;
    lowest_ = is_surrogate ? 0xFF : 0x80;
    highest_ = is_surrogate ? 0x00 : 0xBF;
    --remaining_;
    return valid_;
  }
  if (byte < 0x80) return true;
  // C0 and C1 could only begin what fits in one byte, F5 and more only what is above U+10FFFF.
  valid_ = 0xC2 <= byte && byte <= 0xF4;
  lead_ = byte;
  remaining_ = static_cast<int>(sequence_length(byte)) - 1;
  if (byte == 0xE0) lowest_ = 0xA0;
  if (byte == 0xF0) lowest_ = 0x90;
  if (byte == 0xF4) highest_ = 0x8F;
  return valid_;
}

bool is_utf8(std::string_view text) {
  Utf8Validator validator;
  for (const char byte : text) {
    if (!validator.add(static_cast<std::uint8_t>(byte))) return false;
  }
  return validator.complete();
}

std::string Utf8Decoder::add(std::uint8_t byte) {
  pending_ += static_cast<char>(byte);
  return take(false);
}

std::string Utf8Decoder::finish() {
  return take(true);
}

std::string Utf8Decoder::take(bool final) {
  std::string text;
  std::size_t at = 0;
  while (at < pending_.size()) {
    Utf8Validator validator;
    std::size_t length = 0;
    bool valid = true;
    while (valid && at + length < pending_.size() && !(length > 0 && validator.complete())) {
      valid = validator.add(static_cast<std::uint8_t>(pending_[at + length]));
      if (valid) ++length;
    }
    if (validator.complete()) {
      text += pending_.substr(at, length);
    } else if (valid && !final) {
      break;
    } else {
      text += kReplacementCharacter;
      // Known as a surrogate at its third byte, whose first is the only one that could begin a character.
      const bool is_surrogate = length == 2 && pending_[at] == '\xED' && pending_[at + 1] >= '\xA0';
      length = is_surrogate ? 1 : std::max<std::size_t>(length, 1);
    }
    at += length;
  }
  pending_.erase(0, at);
  return text;
}

std::size_t sequence_length(std::uint8_t lead) {
  if (lead >= 0xF8 || lead < 0xC0) return 1;
  return lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
}

void append_utf8(std::string& text, char32_t character) {
  const auto tail = [&](int shift) { text += static_cast<char>(0x80 | ((character >> shift) & 0x3F)); };
  if (character < 0x80) {
    text += static_cast<char>(character);
  } else if (character < 0x800) {
    text += static_cast<char>(0xC0 | (character >> 6));
    tail(0);
  } else if (character < 0x10000) {
    text += static_cast<char>(0xE0 | (character >> 12));
    tail(6);
    tail(0);
  } else {
    text += static_cast<char>(0xF0 | (character >> 18));
    tail(12);
    tail(6);
    tail(0);
  }
}

std::optional<char32_t> first_character(std::string_view text) {
  if (text.empty()) return std::nullopt;
  const auto lead = static_cast<std::uint8_t>(text[0]);
  const std::size_t length = sequence_length(lead);
  if (length == 1) return lead;
  char32_t character = lead & (0x7F >> length);
  for (std::size_t i = 1; i < std::min(length, text.size()); ++i) {
    character = (character << 6) | (static_cast<std::uint8_t>(text[i]) & 0x3F);
  }
  return character;
}

std::optional<char32_t> last_character(std::string_view text) {
  if (text.empty()) return std::nullopt;
  std::size_t start = text.size() - 1;
  while (start > 0 && (static_cast<std::uint8_t>(text[start]) & 0xC0) == 0x80) --start;
  return first_character(text.substr(start));
}

std::string one_line(std::string_view text, std::size_t limit) {
  std::string result;
  for (std::size_t start = 0; start < text.size();) {
    const std::size_t length = sequence_length(static_cast<std::uint8_t>(text[start]));
    const std::string_view character = text.substr(start, length);
    const bool is_control = character[0] >= 0 && (character[0] < 0x20 || character[0] == 0x7F);
    const bool is_valid = is_utf8(character);
    if (is_control) {
      result += ' ';
    } else {
      result += is_valid ? character : kReplacementCharacter;
    }
    start += is_valid ? length : 1;
  }
  if (result.size() <= limit) return result;
  const auto continues = [&](std::size_t at) { return (static_cast<std::uint8_t>(result[at]) & 0xC0) == 0x80; };
  std::size_t first = limit / 2, last = result.size() - limit / 2;
  while (continues(first)) --first;
  while (last < result.size() && continues(last)) ++last;
  return result.substr(0, first) + "…" + result.substr(last);
}

std::string shown(std::string_view text, std::size_t limit) {
  std::string result = "\"";
  const bool readable = is_utf8(text);
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<std::uint8_t>(text[i]);
    const bool starts_character = (byte & 0xC0) != 0x80;
    if (result.size() > limit && (starts_character || !readable)) return result + "…\"";
    if (byte < 0x20 || byte == 0x7F || (byte >= 0x80 && !readable)) {
      char escaped[5];
      std::snprintf(escaped, sizeof escaped, "\\x%02x", byte);
      result += escaped;
    } else {
      result += text[i];
    }
  }
  return result + "\"";
}

}  // namespace helium
