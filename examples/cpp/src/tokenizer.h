// Text to ids by the rules that the manifest states around SentencePiece, so that ids and text are those of the
// tokenizer file that the checkpoint follows. Const throughout: any thread may use it.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "detokenizer.h"
#include "manifest.h"

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace helium {

// Finds the leftmost of several contents in a text, of those that begin there the longest.
class ContentFinder {
 public:
  explicit ContentFinder(std::vector<AddedToken> tokens);
  // The token that begins at `at`, nullptr if none does.
  const AddedToken* at(std::string_view text, std::size_t at) const;

 private:
  // By their first byte, the longest first.
  std::vector<std::vector<AddedToken>> by_byte_;
};

class Tokenizer {
 public:
  // `model` is the SentencePiece file. Throws Error (HELIUM_ERROR_BUNDLE) if it is not one.
  Tokenizer(const Manifest& manifest, const std::filesystem::path& model);
  ~Tokenizer();

  // One BOS and the ids of a text. Throws Error (HELIUM_ERROR_ARGUMENT) for text that is not UTF-8.
  std::vector<std::int32_t> encode(std::string_view text) const;

  Piece piece(std::int32_t id) const;
  // The name of an id that leaves no trace in a text, which a stop string may have; "" for any other.
  std::string special_name(std::int32_t id) const;
  std::unique_ptr<Detokenizer> detokenizer() const;

 private:
  // A piece that was found in a text; `literal` is what a literal was spelled as, else empty.
  struct Found {
    std::int32_t id;
    std::string_view literal;
  };

  void encode_segment(std::string_view text, std::vector<std::int32_t>& ids) const;
  void encode_pieces(std::string_view text, std::vector<Found>& found) const;
  bool is_unknown(const Found& found) const;

  TokenizerSpec spec_;
  std::int32_t bos_;
  // What a text spells BOS as; "" where it cannot.
  std::string spelled_bos_;
  ContentFinder added_;
  ContentFinder literals_;
  std::unordered_map<std::int32_t, Piece> added_pieces_;
  std::array<std::int32_t, 256> byte_ids_{};
  std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;
};

}  // namespace helium
