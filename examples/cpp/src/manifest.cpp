#include "manifest.h"

#include <algorithm>
#include <limits>
#include <set>
#include <stdexcept>
#include <tuple>

#include "error.h"
#include "files.h"
#include "json_field.h"
#include "utf8.h"

namespace helium {
namespace {

// Far beyond any Helium, and small enough that no product of them overflows.
constexpr std::int32_t kMostTokens = 1 << 20;
constexpr std::int32_t kMostLayers = 1024;
constexpr std::int32_t kMostHeads = 1024;
constexpr std::int32_t kMostHeadDim = 4096;
constexpr std::int32_t kMost = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kMostBytes = std::int64_t{1} << 40;
constexpr std::size_t kMostContent = 1000;

std::int32_t whole(const JsonField& field, std::int32_t least, std::int32_t most) {
  return static_cast<std::int32_t>(field.integer(least, most));
}

std::string file_name(const JsonField& field) {
  if (!is_safe_name(field.string())) field.refuse("the name of a file in the bundle");
  return field.string();
}

// "0.32" of "0.32.4": what a function file holds is defined for one minor version of MLX.
std::string minor_version(const std::string& version) {
  return version.substr(0, version.find('.', std::min(version.find('.'), version.size() - 1) + 1));
}

void check_format(const JsonField& root, const std::string& name) {
  if (!root.has("format") || root["format"].string() != "helium-bundle") {
    throw Error(HELIUM_ERROR_BUNDLE,
                name + " is of no bundle; name the directory that python -m helium_mlx.export wrote");
  }
  const std::int64_t version = root["format_version"].integer(1, kMost);
  if (version != 2) {
    throw Error(HELIUM_ERROR_VERSION, name + " has format_version " + std::to_string(version) +
                                          "; this program reads 2: export the bundle anew, or build a newer one");
  }
}

void check_versions(const JsonField& root, const std::string& name, const std::string& mlx, const std::string& here) {
  const std::string& made_with = root["versions"]["mlx"].string();
  if (minor_version(made_with) != minor_version(mlx)) {
    throw Error(HELIUM_ERROR_VERSION, name + " was made with MLX " + shown(made_with) + ", and this program has " +
                                          mlx + ": function files are not read across versions; export it anew");
  }
  const std::string& backend = root["backend"].string();
  if (backend != here) {
    throw Error(HELIUM_ERROR_VERSION, name + " was exported for the backend " + shown(backend) +
                                          ", and this program runs on " + here +
                                          ": the functions name their device; export it here");
  }
}

ModelSpec parse_model(const JsonField& field) {
  ModelSpec model;
  model.model_type = field["model_type"].string();
  model.vocab_size = whole(field["vocab_size"], 1, kMostTokens);
  model.num_hidden_layers = whole(field["num_hidden_layers"], 1, kMostLayers);
  model.num_attention_heads = whole(field["num_attention_heads"], 1, kMostHeads);
  model.num_key_value_heads = whole(field["num_key_value_heads"], 1, kMostHeads);
  if (model.num_attention_heads % model.num_key_value_heads != 0) {
    field["num_attention_heads"].refuse("a multiple of num_key_value_heads");
  }
  model.head_dim = whole(field["head_dim"], 1, kMostHeadDim);
  model.bits_per_weight = field["bits_per_weight"].number(0, 64);
  return model;
}

AddedToken parse_added_token(const JsonField& field, std::int32_t ids) {
  AddedToken token;
  token.content = field["content"].string();
  if (token.content.empty() || token.content.size() > kMostContent)
    field["content"].refuse("a text of 1 to 1000 bytes");
  token.id = whole(field["id"], 0, ids - 1);
  if (field.has("special")) token.special = field["special"].boolean();
  if (field.has("single_word")) token.single_word = field["single_word"].boolean();
  return token;
}

void parse_decoder(const JsonField& field, TokenizerSpec& tokenizer) {
  const std::string& kind = field["kind"].string();
  tokenizer.byte_fallback = kind == "byte_fallback";
  if (tokenizer.byte_fallback) {
    tokenizer.strip = whole(field["strip"], 0, kMost);
    return;
  }
  if (kind != "sentencepiece") field["kind"].refuse("byte_fallback or sentencepiece");
  const std::string& prefix = field["dummy_prefix"].string();
  if (prefix != "kept" && prefix != "first" && prefix != "every") {
    field["dummy_prefix"].refuse("kept, first or every");
  }
  tokenizer.dummy_prefix = prefix == "kept"    ? DummyPrefix::kKept
                           : prefix == "first" ? DummyPrefix::kFirst
                                               : DummyPrefix::kEvery;
}

// An added token may lie beyond the ids that the model has.
TokenizerSpec parse_tokenizer(const JsonField& field) {
  TokenizerSpec tokenizer;
  tokenizer.model_file = file_name(field["model"]);
  tokenizer.segment_prefix = field["segment_prefix"].string();
  for (const JsonField& token : field["added_tokens"].elements()) {
    tokenizer.added_tokens.push_back(parse_added_token(token, kMostTokens));
  }
  for (const JsonField& token : field["literals"].elements()) {
    tokenizer.literals.push_back(parse_added_token(token, kMostTokens));
  }
  parse_decoder(field["decoder"], tokenizer);
  return tokenizer;
}

SamplingOptions parse_sampling(const JsonField& field) {
  SamplingOptions sampling;
  sampling.temperature = static_cast<float>(field["temperature"].number(0, 1e9));
  sampling.top_p = static_cast<float>(field["top_p"].number(1e-9, 1));
  sampling.top_k = whole(field["top_k"], 0, kMost);
  sampling.min_p = static_cast<float>(field["min_p"].number(0, 1));
  return sampling;
}

std::vector<TensorSpec> parse_weights(const JsonField& field) {
  const auto names = field["inputs"].elements(), shapes = field["shapes"].elements(),
             dtypes = field["dtypes"].elements();
  if (names.empty() || names.size() != shapes.size() || names.size() != dtypes.size()) {
    field.refuse("as many inputs as shapes and dtypes, and at least one");
  }
  std::vector<TensorSpec> weights;
  for (std::size_t i = 0; i < names.size(); ++i) {
    weights.push_back({names[i].string(), shapes[i].integers(0, kMost), dtypes[i].string()});
  }
  return weights;
}

std::vector<TensorSpec> parse_tensors(const JsonField& field) {
  std::vector<TensorSpec> tensors;
  for (const JsonField& entry : field.elements()) {
    tensors.push_back({entry["name"].string(), entry["shape"].integers(0, kMost), entry["dtype"].string()});
  }
  return tensors;
}

std::vector<TensorSpec> cache_specs(const ModelSpec& model, std::int32_t capacity, const std::string& dtype) {
  std::vector<TensorSpec> specs;
  for (std::int32_t layer = 0; layer < model.num_hidden_layers; ++layer) {
    specs.push_back({"cache_" + std::to_string(layer), {2, model.num_key_value_heads, capacity, model.head_dim}, dtype});
  }
  return specs;
}

FunctionSpec parse_function(const JsonField& field, const Manifest& manifest) {
  FunctionSpec function;
  function.file = file_name(field["file"]);
  function.capacity = whole(field["capacity"], 1, kMostTokens);
  function.length = whole(field["length"], 1, function.capacity);
  function.attended = whole(field["attended"], function.length, function.capacity);
  const bool decodes = function.length == 1;
  if (field["kind"].string() != (decodes ? "decode" : "prefill")) {
    field["kind"].refuse("decode for a length of 1, else prefill");
  }
  const auto caches = cache_specs(manifest.model, function.capacity, manifest.dtype);
  std::vector<TensorSpec> inputs = {{"tokens", {function.length}, "uint32"}};
  if (decodes) {
    inputs.push_back({"positions", {manifest.model.positions()}, "int32"});
    inputs.push_back({"seen", {function.attended}, "bool"});
  } else {
    inputs.push_back({"offset", {1}, "int32"});
    inputs.push_back({"count", {1}, "int32"});
  }
  inputs.insert(inputs.end(), caches.begin(), caches.end());
  std::vector<TensorSpec> outputs = {{"logits", {1, manifest.model.vocab_size}, manifest.dtype}};
  outputs.insert(outputs.end(), caches.begin(), caches.end());
  if (parse_tensors(field["inputs"]) != inputs) {
    field["inputs"].refuse(decodes ? "tokens, positions, seen and the caches" : "tokens, offset, count and the caches");
  }
  if (parse_tensors(field["outputs"]) != outputs) field["outputs"].refuse("logits and the caches");
  return function;
}

void parse_functions(const JsonField& field, Manifest& manifest) {
  const auto entries = field.elements();
  if (entries.empty()) field.refuse("functions");
  for (const JsonField& cache : entries[0]["inputs"].elements()) {
    if (cache["name"].string() == "cache_0") manifest.dtype = cache["dtype"].string();
  }
  std::set<std::tuple<std::int32_t, std::int32_t, std::int32_t>> shapes;
  std::int32_t largest = 0;
  for (const JsonField& entry : entries) {
    manifest.functions.push_back(parse_function(entry, manifest));
    const FunctionSpec& function = manifest.functions.back();
    if (!shapes.emplace(function.capacity, function.length, function.attended).second) entry.refuse("each shape once");
    largest = std::max(largest, function.capacity);
  }
  for (const FunctionSpec& function : manifest.functions) {
    if (!shapes.contains({function.capacity, 1, function.capacity})) {
      field.refuse("a decode function over the whole of every capacity");
    }
  }
  if (largest < manifest.context) field.refuse("functions with the capacity of the context");
}

FileSpec parse_file(const JsonField& field) {
  const std::string& digest = field["sha256"].string();
  const bool is_hex = digest.find_first_not_of("0123456789abcdef") == std::string::npos;
  if (digest.size() != 64 || !is_hex) field["sha256"].refuse("64 hexadecimal digits in lower case");
  return {static_cast<std::uint64_t>(field["bytes"].integer(0, kMostBytes)), digest};
}

void parse_files(const JsonField& field, Manifest& manifest) {
  for (const auto& [name, entry] : field.members()) {
    if (!is_safe_name(name)) entry.refuse("a name of a file in the bundle");
    manifest.files.emplace(name, parse_file(entry));
  }
  std::vector<std::string> needed = manifest.weight_files;
  needed.insert(needed.end(), {manifest.tokenizer.model_file, "vectors.json"});
  for (const FunctionSpec& function : manifest.functions) needed.push_back(function.file);
  for (const std::string& name : needed) {
    if (!manifest.files.contains(name)) field.refuse("an entry for " + shown(name));
  }
}

}  // namespace

Manifest Manifest::parse(std::string_view text, const std::string& name, const std::string& mlx_version,
                         const std::string& backend) {
  json::Value value;
  try {
    value = json::parse(text);
  } catch (const std::invalid_argument& error) {
    throw Error(HELIUM_ERROR_BUNDLE, name + " is not JSON: " + error.what() + "; copy the bundle again");
  }
  const JsonField root(value, name);
  check_format(root, name);
  check_versions(root, name, mlx_version, backend);
  Manifest manifest;
  manifest.backend = root["backend"].string();
  manifest.mlx_version = root["versions"]["mlx"].string();
  manifest.model = parse_model(root["model"]);
  const std::int32_t vocab_size = manifest.model.vocab_size;
  manifest.context = whole(root["context"], 2, kMostTokens);
  manifest.tokenizer = parse_tokenizer(root["tokenizer"]);
  manifest.bos = whole(root["bos_token_id"], 0, vocab_size - 1);
  manifest.eos = root["eos_token_ids"].integers(0, kMostTokens);
  manifest.reserved = root["reserved_ids"].integers(0, kMostTokens);
  manifest.sampling = parse_sampling(root["sampling"]);
  manifest.max_tokens = whole(root["sampling"]["max_tokens"], 1, kMost);
  for (const JsonField& file : root["weights"]["files"].elements()) manifest.weight_files.push_back(file_name(file));
  manifest.weights = parse_weights(root["weights"]);
  parse_functions(root["functions"], manifest);
  parse_files(root["files"], manifest);
  return manifest;
}

}  // namespace helium
