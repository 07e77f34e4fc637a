// The same ids, pieces, tokens and texts as helium_mlx in Python, for cases that write_python_cases.py wrote.
#include <filesystem>
#include <string>
#include <vector>

#include "expect.h"
#include "files.h"
#include "json.h"
#include "json_field.h"
#include "manifest.h"
#include "open_model.h"
#include "tokenizer.h"

namespace helium {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMostBytes = 16'000'000;
constexpr std::int32_t kMostId = 1 << 20;

json::Value read(const fs::path& path) {
  return json::parse(read_file(path, kMostBytes));
}

Tokenizer tokenizer() {
  const fs::path bundle = testing::bundle_directory();
  const std::string text = read_file(bundle / "manifest.json", kMostBytes);
  const testing::OpenModel model;
  const std::string backend = helium_get_info(model.handle).backend;
  const Manifest manifest = Manifest::parse(text, "manifest.json", helium_mlx_version(), backend);
  return Tokenizer(manifest, bundle / manifest.tokenizer.model_file);
}

std::vector<std::string> strings(const JsonField& field) {
  std::vector<std::string> values;
  for (const JsonField& element : field.elements()) values.push_back(element.string());
  return values;
}

std::string listed(const std::vector<std::string>& pieces) {
  std::string text;
  for (const std::string& piece : pieces) text += shown(piece) + " ";
  return text;
}

helium_options options_of(const JsonField& request, const testing::OpenModel& model, std::vector<const char*>& stops) {
  helium_options options = model.options(static_cast<std::int32_t>(request["max_tokens"].integer(1, kMostId)));
  const auto number = [&](const char* name, float otherwise) {
    return request.has(name) ? static_cast<float>(request[name].number(0, 1e9)) : otherwise;
  };
  options.temperature = number("temperature", 0);
  options.top_p = number("top_p", 1);
  options.min_p = number("min_p", 0);
  options.top_k = static_cast<std::int32_t>(number("top_k", 0));
  options.has_seed = request.has("seed");
  if (options.has_seed) options.seed = static_cast<std::uint64_t>(request["seed"].integer(0, INT64_MAX));
  if (request.has("stop")) {
    for (const JsonField& stop : request["stop"].elements()) stops.push_back(stop.string().c_str());
  }
  options.stop = stops.data();
  options.stop_count = stops.size();
  return options;
}

TEST(python_cases, texts_get_the_same_ids) {
  const json::Value cases = read(testing::cases_file());
  const Tokenizer own = tokenizer();
  const auto encodings = JsonField(cases, "cases")["encodings"].elements();
  EXPECT(encodings.size() > 100);
  for (const JsonField& encoding : encodings) {
    if (own.encode(encoding["text"].string()) == encoding["ids"].integers(0, kMostId)) continue;
    throw testing::Failure("other ids for " + shown(encoding["text"].string(), 500));
  }
}

TEST(python_cases, ids_get_the_same_pieces) {
  const json::Value cases = read(testing::cases_file());
  const Tokenizer own = tokenizer();
  const auto decodings = JsonField(cases, "cases")["decodings"].elements();
  EXPECT(decodings.size() > 100);
  for (const JsonField& decoding : decodings) {
    const auto detokenizer = own.detokenizer();
    std::vector<std::string> pieces;
    for (const std::int32_t id : decoding["ids"].integers(0, kMostId))
      pieces.push_back(detokenizer->add(own.piece(id)));
    pieces.push_back(detokenizer->finish());
    EXPECT_EQUAL(listed(pieces), listed(strings(decoding["pieces"])));
  }
}

TEST(python_cases, prompts_get_the_same_completions) {
  const json::Value cases = read(testing::cases_file());
  const testing::OpenModel model;
  const std::vector<std::string> reasons = {"", "eos", "stop", "length", "cancelled"};
  for (const JsonField& request : JsonField(cases, "cases")["completions"].elements()) {
    std::vector<const char*> stops;
    const helium_options options = options_of(request, model, stops);
    const auto completion = testing::complete(model.handle, request["prompt"].string(), options);
    EXPECT_EQUAL(completion.message, "");
    if (completion.tokens == request["tokens"].integers(0, kMostId) &&
        completion.chunks == strings(request["chunks"])) {
      EXPECT_EQUAL(reasons[completion.reason], request["finish_reason"].string());
      continue;
    }
    throw testing::Failure("another completion of " + shown(request["prompt"].string()) + ": " + completion.text);
  }
}

}  // namespace
}  // namespace helium
