// The program `helium`: streams a completion from a bundle, or checks the bundle.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "arguments.h"
#include "helium.h"
#include "standard_streams.h"
#include "utf8.h"

namespace {

using helium::Arguments;
using helium::StandardOutput;
using helium::StreamError;
using helium::Task;
using helium::UsageError;

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
  --ignore-eos       continue after the end of the text
  --tokens           print the prompt's ids instead of a completion
  --skip-hashes      check the size of weights alone, not their hash
  --check DIR        run the bundle's test vectors
  --info DIR         print what the bundle is
  --help             print this
)";

// What Ctrl-C cancels, and whether anything heeds it now.
helium_cancellation* interruption = nullptr;
volatile sig_atomic_t is_heeded = 0;
volatile sig_atomic_t interrupted = 0;

// Opening a bundle and reading a prompt have nothing to finish.
void interrupt(int) {
  if (!is_heeded) _exit(kInterrupted);
  interrupted = 1;
  helium_cancel(interruption);
}

// As long as it lives, somebody heeds the interruption.
struct Heeding {
  Heeding() { is_heeded = 1; }
  ~Heeding() { is_heeded = 0; }
  Heeding(const Heeding&) = delete;
  Heeding& operator=(const Heeding&) = delete;
};

// Without SA_RESTART: a write that waits for a reader is given up, too.
void catch_interrupts() {
  struct sigaction action = {};
  action.sa_handler = interrupt;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
}

int fail_with(const std::string& message, int status = kFailed) {
  std::fprintf(stderr, "helium: %s\n", helium::one_line(message).c_str());
  return status;
}

int failed() {
  return fail_with(helium_error_message());
}

// Write all that a task prints. Throws StreamError if that fails.
int print(const std::string& text) {
  StandardOutput output;
  output.write(text);
  output.check();
  return 0;
}

bool write_chunk(void* output, const helium_chunk* chunk) {
  return static_cast<StandardOutput*>(output)->write({chunk->text, chunk->length});
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
  const Heeding heeding;
  helium_statistics statistics{};
  StandardOutput output;
  const helium_status status =
      helium_generate(model, prompt.c_str(), &options, write_chunk, nullptr, &output, &statistics);
  // A text that broke off ends its line too, and one that was refused has none.
  if (status == HELIUM_OK || output.has_written()) output.write("\n");
  if (status != HELIUM_OK) return failed();
  if (interrupted) return kInterrupted;
  output.check();
  if (!output.failed()) print_statistics(statistics);
  return 0;
}

int print_tokens(helium_model* model, const std::string& prompt) {
  std::size_t count = 0;
  helium_status status = helium_tokenize(model, prompt.c_str(), nullptr, 0, &count);
  std::vector<std::int32_t> ids(count);
  if (status == HELIUM_OK) status = helium_tokenize(model, prompt.c_str(), ids.data(), ids.size(), &count);
  if (status != HELIUM_OK) return failed();
  std::string line;
  for (const std::int32_t id : ids) line += std::to_string(id) + " ";
  return print(line + "\n");
}

int check(helium_model* model) {
  const Heeding heeding;
  helium_check_report report{};
  const helium_status status = helium_check(model, interruption, &report);
  if (interrupted) return kInterrupted;
  if (status != HELIUM_OK) return failed();
  char line[200];
  std::snprintf(line, sizeof line,
                "%d vectors hold: %d tokens and %d logits, which differ by %.1e at most (allowed: %.1e)\n",
                report.vectors, report.tokens, report.logits, report.largest_difference, report.tolerance);
  return print(line);
}

int print_info(const helium_model* model) {
  const helium_info info = helium_get_info(model);
  char numbers[200];
  std::snprintf(numbers, sizeof numbers, "%d layers, %d tokens in the vocabulary, %.2f bits a weight, context %d",
                info.num_hidden_layers, info.vocab_size, info.bits_per_weight, info.context);
  const std::string line = std::string(info.model_type) + ", " + numbers + ", " + info.backend + ", MLX ";
  return print(helium::one_line(line + info.mlx_version) + "\n");
}

// The text in what a program or an editor wrote, as Python's `--prompt -` has it: without a byte order mark, lines end
// in "\n", and the last end, which would be a token of the prompt, is not meant.
std::string as_text(std::string_view input) {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  if (input.starts_with(kByteOrderMark)) input.remove_prefix(kByteOrderMark.size());
  std::string text;
  for (std::size_t i = 0; i < input.size(); ++i) {
    if (!input.substr(i).starts_with("\r\n")) text += input[i];
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

std::string prompt_of(const Arguments& arguments) {
  if (arguments.prompt != "-") return arguments.prompt;
  const std::string prompt = as_text(helium::read_input());
  if (prompt.find('\0') != std::string::npos) {
    throw StreamError("standard input has a zero byte, where the prompt would end; remove it");
  }
  return prompt;
}

int run(const Arguments& arguments) {
  helium_model* opened = nullptr;
  if (helium_open(arguments.bundle.c_str(), arguments.verification, &opened) != HELIUM_OK) return failed();
  const std::unique_ptr<helium_model, decltype(&helium_close)> model(opened, helium_close);
  switch (arguments.task) {
    case Task::kTokens:
      return print_tokens(model.get(), prompt_of(arguments));
    case Task::kCheck:
      return check(model.get());
    case Task::kInfo:
      return print_info(model.get());
    default:
      return complete(model.get(), arguments, prompt_of(arguments));
  }
}

int run(const std::vector<const char*>& words) {
  try {
    const Arguments arguments(words);
    if (arguments.task != Task::kHelp) return run(arguments);
    return print(kUsage);
  } catch (const UsageError& error) {
    return fail_with(std::string(error.what()) + "; --help lists what there is", kBadUsage);
  } catch (const StreamError& error) {
    return fail_with(error.what());
  }
}

}  // namespace

int main(int argc, char** argv) {
  helium::occupy_closed_streams();
  const std::unique_ptr<helium_cancellation, decltype(&helium_cancellation_free)> cancellation(
      helium_cancellation_new(), helium_cancellation_free);
  interruption = cancellation.get();
  catch_interrupts();
  signal(SIGPIPE, SIG_IGN);
  return run({argv + 1, argv + argc});
}
