// Token ids to text, one token at a time, in time linear in their number, each character as soon as no later token can
// change it. The two tokenizer files disagree about bytes, so there are two: see helium_mlx/detokenizer.py, whose
// results these have piece for piece.
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

// The decoder of Helium's tokenizer.json. A run of bytes is one text or none: a byte that is invalid anywhere in it
// turns each of them into a replacement character, so a run is held back until it ends. Pieces have spaces for
// separators already; `strip` spaces are dropped from the left of the whole text.
class ByteFallbackDetokenizer : public Detokenizer {
 public:
  explicit ByteFallbackDetokenizer(int strip) : strip_(strip) {}
  std::string add(const Piece& piece) override;
  std::string finish() override;

 private:
  std::string add_byte(std::uint8_t byte);
  std::string end_run();
  std::string stripped(std::string text);

  int strip_;
  std::string run_;
  Utf8Validator validator_;
  bool invalid_ = false;
};

// Which separators SentencePiece drops while there is no text yet: none, the first one, or one from every piece.
enum class DummyPrefix { kKept, kFirst, kEvery };

// SentencePiece's own decoder: a character appears with its last byte, an invalid byte is replaced alone.
class SentencePieceDetokenizer : public Detokenizer {
 public:
  explicit SentencePieceDetokenizer(DummyPrefix prefix) : prefix_(prefix), at_start_(prefix != DummyPrefix::kKept) {}
  std::string add(const Piece& piece) override;
  std::string finish() override;

 private:
  std::string take_characters(bool final);
  std::string started(std::string text);

  DummyPrefix prefix_;
  bool at_start_;
  std::string pending_;
};

// `text` with a space for every separator ("▁").
std::string with_spaces(std::string text);

}  // namespace helium
