#include "check.h"

#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <sstream>
#include <stdexcept>

#include "error.h"
#include "files.h"
#include "json_field.h"
#include "run.h"
#include "utf8.h"

namespace helium {
namespace {

namespace mx = mlx::core;

constexpr std::uint64_t kMostVectorBytes = 16'000'000;
constexpr double kMostLogit = 1e9;
constexpr std::int32_t kMostId = 1 << 20;

// Logits to compare, after the token at `position` of prompt and completion.
struct ExpectedLogits {
  std::int64_t position = 0;
  std::vector<std::int32_t> ids;
  std::vector<double> values;
  double largest = 0;
};

struct Vector {
  std::string prompt;
  std::vector<std::int32_t> ids;
  std::vector<std::int32_t> greedy_ids;
  std::vector<std::string> pieces;
  std::string text;
  // The smallest lead of a greedy token over the next best, relative to the largest logit: where it is below the
  // tolerance, another machine may rightly draw another token.
  double margin = 0;
  std::vector<ExpectedLogits> logits;
};

Vector parse_vector(const JsonField& field, const Manifest& manifest) {
  const std::int32_t last_id = manifest.model.vocab_size - 1;
  Vector vector;
  vector.prompt = field["prompt"].string();
  vector.ids = field["ids"].integers(0, last_id);
  vector.greedy_ids = field["greedy_ids"].integers(0, last_id);
  for (const JsonField& piece : field["pieces"].elements()) vector.pieces.push_back(piece.string());
  vector.text = field["text"].string();
  vector.margin = field["margin"].number(0, kMostLogit);
  const auto most = static_cast<std::int64_t>(vector.ids.size() + vector.greedy_ids.size());
  if (vector.ids.empty() || vector.greedy_ids.empty() || most > manifest.context) {
    field.refuse("a prompt and a completion within the context");
  }
  if (vector.pieces.size() != vector.greedy_ids.size() + 1) field["pieces"].refuse("one more than greedy_ids");
  for (const JsonField& entry : field["logits"].elements()) {
    ExpectedLogits expected;
    expected.position = entry["position"].integer(0, most - 1);
    expected.ids = entry["ids"].integers(0, last_id);
    for (const JsonField& value : entry["values"].elements()) {
      expected.values.push_back(value.number(-kMostLogit, kMostLogit));
    }
    expected.largest = entry["largest"].number(0, kMostLogit);
    if (expected.values.size() != expected.ids.size()) entry["values"].refuse("one for each id");
    vector.logits.push_back(std::move(expected));
  }
  return vector;
}

std::string listed(const std::vector<std::int32_t>& ids) {
  std::string text;
  for (std::size_t i = 0; i < std::min<std::size_t>(ids.size(), 12); ++i) text += " " + std::to_string(ids[i]);
  return text + (ids.size() > 12 ? " …" : "");
}

// One vector on its way through the checks.
class VectorCheck {
 public:
  VectorCheck(Bundle& bundle, const Vector& vector, double tolerance, helium_check_report& report)
      : bundle_(bundle), vector_(vector), tolerance_(tolerance), report_(report) {}

  void pass(const std::function<bool()>& may_go_on) {
    const auto go_on = [&](std::int32_t) { return may_go_on(); };
    const std::vector<std::int32_t> ids = bundle_.tokenizer()->encode(vector_.prompt);
    if (ids != vector_.ids) fail("the ids are" + listed(ids) + "; expected" + listed(vector_.ids));
    Run run(bundle_);
    std::optional<mx::array> logits = run.prefill(ids, go_on);
    for (std::size_t i = 0; logits; ++i) {
      // What is read below has no strides.
      logits = mx::contiguous(mx::astype(*logits, mx::float32));
      mx::eval(*logits);
      compare(*logits, run.offset() - 1);
      if (i == vector_.greedy_ids.size()) break;
      compare_token(*logits, i);
      const bool is_needed = i + 1 < vector_.greedy_ids.size() || is_compared(run.offset());
      if (!is_needed) break;
      logits = may_go_on() ? std::optional(run.step(mx::array({static_cast<std::uint32_t>(vector_.greedy_ids[i])}))) : std::nullopt;
    }
    if (!logits) throw Error(HELIUM_ERROR_CANCELLED, "the check was cancelled before its end");
    compare_pieces();
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(HELIUM_ERROR_CHECK, "the vector with the prompt " + shown(vector_.prompt, 40) + " fails: " + what);
  }

  bool is_compared(std::int32_t position) const {
    const auto is_there = [&](const ExpectedLogits& expected) { return expected.position == position; };
    return std::any_of(vector_.logits.begin(), vector_.logits.end(), is_there);
  }

  void compare(const mx::array& logits, std::int32_t position) {
    const float* values = logits.data<float>();
    for (const ExpectedLogits& expected : vector_.logits) {
      if (expected.position != position) continue;
      for (std::size_t i = 0; i < expected.ids.size(); ++i) {
        compare_value(values[expected.ids[i]], expected.values[i], expected.largest, position);
      }
    }
  }

  void compare_value(double value, double expected, double largest, std::int32_t position) {
    const double difference = std::abs(value - expected) / std::max(largest, 1e-30);
    // Not `>`: NaN must fail too.
    if (!(difference <= tolerance_)) {
      std::ostringstream message;
      message << "a logit at position " << position << " is " << value << "; expected " << expected << ", within "
              << tolerance_ << " of " << largest;
      fail(message.str());
    }
    report_.largest_difference = std::max(report_.largest_difference, difference);
    ++report_.logits;
  }

  void compare_token(const mx::array& logits, std::size_t i) {
    const auto token = static_cast<std::int32_t>(mx::argmax(logits, -1).item<std::uint32_t>());
    const std::int32_t expected = vector_.greedy_ids[i];
    const float* values = logits.data<float>();
    const bool is_tie =
        vector_.margin < tolerance_ && values[token] - values[expected] <= tolerance_ * std::abs(values[token]);
    if (token != expected && !is_tie) {
      fail("greedy token " + std::to_string(i) + " is " + std::to_string(token) + "; expected " +
           std::to_string(expected));
    }
    ++report_.tokens;
  }

  void compare_pieces() const {
    const auto detokenizer = bundle_.tokenizer()->detokenizer();
    const auto& eos = bundle_.manifest().eos;
    std::string text;
    for (std::size_t i = 0; i < vector_.pieces.size(); ++i) {
      const bool is_rest = i == vector_.greedy_ids.size();
      const bool is_eos = !is_rest && std::find(eos.begin(), eos.end(), vector_.greedy_ids[i]) != eos.end();
      const std::string piece = is_rest  ? detokenizer->finish()
                                : is_eos ? ""
                                         : detokenizer->add(bundle_.tokenizer()->piece(vector_.greedy_ids[i]));
      if (piece != vector_.pieces[i]) {
        fail("piece " + std::to_string(i) + " is " + shown(piece) + "; expected " + shown(vector_.pieces[i]));
      }
      text += piece;
    }
    if (text != vector_.text) fail("the text is " + shown(text) + "; expected " + shown(vector_.text));
  }

  Bundle& bundle_;
  const Vector& vector_;
  double tolerance_;
  helium_check_report& report_;
};

// Ids that no vector's completion has: bytes of characters, and of none.
void check_stream(const Bundle& bundle, const JsonField& field) {
  const Tokenizer& tokenizer = *bundle.tokenizer();
  const auto detokenizer = tokenizer.detokenizer();
  const std::vector<std::int32_t> ids = field["ids"].integers(0, kMostId);
  const auto pieces = field["pieces"].elements();
  if (pieces.size() != ids.size() + 1) field["pieces"].refuse("one more than ids");
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const std::string piece = i < ids.size() ? detokenizer->add(tokenizer.piece(ids[i])) : detokenizer->finish();
    if (piece == pieces[i].string()) continue;
    throw Error(HELIUM_ERROR_CHECK, "the stream of ids" + listed(ids) + " gives " + shown(piece) + " as piece " +
                                        std::to_string(i) + "; expected " + shown(pieces[i].string()));
  }
}

}  // namespace

helium_check_report check_vectors(Bundle& bundle, const std::function<bool()>& may_go_on) {
  const std::filesystem::path path = bundle.path_of("vectors.json");
  json::Value value;
  try {
    value = json::parse(read_file(path, kMostVectorBytes));
  } catch (const std::invalid_argument& error) {
    throw Error(HELIUM_ERROR_BUNDLE, path.string() + " is not JSON: " + error.what() + "; copy the bundle again");
  }
  const JsonField root(value, path.string());
  helium_check_report report{};
  report.tolerance = root["tolerance"].number(0, 1);
  const auto vectors = root["vectors"].elements();
  if (vectors.empty()) root["vectors"].refuse("at least one vector");
  for (const JsonField& field : vectors) {
    const Vector vector = parse_vector(field, bundle.manifest());
    VectorCheck(bundle, vector, report.tolerance, report).pass(may_go_on);
    ++report.vectors;
  }
  for (const JsonField& field : root["streams"].elements()) check_stream(bundle, field);
  return report;
}

}  // namespace helium
