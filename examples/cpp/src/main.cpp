// The program `helium`: streams a completion from a bundle, or checks the bundle.
#include <algorithm>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "helium.h"

namespace {

constexpr int kFailed = 1;
constexpr int kBadUsage = 2;
constexpr int kInterrupted = 130;

constexpr const char* kUsage = R"(usage: helium --bundle DIR [--prompt TEXT] [options]
       helium --check DIR
       helium --info DIR

Streams the completion of a prompt, which is read from standard input without --prompt or with --prompt -.

  --max-tokens N     how many tokens at most (default: the bundle's)
  --temp T           0 is greedy (default: the bundle's)
  --top-p P          the most probable tokens that make up P
  --top-k K          the K most probable tokens
  --min-p P          tokens at least P times as probable as the most probable one
  --seed N           the same seed, the same text
  --stop TEXT        end before this text; may be given several times
  --ignore-eos       go on behind the end of the text
  --tokens           print the prompt's ids instead of a completion
  --skip-hashes      check the size of weights alone, not their hash
  --check DIR        run the bundle's test vectors
  --info DIR         print what the bundle is
)";

struct UsageError : std::runtime_error {
  using runtime_error::runtime_error;
};

// What a signal sets.
helium_cancellation* interruption = nullptr;
volatile std::sig_atomic_t interrupted = 0;

void interrupt(int) {
  interrupted = 1;
  helium_cancel(interruption);
}

template <typename Number>
Number number(std::string_view name, std::string_view text) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc() && end == text.data() + text.size()) return value;
  throw UsageError(std::string(name) + " is " + std::string(text) + "; it must be a whole number");
}

// std::from_chars for float is not everywhere yet.
float fraction(std::string_view name, std::string_view text) {
  std::istringstream stream{std::string(text)};
  stream.imbue(std::locale::classic());
  float value = 0;
  if (stream >> value && stream.peek() == std::char_traits<char>::eof()) return value;
  throw UsageError(std::string(name) + " is " + std::string(text) + "; it must be a number");
}

enum class Task { kComplete, kTokens, kCheck, kInfo };

// The command line. Sampling options are applied to the bundle's own once it is open.
struct Arguments {
  Task task = Task::kComplete;
  std::string bundle;
  std::string prompt = "-";
  std::vector<std::pair<std::string, std::string>> settings;
  std::vector<const char*> stops;
  bool ignore_eos = false;
  helium_verification verification = HELIUM_VERIFY_ALL;

  explicit Arguments(const std::vector<const char*>& words) {
    for (auto word = words.begin(); word != words.end(); ++word) {
      const std::string name = *word;
      if (name == "--ignore-eos") {
        ignore_eos = true;
      } else if (name == "--tokens") {
        task = Task::kTokens;
      } else if (name == "--skip-hashes") {
        verification = HELIUM_VERIFY_ALL_BUT_WEIGHTS;
      } else {
        if (word + 1 == words.end()) throw UsageError(name + " is unknown or lacks its value");
        set(name, *++word);
      }
    }
    if (bundle.empty()) throw UsageError("no bundle; name the directory that python -m helium_mlx.export wrote");
  }

  void apply_to(helium_options& options) const {
    for (const auto& [name, value] : settings) {
      if (name == "--max-tokens") options.max_tokens = number<std::int32_t>(name, value);
      if (name == "--temp") options.temperature = fraction(name, value);
      if (name == "--top-p") options.top_p = fraction(name, value);
      if (name == "--top-k") options.top_k = number<std::int32_t>(name, value);
      if (name == "--min-p") options.min_p = fraction(name, value);
      if (name != "--seed") continue;
      options.seed = number<std::uint64_t>(name, value);
      options.has_seed = true;
    }
    options.ignore_eos = ignore_eos;
    options.stop = stops.data();
    options.stop_count = stops.size();
  }

 private:
  void set(const std::string& name, const char* value) {
    constexpr std::string_view kSettings[] = {"--max-tokens", "--temp", "--top-p", "--top-k", "--min-p", "--seed"};
    if (name == "--bundle" || name == "--check" || name == "--info") {
      bundle = value;
      if (name == "--check") task = Task::kCheck;
      if (name == "--info") task = Task::kInfo;
    } else if (name == "--prompt") {
      prompt = value;
    } else if (name == "--stop") {
      stops.push_back(value);
    } else if (std::find(std::begin(kSettings), std::end(kSettings), name) != std::end(kSettings)) {
      settings.emplace_back(name, value);
    } else {
      throw UsageError(name + " is unknown");
    }
  }
};

int failed() {
  std::cerr << "helium: " << helium_error_message() << "\n";
  return kFailed;
}

// A closed pipe ends the generation silently.
bool write_chunk(void*, const helium_chunk* chunk) {
  std::cout.write(chunk->text, static_cast<std::streamsize>(chunk->length)).flush();
  return std::cout.good();
}

void print_statistics(const helium_statistics& statistics) {
  constexpr const char* kReasons[] = {"none", "eos", "stop", "length", "cancelled"};
  const int later = std::max(statistics.generated_tokens - 1, 0);
  std::fprintf(stderr, "%d tokens of prompt, %d generated (%s); first after %.3f s, then %.1f tokens/s; peak %.1f MB\n",
               statistics.prompt_tokens, statistics.generated_tokens, kReasons[statistics.finish_reason],
               statistics.prompt_seconds, later / std::max(statistics.generation_seconds, 1e-9),
               static_cast<double>(statistics.peak_bytes) / 1e6);
}

int complete(helium_model* model, const Arguments& arguments, const std::string& prompt) {
  helium_options options = helium_default_options(model);
  arguments.apply_to(options);
  options.cancellation = interruption;
  helium_statistics statistics{};
  const helium_status status =
      helium_generate(model, prompt.c_str(), &options, write_chunk, nullptr, nullptr, &statistics);
  if (status != HELIUM_OK) return failed();
  if (std::cout.good()) std::cout << std::endl;
  if (interrupted) return kInterrupted;
  print_statistics(statistics);
  return 0;
}

int print_tokens(helium_model* model, const std::string& prompt) {
  std::size_t count = 0;
  helium_status status = helium_tokenize(model, prompt.c_str(), nullptr, 0, &count);
  std::vector<std::int32_t> ids(count);
  if (status == HELIUM_OK) status = helium_tokenize(model, prompt.c_str(), ids.data(), ids.size(), &count);
  if (status != HELIUM_OK) return failed();
  for (const std::int32_t id : ids) std::cout << id << " ";
  std::cout << std::endl;
  return 0;
}

int check(helium_model* model) {
  helium_check_report report{};
  if (helium_check(model, interruption, &report) != HELIUM_OK) return failed();
  std::printf("%d vectors hold: %d tokens and %d logits, which differ by %.1e at most (allowed: %.1e)\n",
              report.vectors, report.tokens, report.logits, report.largest_difference, report.tolerance);
  return 0;
}

int print_info(const helium_model* model) {
  const helium_info info = helium_get_info(model);
  std::printf("%s, %d layers, %d tokens in the vocabulary, %.2f bits a weight, context %d, %s, MLX %s\n",
              info.model_type, info.num_hidden_layers, info.vocab_size, info.bits_per_weight, info.context,
              info.backend, info.mlx_version);
  return 0;
}

std::string prompt_of(const Arguments& arguments) {
  if (arguments.prompt != "-") return arguments.prompt;
  std::string prompt(std::istreambuf_iterator<char>(std::cin), {});
  // `echo` ends a line; as part of a prompt it would be a token.
  if (prompt.ends_with('\n')) prompt.pop_back();
  return prompt;
}

int run(const Arguments& arguments) {
  helium_model* model = nullptr;
  if (helium_open(arguments.bundle.c_str(), arguments.verification, &model) != HELIUM_OK) return failed();
  int code = 0;
  switch (arguments.task) {
    case Task::kComplete:
      code = complete(model, arguments, prompt_of(arguments));
      break;
    case Task::kTokens:
      code = print_tokens(model, prompt_of(arguments));
      break;
    case Task::kCheck:
      code = check(model);
      break;
    case Task::kInfo:
      code = print_info(model);
      break;
  }
  helium_close(model);
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<const char*> words(argv + 1, argv + argc);
  if (words.empty() || std::string_view(words[0]) == "--help") {
    std::cout << kUsage;
    return words.empty() ? kBadUsage : 0;
  }
  interruption = helium_cancellation_new();
  std::signal(SIGINT, interrupt);
  std::signal(SIGPIPE, SIG_IGN);
  int code = 0;
  try {
    code = run(Arguments(words));
  } catch (const UsageError& error) {
    std::cerr << "helium: " << error.what() << "; --help lists what there is\n";
    code = kBadUsage;
  }
  std::signal(SIGINT, SIG_DFL);
  helium_cancellation_free(interruption);
  return code;
}
