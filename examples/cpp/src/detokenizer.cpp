#include "detokenizer.h"

#include <utility>

namespace helium {
namespace {

constexpr std::string_view kSeparator = "\xE2\x96\x81";

std::string replacements(std::size_t count) {
  std::string text;
  for (; count > 0; --count) text += kReplacementCharacter;
  return text;
}

}  // namespace

std::string with_spaces(std::string text) {
  for (std::size_t at = text.find(kSeparator); at != std::string::npos; at = text.find(kSeparator, at)) {
    text.replace(at, kSeparator.size(), " ");
  }
  return text;
}

std::string ByteFallbackDetokenizer::add(const Piece& piece) {
  switch (piece.kind) {
    case Piece::Kind::kNothing:
      return "";
    case Piece::Kind::kByte:
      return stripped(add_byte(piece.byte));
    case Piece::Kind::kText:
      return stripped(end_run() + piece.text);
  }
  return "";
}

std::string ByteFallbackDetokenizer::finish() {
  return stripped(end_run());
}

std::string ByteFallbackDetokenizer::add_byte(std::uint8_t byte) {
  if (invalid_) return replacements(1);
  run_ += static_cast<char>(byte);
  invalid_ = !validator_.add(byte);
  return invalid_ ? replacements(run_.size()) : "";
}

std::string ByteFallbackDetokenizer::end_run() {
  std::string text;
  if (!invalid_) text = validator_.complete() ? run_ : replacements(run_.size());
  run_.clear();
  validator_ = {};
  invalid_ = false;
  return text;
}

std::string ByteFallbackDetokenizer::stripped(std::string text) {
  std::size_t spaces = 0;
  for (; strip_ > 0 && spaces < text.size(); --strip_, ++spaces) {
    if (text[spaces] == ' ') continue;
    strip_ = 0;
    break;
  }
  return text.substr(spaces);
}

std::string SentencePieceDetokenizer::add(const Piece& piece) {
  if (piece.kind == Piece::Kind::kNothing) return "";
  if (piece.kind == Piece::Kind::kByte) {
    pending_ += static_cast<char>(piece.byte);
    return started(take_characters(false));
  }
  const std::string before = started(take_characters(true));
  std::string text = piece.text;
  if (at_start_ && text.starts_with(kSeparator)) {
    text.erase(0, kSeparator.size());
    at_start_ = prefix_ == DummyPrefix::kEvery;
  }
  return before + started(with_spaces(std::move(text)));
}

std::string SentencePieceDetokenizer::finish() {
  return take_characters(true);
}

std::string SentencePieceDetokenizer::started(std::string text) {
  if (!text.empty()) at_start_ = false;
  return text;
}

std::string SentencePieceDetokenizer::take_characters(bool final) {
  std::string text;
  std::size_t at = 0;
  while (at < pending_.size()) {
    std::size_t length = sequence_length(static_cast<std::uint8_t>(pending_[at]));
    if (at + length > pending_.size() && !final) break;
    const std::string character = pending_.substr(at, length);
    if (is_utf8(character)) {
      text += character;
    } else {
      text += kReplacementCharacter;
      length = 1;
    }
    at += length;
  }
  pending_.erase(0, at);
  return text;
}

}  // namespace helium
