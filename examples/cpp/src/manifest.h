// manifest.json, read and checked: whoever holds a Manifest need not doubt its fields, nor how they fit together.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "detokenizer.h"
#include "sampler.h"

namespace helium {

struct TensorSpec {
  std::string name;
  std::vector<std::int32_t> shape;
  std::string dtype;

  bool operator==(const TensorSpec&) const = default;
};

// An exported function: it runs `length` tokens at once over caches of `capacity` tokens, of which attention goes over
// the first `attended`; `length` 1 decodes.
struct FunctionSpec {
  std::string file;
  std::int32_t length = 1;
  std::int32_t capacity = 0;
  std::int32_t attended = 0;
};

struct FileSpec {
  std::uint64_t bytes = 0;
  std::string sha256;
};

// A token that is found in a text before SentencePiece sees it; a special one leaves no trace in decoded text.
struct AddedToken {
  std::string content;
  std::int32_t id = 0;
  bool special = false;
  bool single_word = false;
};

struct TokenizerSpec {
  std::string model_file;
  // Put in front of every stretch of text between added tokens.
  std::string segment_prefix;
  std::vector<AddedToken> added_tokens;
  // Pieces that are found in a text and that SentencePiece itself does not find.
  std::vector<AddedToken> literals;
  // Which of the two detokenizers, and what it drops on the left.
  bool byte_fallback = true;
  std::int32_t strip = 0;
  DummyPrefix dummy_prefix = DummyPrefix::kKept;
};

struct ModelSpec {
  std::string model_type;
  std::int32_t vocab_size = 0;
  std::int32_t num_hidden_layers = 0;
  std::int32_t num_attention_heads = 0;
  std::int32_t num_key_value_heads = 0;
  std::int32_t head_dim = 0;
  double bits_per_weight = 0;

  // How many positions a token's function takes: of the groups of query heads, of the keys and of the values.
  std::int32_t positions() const { return num_attention_heads / num_key_value_heads + 2; }
};

struct Manifest {
  std::string backend;
  std::string mlx_version;
  ModelSpec model;
  std::int32_t context = 0;
  TokenizerSpec tokenizer;
  std::int32_t bos = 0;
  std::vector<std::int32_t> eos;
  std::vector<std::int32_t> reserved;
  SamplingOptions sampling;
  std::int32_t max_tokens = 256;
  std::vector<std::string> weight_files;
  // In the order in which functions take them.
  std::vector<TensorSpec> weights;
  // Of caches and logits.
  std::string dtype;
  std::vector<FunctionSpec> functions;
  std::map<std::string, FileSpec> files;

  // Throws Error (HELIUM_ERROR_VERSION for another format or version, HELIUM_ERROR_BUNDLE for all else). `name` is the
  // file's, for messages; `mlx_version` and `backend` are what this program has.
  static Manifest parse(std::string_view text, const std::string& name, const std::string& mlx_version,
                        const std::string& backend);
};

}  // namespace helium
