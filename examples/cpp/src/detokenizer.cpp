#include "detokenizer.h"

#include <utility>

namespace helium {
namespace {

constexpr std::string_view kSeparator = "\xE2\x96\x81";

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
      return stripped(bytes_.add(piece.byte));
    case Piece::Kind::kText:
      return stripped(bytes_.finish() + piece.text);
  }
  return "";
}

std::string ByteFallbackDetokenizer::finish() {
  return stripped(bytes_.finish());
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
  if (piece.kind == Piece::Kind::kByte) return started(bytes_.add(piece.byte));
  const std::string before = started(bytes_.finish());
  std::string text = piece.text;
  if (at_start_ && text.starts_with(kSeparator)) {
    text.erase(0, kSeparator.size());
    at_start_ = prefix_ == DummyPrefix::kEvery;
  }
  return before + started(with_spaces(std::move(text)));
}

std::string SentencePieceDetokenizer::finish() {
  return bytes_.finish();
}

std::string SentencePieceDetokenizer::started(std::string text) {
  if (!text.empty()) at_start_ = false;
  return text;
}

}  // namespace helium
