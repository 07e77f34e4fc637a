// Token ids to text, one token at a time, in time linear in their number, each character as soon as no later token can
// change it; one for each tokenizer file: see helium_mlx/tokenizer/detokenizer.py, whose results these have piece for
// piece.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "utf8.h"

namespace helium {

// What one id stands for.
struct Piece {
  enum class Kind { kNothing, kText, kByte };
  Kind kind = Kind::kNothing;
  std::string text;
  std::uint8_t byte = 0;
};

class Detokenizer {
 public:
  virtual ~Detokenizer() = default;
  // The text that has become certain with this piece, possibly none.
  virtual std::string add(const Piece& piece) = 0;
  // The text that was still open.
  virtual std::string finish() = 0;
};

// The decoder of Helium's tokenizer.json. Pieces have spaces for separators already; `strip` spaces are dropped from
// the left of the whole text.
class ByteFallbackDetokenizer : public Detokenizer {
 public:
  explicit ByteFallbackDetokenizer(int strip) : strip_(strip) {}
  std::string add(const Piece& piece) override;
  std::string finish() override;

 private:
  std::string stripped(std::string text);

  int strip_;
  Utf8Decoder bytes_;
};

// Which separators SentencePiece drops while there is no text yet: none, the first one, or one from every piece.
enum class DummyPrefix { kKept, kFirst, kEvery };

// SentencePiece's own decoder, but for bytes that are not UTF-8.
class SentencePieceDetokenizer : public Detokenizer {
 public:
  explicit SentencePieceDetokenizer(DummyPrefix prefix) : prefix_(prefix), at_start_(prefix != DummyPrefix::kKept) {}
  std::string add(const Piece& piece) override;
  std::string finish() override;

 private:
  std::string started(std::string text);

  DummyPrefix prefix_;
  bool at_start_;
  Utf8Decoder bytes_;
};

// `text` with a space for every separator ("▁").
std::string with_spaces(std::string text);

}  // namespace helium
