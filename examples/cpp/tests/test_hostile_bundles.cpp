// Bundles that are damaged, incomplete, of other versions, or made to harm: each is refused with a code and one line,
// or harmless. Function files with a right hash are programs, and run as such: what they return is looked at.
#include <mlx/export.h>
#include <mlx/ops.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "bundle.h"
#include "expect.h"
#include "files.h"
#include "json.h"
#include "manifest.h"
#include "open_model.h"
#include "sha256.h"
#include "worker.h"

namespace helium {
namespace {

namespace fs = std::filesystem;
namespace mx = mlx::core;
using testing::OpenModel;

constexpr std::uint64_t kNoLimit = 1'000'000'000;

std::string contents(const std::string& name) {
  return read_file(fs::path(testing::bundle_directory()) / name, kNoLimit);
}

std::string hash(const std::string& bytes) {
  Sha256 sha256;
  sha256.add(bytes);
  return sha256.hex_digest();
}

std::string replaced(std::string text, const std::string& old, const std::string& with) {
  const std::size_t at = text.find(old);
  if (at == std::string::npos) throw testing::Failure("the manifest has no " + old);
  return text.replace(at, old.size(), with);
}

// A copy of the bundle, made of links, some of whose files are others.
class Copy {
 public:
  Copy() : directory_(fs::temp_directory_path() / ("helium-hostile-" + std::to_string(getpid()))) {
    fs::remove_all(directory_);
    const fs::path source = fs::absolute(testing::bundle_directory());
    fs::create_directories(directory_);
    for (const auto& entry : fs::recursive_directory_iterator(source)) {
      const fs::path target = directory_ / fs::relative(entry.path(), source);
      if (entry.is_directory()) {
        fs::create_directories(target);
      } else {
        fs::create_symlink(entry.path(), target);
        names_.push_back(fs::relative(entry.path(), source).string());
      }
    }
    std::sort(names_.begin(), names_.end());
  }
  ~Copy() { fs::remove_all(directory_); }
  Copy(const Copy&) = delete;
  Copy& operator=(const Copy&) = delete;

  const std::vector<std::string>& names() const { return names_; }
  std::string path() const { return directory_.string(); }

  void write(const std::string& name, const std::string& bytes) const {
    fs::remove(directory_ / name);
    std::ofstream(directory_ / name, std::ios::binary) << bytes;
  }

  // With its size and hash in the manifest, as one would who wants it to be read.
  void write_and_sign(const std::string& name, const std::string& bytes) const {
    write(name, bytes);
    const std::string old = contents(name);
    std::string manifest = contents("manifest.json");
    const std::size_t digest = manifest.find(hash(old));
    if (digest == std::string::npos) throw testing::Failure("the manifest has no hash of " + name);
    manifest.replace(digest, 64, hash(bytes));
    const std::size_t size = manifest.rfind("\"bytes\":", digest);
    const std::size_t first = manifest.find_first_of("0123456789", size);
    manifest.replace(first, manifest.find_first_not_of("0123456789", first) - first, std::to_string(bytes.size()));
    write("manifest.json", manifest);
  }

  void remove(const std::string& name) const { fs::remove(directory_ / name); }

  void restore(const std::string& name) const {
    fs::remove(directory_ / name);
    fs::create_symlink(fs::absolute(testing::bundle_directory()) / name, directory_ / name);
  }

 private:
  fs::path directory_;
  std::vector<std::string> names_;
};

// The message with which a bundle is refused: one line that names the bundle.
std::string refused(const Copy& copy, std::vector<helium_status> statuses) {
  const OpenModel model(copy.path());
  const bool is_expected = std::find(statuses.begin(), statuses.end(), model.status) != statuses.end();
  if (!is_expected) {
    throw testing::Failure("the status is " + std::to_string(model.status) + " with the message " + model.message);
  }
  EXPECT(model.handle == nullptr);
  EXPECT(!model.message.empty() && model.message.find('\n') == std::string::npos && model.message.size() < 1000);
  return model.message;
}

bool mentions(const std::string& message, const std::string& part) {
  return message.find(part) != std::string::npos;
}

// Open what may be whole or not; use it if it is.
void try_out(const Copy& copy) {
  const OpenModel model(copy.path());
  if (model.status != HELIUM_OK) {
    EXPECT(!model.message.empty());
    return;
  }
  testing::complete(model.handle, "Once", model.options(2));
}

// Whether a manifest is taken. What it throws can only be an Error.
bool is_taken(const std::string& manifest) {
  try {
    Manifest::parse(manifest, "manifest.json", helium_mlx_version(), backend_here());
    return true;
  } catch (const Error& error) {
    EXPECT(std::string(error.what()).find('\n') == std::string::npos);
    return false;
  }
}

std::string written(const json::Value& value) {
  struct Writer {
    std::string operator()(std::nullptr_t) const { return "null"; }
    std::string operator()(bool truth) const { return truth ? "true" : "false"; }
    std::string operator()(std::int64_t number) const { return std::to_string(number); }
    std::string operator()(double number) const { return std::to_string(number); }
    std::string operator()(const std::string& text) const {
      std::string quoted = "\"";
      for (const char c : text) {
        if (c == '"' || c == '\\') quoted += '\\';
        quoted += c == '\n' ? std::string("\\n") : std::string(1, c);
      }
      return quoted + "\"";
    }
    std::string operator()(const json::Array& array) const {
      std::string text;
      for (const json::Value& element : array) text += (text.empty() ? "" : ",") + written(element);
      return "[" + text + "]";
    }
    std::string operator()(const json::Object& object) const {
      std::string text;
      for (const auto& [name, member] : object)
        text += (text.empty() ? "" : ",") + (*this)(name) + ":" + written(member);
      return "{" + text + "}";
    }
  };
  return std::visit(Writer{}, static_cast<const json::Value::variant&>(value));
}

bool is_small(const json::Value& function) {
  const auto* members = std::get_if<json::Object>(&function);
  const json::Value* capacity = members == nullptr ? nullptr : json::find(*members, "capacity");
  return capacity != nullptr && std::get<std::int64_t>(*capacity) < 4096;
}

// The manifest with its long lists cut to what is needed to try each kind of value.
void shorten(json::Value& value) {
  auto* object = std::get_if<json::Object>(&value);
  if (object == nullptr) return;
  for (auto& [name, member] : *object) {
    auto* list = std::get_if<json::Array>(&member);
    if (list != nullptr && name == "functions") std::erase_if(*list, is_small);
    if (list != nullptr && name != "functions" && list->size() > 2) list->resize(2);
    shorten(member);
  }
}

// Put each of `others` in the place of every value in turn, and call `visit`.
template <typename Visit>
void replace_each(json::Value& value, const std::vector<json::Value>& others, int siblings, const Visit& visit) {
  const json::Value own = value;
  for (const json::Value& other : others) {
    value = other;
    visit();
  }
  value = own;
  int n = 0;
  if (auto* array = std::get_if<json::Array>(&value)) {
    for (json::Value& element : *array) {
      if (n++ < siblings) replace_each(element, others, siblings, visit);
    }
  }
  if (auto* object = std::get_if<json::Object>(&value)) {
    for (auto& member : *object) replace_each(member.value, others, siblings, visit);
  }
}

TEST(hostile_bundles, the_bundle_itself_is_taken) {
  const Copy copy;
  const OpenModel model(copy.path());
  EXPECT_EQUAL(model.message, "");
  EXPECT(is_taken(contents("manifest.json")));
}

TEST(hostile_bundles, a_directory_without_a_manifest_is_refused) {
  const Copy copy;
  copy.remove("manifest.json");
  EXPECT(mentions(refused(copy, {HELIUM_ERROR_FILE}), "manifest.json cannot be read (No such file or directory)"));
  fs::create_directory(copy.path() + "/manifest.json");
  EXPECT(mentions(refused(copy, {HELIUM_ERROR_FILE}), "it is not a regular file"));
}

TEST(hostile_bundles, other_versions_are_refused) {
  const Copy copy;
  const std::string manifest = contents("manifest.json");
  const std::string mlx = std::string("\"mlx\": \"") + helium_mlx_version() + "\"";
  copy.write("manifest.json", replaced(manifest, "\"format_version\": 2", "\"format_version\": 3"));
  EXPECT(mentions(refused(copy, {HELIUM_ERROR_VERSION}), "has format_version 3; this program reads 2"));
  copy.write("manifest.json", replaced(manifest, "\"helium-bundle\"", "\"other\""));
  EXPECT(mentions(refused(copy, {HELIUM_ERROR_BUNDLE}), "is of no bundle"));
  for (const char* other : {"0.31.2", "1.32.4", "0.33.0", "", "0", "0.", "x"}) {
    copy.write("manifest.json", replaced(manifest, mlx, std::string("\"mlx\": \"") + other + "\""));
    EXPECT(mentions(refused(copy, {HELIUM_ERROR_VERSION}), "was made with MLX \"" + std::string(other)));
  }
  copy.write("manifest.json", replaced(manifest, "\"backend\": \"" + backend_here() + "\"", "\"backend\": \"abacus\""));
  EXPECT(mentions(refused(copy, {HELIUM_ERROR_VERSION}), "exported for the backend \"abacus\""));
}

TEST(hostile_bundles, every_file_is_needed_whole_and_unchanged) {
  const Copy copy;
  for (const std::string& name : copy.names()) {
    if (name == "manifest.json") continue;
    std::string bytes = contents(name);
    copy.remove(name);
    EXPECT(mentions(refused(copy, {HELIUM_ERROR_FILE}), name));
    copy.write(name, bytes.substr(0, bytes.size() - 1));
    EXPECT(mentions(refused(copy, {HELIUM_ERROR_BUNDLE}), " bytes; the manifest says "));
    copy.write(name, bytes + "x");
    EXPECT(mentions(refused(copy, {HELIUM_ERROR_BUNDLE}), " bytes; the manifest says "));
    bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
    copy.write(name, bytes);
    EXPECT(mentions(refused(copy, {HELIUM_ERROR_BUNDLE}), "has the SHA-256"));
    copy.restore(name);
  }
}

TEST(hostile_bundles, a_pipe_is_not_waited_for) {
  const Copy copy;
  copy.remove("vectors.json");
  EXPECT_EQUAL(mkfifo((copy.path() + "/vectors.json").c_str(), 0600), 0);
  EXPECT(mentions(refused(copy, {HELIUM_ERROR_FILE}), "it is not a regular file"));
}

TEST(hostile_bundles, weights_are_hashed_unless_the_caller_has_done_so) {
  const Copy copy;
  std::string bytes = contents("weights.safetensors");
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  copy.write("weights.safetensors", bytes);
  refused(copy, {HELIUM_ERROR_BUNDLE});
  helium_model* model = nullptr;
  EXPECT_EQUAL(helium_open(copy.path().c_str(), HELIUM_VERIFY_ALL_BUT_WEIGHTS, &model), HELIUM_OK);
  helium_close(model);
}

TEST(hostile_bundles, a_manifest_cut_anywhere_is_refused) {
  const std::string manifest = contents("manifest.json");
  const std::size_t end = manifest.find_last_of('}');
  for (std::size_t i = 0; i < 150; ++i) EXPECT(!is_taken(manifest.substr(0, end * i / 150)));
  for (std::size_t i = 0; i < 20; ++i) EXPECT(!is_taken(manifest.substr(0, end - i)));
}

TEST(hostile_bundles, a_manifest_with_changed_bytes_is_refused_or_harmless) {
  const Copy copy;
  const std::string manifest = contents("manifest.json");
  std::mt19937 random(2);
  for (int i = 0; i < 300; ++i) {
    std::string changed = manifest;
    // The first 4 kB have most of the fields.
    const std::size_t range = i % 2 == 0 ? std::min<std::size_t>(manifest.size(), 4096) : manifest.size();
    const std::size_t at = random() % range;
    changed[at] = i % 3 == 0 ? "09{}[]\",:-"[random() % 10] : static_cast<char>(changed[at] ^ (1 << random() % 8));
    if (!is_taken(changed) || i % 10 != 0) continue;
    copy.write("manifest.json", changed);
    try_out(copy);
  }
}

TEST(hostile_bundles, a_manifest_with_a_value_of_another_kind_is_refused_or_harmless) {
  json::Value manifest = json::parse(contents("manifest.json"));
  shorten(manifest);
  EXPECT(is_taken(written(manifest)));
  const std::vector<json::Value> others = {json::Value(nullptr),
                                           json::Value(true),
                                           json::Value(std::int64_t{-1}),
                                           json::Value(INT64_MAX),
                                           json::Value(1e300),
                                           json::Value(std::string("../../etc/passwd")),
                                           json::Value(std::string(300, 'x')),
                                           json::Value(json::Array{}),
                                           json::Value(json::Object{})};
  int taken = 0, tried = 0;
  replace_each(manifest, others, 1, [&] {
    ++tried;
    taken += is_taken(written(manifest)) ? 1 : 0;
  });
  EXPECT(tried > 500);
  // Names of tensors and of the model, the versions of what plays no role, and the like.
  EXPECT(taken < tried / 4);
}

TEST(hostile_bundles, a_manifest_without_one_of_its_members_is_refused) {
  const json::Value manifest = json::parse(contents("manifest.json"));
  for (const json::Member& left_out : std::get<json::Object>(manifest)) {
    json::Object without = std::get<json::Object>(manifest);
    std::erase_if(without, [&](const json::Member& member) { return member.name == left_out.name; });
    if (is_taken(written(json::Value(std::move(without))))) throw testing::Failure("taken without " + left_out.name);
  }
}

TEST(hostile_bundles, deep_and_large_manifests_are_refused) {
  const Copy copy;
  copy.write("manifest.json", std::string(1'000'000, '['));
  EXPECT(mentions(refused(copy, {HELIUM_ERROR_BUNDLE}), "more than 32 levels"));
  copy.write("manifest.json", std::string(8'000'001, ' '));
  EXPECT(mentions(refused(copy, {HELIUM_ERROR_FILE}), "at most 8000000 are read"));
}

TEST(hostile_bundles, names_that_leave_the_bundle_are_refused) {
  const std::string manifest = contents("manifest.json");
  for (const char* name : {"../weights.safetensors", "/etc/passwd", "a/../../b", "functions//x", "", "a\\\\b"}) {
    for (const char* old : {"\"weights.safetensors\"", "\"functions/decode_256.mlxfn\"", "\"tokenizer.model\""}) {
      EXPECT(!is_taken(replaced(manifest, old, "\"" + std::string(name) + "\"")));
    }
  }
}

TEST(hostile_bundles, weights_that_are_signed_and_wrong_are_refused) {
  const Copy copy;
  const std::string weights = contents("weights.safetensors");
  const std::vector<std::string> wrong = {"",
                                          "x",
                                          weights.substr(0, 8),
                                          weights.substr(0, 1000),
                                          weights.substr(0, weights.size() / 2),
                                          std::string(16, '\xFF'),
                                          std::string(8, '\xFF') + weights.substr(8),
                                          replaced(weights, "F32", "F16"),
                                          replaced(weights, "model.", "xodel."),
                                          replaced(weights, "[", "{")};
  for (const std::string& bytes : wrong) {
    copy.write_and_sign("weights.safetensors", bytes);
    refused(copy, {HELIUM_ERROR_BUNDLE, HELIUM_ERROR_RUNTIME});
  }
}

using Arrays = std::vector<mx::array>;

// A function file that takes what the one for `length` tokens takes, and returns what `change` makes of the logits and
// caches that are right but for their values.
std::string exported(std::int32_t length, const std::function<Arrays(Arrays)>& change) {
  const fs::path path = fs::temp_directory_path() / ("helium-hostile-" + std::to_string(getpid()) + ".mlxfn");
  Worker::shared().run([&] {
    const Bundle bundle(testing::bundle_directory(), HELIUM_VERIFY_ALL);
    const ModelSpec& model = bundle.manifest().model;
    Arrays inputs = {mx::zeros({length}, mx::uint32)};
    if (length > 1) {
      inputs.insert(inputs.end(), 2, mx::zeros({1}, mx::int32));
    } else {
      inputs.push_back(mx::zeros({model.positions()}, mx::int32));
      inputs.push_back(mx::zeros({256}, mx::bool_));
    }
    const std::size_t first = inputs.size(), count = static_cast<std::size_t>(model.num_hidden_layers);
    inputs.insert(inputs.end(), count, mx::zeros(bundle.cache_shape(512), bundle.dtype()));
    inputs.insert(inputs.end(), bundle.weights().begin(), bundle.weights().end());
    const auto function = [&](const Arrays& given) {
      const mx::array logit = mx::astype(mx::sum(given[0]), mx::float32);
      Arrays outputs = {mx::broadcast_to(logit, {1, model.vocab_size})};
      outputs.insert(outputs.end(), given.begin() + first, given.begin() + first + count);
      return change(outputs);
    };
    mx::export_function(path.string(), function, inputs);
  });
  const std::string bytes = read_file(path, kNoLimit);
  fs::remove(path);
  return bytes;
}

// A change of the logits, made of each token's id: float32 (1, vocab_size).
std::function<Arrays(Arrays)> with_logits(const std::function<mx::array(const mx::array&)>& logits) {
  return [logits](Arrays given) {
    const int vocab_size = given[0].shape(-1);
    // With a zero of the tokens, else MLX would take the logits for constants of the file.
    const mx::array zero = given[0] - given[0];
    given[0] = logits(mx::reshape(mx::arange(vocab_size), {1, vocab_size}) + zero);
    return given;
  };
}

mx::array rising(const mx::array& ids) {
  return ids;
}

// What a completion and a check of the bundle fail with, in one line.
struct Failures {
  explicit Failures(const Copy& copy) {
    const OpenModel model(copy.path());
    EXPECT_EQUAL(model.message, "");
    completion = testing::complete(model.handle, "Once", model.options(3));
    EXPECT(completion.message.find('\n') == std::string::npos && completion.message.size() < 1000);
    check = helium_check(model.handle, nullptr, nullptr);
  }

  testing::Completion completion;
  helium_status check;
};

TEST(hostile_bundles, functions_that_are_signed_and_return_what_the_manifest_does_not_say_are_refused) {
  const Copy copy;
  const std::pair<const char*, std::function<Arrays(Arrays)>> wrong[] = {
      {"gives 0 arrays", [](Arrays) { return Arrays{}; }},
      {"gives 1 arrays", [](Arrays given) { return Arrays{given[0]}; }},
      {"float32 (1,4) as its output 0",
       [](Arrays given) {
         given[0] = mx::slice(given[0], {0, 0}, {1, 4});
         return given;
       }},
      {"int8 (1,2048) as its output 0",
       [](Arrays given) {
         given[0] = mx::astype(given[0], mx::int8);
         return given;
       }},
      {"float16 (2,2,512,64) as its output 2",
       [](Arrays given) {
         given[2] = mx::astype(given[2], mx::float16);
         return given;
       }},
      {"float32 (2,2,1,64) as its output 6",
       [](Arrays given) {
         given[6] = mx::slice(given[6], {0, 0, 0, 0}, {2, 2, 1, 64});
         return given;
       }},
  };
  for (const std::int32_t length : {1, 16}) {
    const std::string name = length == 1 ? "functions/decode_256.mlxfn" : "functions/prefill_16_512.mlxfn";
    for (const auto& [fault, change] : wrong) {
      copy.write_and_sign(name, exported(length, change));
      const Failures failures(copy);
      EXPECT_EQUAL(failures.completion.status, HELIUM_ERROR_BUNDLE);
      if (!mentions(failures.completion.message, name + " gives") || !mentions(failures.completion.message, fault)) {
        throw testing::Failure(failures.completion.message);
      }
      EXPECT_EQUAL(failures.check, HELIUM_ERROR_BUNDLE);
    }
    copy.restore(name);
  }
}

TEST(hostile_bundles, functions_that_are_signed_and_compute_something_else_fail_the_check) {
  const Copy copy;
  copy.write_and_sign("functions/prefill_16_512.mlxfn", exported(16, with_logits(rising)));
  const Failures failures(copy);
  EXPECT_EQUAL(failures.completion.message, "");
  EXPECT_EQUAL(failures.check, HELIUM_ERROR_CHECK);
  // Logits of one number in memory: they are not read as if there were more.
  copy.write_and_sign("functions/prefill_16_512.mlxfn", exported(16, [](Arrays given) { return given; }));
  EXPECT_EQUAL(Failures(copy).check, HELIUM_ERROR_CHECK);
}

TEST(hostile_bundles, logits_that_are_not_numbers_end_a_completion_with_its_first_token_or_a_later_one) {
  const Copy copy;
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  const auto one_logit = [](float id, float value) {
    return with_logits([=](const mx::array& ids) {
      return mx::where(mx::equal(ids, mx::array(id)), mx::array(value), ids);
    });
  };
  const std::function<Arrays(Arrays)> wrong[] = {
      with_logits([=](const mx::array& ids) { return ids * mx::array(nan); }),
      one_logit(0, nan),
      one_logit(9, nan),
      one_logit(2047, nan),
      one_logit(7, infinity),
      with_logits([=](const mx::array& ids) { return mx::full(ids.shape(), -infinity); }),
      with_logits([](const mx::array& ids) { return mx::zeros_like(ids); }),
  };
  for (const std::int32_t length : {1, 16}) {
    const std::string name = length == 1 ? "functions/decode_256.mlxfn" : "functions/prefill_16_512.mlxfn";
    for (const auto& change : wrong) {
      copy.write_and_sign(name, exported(length, change));
      const OpenModel model(copy.path());
      for (const float temperature : {0.0F, 1.0F}) {
        helium_options options = model.options(3);
        options.ignore_eos = true;
        options.temperature = temperature;
        const auto completion = testing::complete(model.handle, "Once", options);
        EXPECT_EQUAL(completion.status, HELIUM_ERROR_LOGITS);
        EXPECT(mentions(completion.message, "the model's logits are NaN, infinite or all the same: "));
        EXPECT_EQUAL(completion.tokens.size(), length == 1 ? 1U : 0U);
      }
      EXPECT_EQUAL(helium_check(model.handle, nullptr, nullptr), HELIUM_ERROR_CHECK);
    }
    // Tokens that a model rules out are no fault.
    const auto ruled_out = [=](const mx::array& ids) {
      return mx::where(mx::less(ids, mx::array(9.0F)), mx::array(-infinity), ids);
    };
    copy.write_and_sign(name, exported(length, with_logits(ruled_out)));
    EXPECT_EQUAL(Failures(copy).completion.message, "");
    copy.restore(name);
  }
}

TEST(hostile_bundles, a_tokenizer_that_gives_ids_beyond_the_vocabulary_is_refused) {
  const Copy copy;
  for (const char* id : {"2048", "1048575"}) {
    const std::string token = "\"added_tokens\": [{\"content\": \"Once\", \"id\": " + std::string(id) + "},";
    copy.write("manifest.json", replaced(contents("manifest.json"), "\"added_tokens\": [", token));
    const Failures failures(copy);
    EXPECT_EQUAL(failures.completion.status, HELIUM_ERROR_BUNDLE);
    EXPECT_EQUAL(failures.completion.message, "the tokenizer gave the id " + std::string(id) +
                                                  "; the model has 0 to 2047: export the bundle anew");
    EXPECT_EQUAL(failures.check, HELIUM_ERROR_CHECK);
  }
}

TEST(hostile_bundles, function_files_that_are_signed_and_hold_another_function_or_none_are_refused) {
  const Copy copy;
  const std::string name = "functions/prefill_16_512.mlxfn";
  for (const std::string& bytes : {contents("functions/decode_256.mlxfn"), std::string("x"), std::string()}) {
    copy.write_and_sign(name, bytes);
    const Failures failures(copy);
    EXPECT_EQUAL(failures.completion.status, HELIUM_ERROR_BUNDLE);
    EXPECT(mentions(failures.completion.message, name + " cannot be run: "));
    EXPECT_EQUAL(failures.check, HELIUM_ERROR_BUNDLE);
  }
}

TEST(hostile_bundles, a_tokenizer_that_is_signed_and_wrong_is_refused_or_harmless) {
  const Copy copy;
  const std::string model = contents("tokenizer.model");
  std::mt19937 random(3);
  for (const std::string& bytes : {std::string(), std::string("x"), model.substr(0, model.size() / 2)}) {
    copy.write_and_sign("tokenizer.model", bytes);
    try_out(copy);
  }
  for (int i = 0; i < 12; ++i) {
    std::string changed = model;
    changed[random() % changed.size()] ^= static_cast<char>(1 << random() % 8);
    copy.write_and_sign("tokenizer.model", changed);
    try_out(copy);
  }
}

TEST(hostile_bundles, vectors_that_are_signed_and_wrong_fail_the_check) {
  const Copy copy;
  const std::string vectors = contents("vectors.json");
  const auto check = [&](const std::string& bytes) {
    copy.write_and_sign("vectors.json", bytes);
    const OpenModel model(copy.path());
    EXPECT_EQUAL(model.status, HELIUM_OK);
    return helium_check(model.handle, nullptr, nullptr);
  };
  const json::Value parsed = json::parse(vectors);
  const auto with = [&](const std::string& field, const json::Value& value) {
    json::Value changed = parsed;
    auto& root = std::get<json::Object>(changed);
    const auto list = std::find_if(root.begin(), root.end(), [](const json::Member& m) { return m.name == "vectors"; });
    auto& first = std::get<json::Object>(std::get<json::Array>(list->value)[0]);
    for (json::Member& member : first) {
      if (member.name == field) member.value = value;
    }
    return written(changed);
  };
  EXPECT_EQUAL(check(vectors), HELIUM_OK);
  EXPECT_EQUAL(check(with("prompt", std::string("another"))), HELIUM_ERROR_CHECK);
  EXPECT_EQUAL(check(with("text", std::string("another"))), HELIUM_ERROR_CHECK);
  EXPECT_EQUAL(check(with("pieces", json::Array{})), HELIUM_ERROR_BUNDLE);
  EXPECT_EQUAL(check(with("ids", json::Array(40, std::int64_t{1}))), HELIUM_ERROR_CHECK);
  EXPECT_EQUAL(check(with("greedy_ids", json::Array{std::int64_t{1}})), HELIUM_ERROR_BUNDLE);
  EXPECT_EQUAL(check(with("ids", json::Array{std::int64_t{1} << 40})), HELIUM_ERROR_BUNDLE);
  const std::size_t value = vectors.find_first_of("0123456789", vectors.find("\"values\":"));
  EXPECT_EQUAL(check(std::string(vectors).insert(value, "9")), HELIUM_ERROR_CHECK);
  EXPECT_EQUAL(check("{}"), HELIUM_ERROR_BUNDLE);
  EXPECT_EQUAL(check(std::string(100'000, '[')), HELIUM_ERROR_BUNDLE);
  EXPECT_EQUAL(check("{\"tolerance\": 1, \"vectors\": []}"), HELIUM_ERROR_BUNDLE);
}

}  // namespace
}  // namespace helium
