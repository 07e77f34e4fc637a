#include "generation.h"

#include <mlx/memory.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>

#include "error.h"
#include "run.h"
#include "stop_strings.h"
#include "utf8.h"

namespace helium {
namespace {

namespace mx = mlx::core;
using Clock = std::chrono::steady_clock;

// Buffers of sizes that no longer come up pile up otherwise.
constexpr std::int32_t kTokensPerClearing = 256;

// What a request may bring, as in Python: the tables of so many take a few milliseconds and megabytes to make.
constexpr std::size_t kMostStopStrings = 1000;
constexpr std::size_t kMostStopCharacters = 20'000;

double seconds_between(Clock::time_point start, Clock::time_point end) {
  return std::chrono::duration<double>(end - start).count();
}

std::size_t count_characters(const std::string& text) {
  const auto begins = [](char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; };
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), begins));
}

// Turns the tokens of a completion into text, and says when it ends and why.
class CompletionText {
 public:
  CompletionText(const Bundle& bundle, const GenerationOptions& options)
      : tokenizer_(*bundle.tokenizer()), detokenizer_(tokenizer_.detokenizer()), stops_(options.stops) {
    if (!options.ignore_eos) eos_ = bundle.manifest().eos;
  }

  // The text that can be shown with this token.
  std::string add(std::int32_t token, helium_finish_reason& reason) {
    std::string text;
    if (std::find(eos_.begin(), eos_.end(), token) != eos_.end()) {
      reason = HELIUM_FINISH_EOS;
    } else {
      text = stops_.add(detokenizer_->add(tokenizer_.piece(token)));
      text += stops_.add(tokenizer_.special_name(token), false);
    }
    if (reason != HELIUM_FINISH_NONE && !stops_.stopped()) {
      text += stops_.add(detokenizer_->finish());
      text += stops_.finish();
    }
    if (stops_.stopped()) reason = HELIUM_FINISH_STOP;
    return text;
  }

 private:
  const Tokenizer& tokenizer_;
  std::unique_ptr<Detokenizer> detokenizer_;
  StopStrings stops_;
  std::vector<std::int32_t> eos_;
};

// How many tokens may follow a prompt: to the end of the context, and one after a prompt that fills it, since the last
// token is not run.
std::int32_t room_after(const Manifest& manifest, std::size_t prompt) {
  const std::int64_t room = manifest.context - static_cast<std::int64_t>(prompt);
  if (room >= 0) return std::max(static_cast<std::int32_t>(room), 1);
  throw Error(HELIUM_ERROR_CONTEXT, "the prompt has " + std::to_string(prompt) + " tokens; at most " +
                                        std::to_string(manifest.context) +
                                        " fit, the bundle's context: shorten the prompt");
}

void check_ids(const std::vector<std::int32_t>& tokens, std::int32_t vocab_size) {
  for (const std::int32_t token : tokens) {
    if (token >= 0 && token < vocab_size) continue;
    throw Error(HELIUM_ERROR_BUNDLE, "the tokenizer gave the id " + std::to_string(token) + "; the model has 0 to " +
                                         std::to_string(vocab_size - 1) + ": export the bundle anew");
  }
}

// A token that is being computed, uint32 (1,), and the highest and the lowest of the logits that it was chosen by.
struct Drawn {
  mx::array token;
  mx::array highest;
  mx::array lowest;
};

// Start computing the next token.
Drawn draw(Sampler& sampler, const mx::array& logits) {
  Drawn drawn{sampler(logits), mx::max(logits, -1), mx::min(logits, -1)};
  mx::async_eval({drawn.token, drawn.highest, drawn.lowest});
  return drawn;
}

float number_in(mx::array& scalar) {
  if (scalar.dtype() == mx::bfloat16) return static_cast<float>(scalar.item<mx::bfloat16_t>());
  if (scalar.dtype() == mx::float16) return static_cast<float>(scalar.item<mx::float16_t>());
  return scalar.item<float>();
}

// Wait for a token. Throws Error (HELIUM_ERROR_LOGITS) unless its logits have numbers, some larger than others. Memory
// that ran out gives logits that are all the same on some backends.
std::int32_t read_token(Drawn& drawn) {
  const auto id = drawn.token.item<std::uint32_t>();
  const float highest = number_in(drawn.highest);
  if (std::isfinite(highest) && highest > number_in(drawn.lowest)) return static_cast<std::int32_t>(id);
  throw Error(HELIUM_ERROR_LOGITS,
              "the model's logits are NaN, infinite or all the same: its weights are damaged, its dtype overflows or "
              "memory ran out; run the check, or export a bundle in float32");
}

}  // namespace

void check(const GenerationOptions& options) {
  check(options.sampling);
  if (options.max_tokens < 1) {
    throw Error(HELIUM_ERROR_ARGUMENT,
                "max_tokens is " + std::to_string(options.max_tokens) + "; it must be at least 1");
  }
  std::size_t characters = 0;
  for (const std::string& stop : options.stops) characters += count_characters(stop);
  if (options.stops.size() > kMostStopStrings || characters > kMostStopCharacters) {
    throw Error(HELIUM_ERROR_ARGUMENT, "there are " + std::to_string(options.stops.size()) + " stop strings of " +
                                           std::to_string(characters) + " characters in all; at most " +
                                           std::to_string(kMostStopStrings) + " of " +
                                           std::to_string(kMostStopCharacters) + " are looked for: give fewer");
  }
  for (const std::string& stop : options.stops) {
    if (stop.empty() || !is_utf8(stop)) {
      throw Error(HELIUM_ERROR_ARGUMENT,
                  "a stop string is " + shown(stop) + "; it must be UTF-8 of at least one character");
    }
  }
}

helium_statistics generate(Bundle& bundle, const std::vector<std::int32_t>& tokens, const GenerationOptions& options,
                           const Listener& listener) {
  const Manifest& manifest = bundle.manifest();
  check_ids(tokens, manifest.model.vocab_size);
  const std::int32_t count = std::min(options.max_tokens, room_after(manifest, tokens.size()));
  const auto total = static_cast<std::int32_t>(tokens.size());
  helium_statistics statistics{};
  statistics.prompt_tokens = total;
  const Clock::time_point start = Clock::now();
  const auto end_with = [&](helium_finish_reason reason) {
    statistics.finish_reason = reason;
    statistics.peak_bytes = mx::get_peak_memory();
    return statistics;
  };

  Run run(bundle);
  const std::optional<mx::array> prompt_logits = run.prefill(tokens, [&](std::int32_t done) {
    return listener.may_go_on() && (done == 0 || listener.on_progress(done, total));
  });
  if (!prompt_logits) {
    listener.on_chunk({"", 0, -1, HELIUM_FINISH_CANCELLED});
    return end_with(HELIUM_FINISH_CANCELLED);
  }
  Sampler sampler(options.sampling, manifest.model.vocab_size, manifest.reserved);
  CompletionText completion(bundle, options);
  std::optional<Drawn> drawn = draw(sampler, *prompt_logits);
  Clock::time_point first_token = start;
  bool refused = false;
  while (true) {
    // While a token is read and its text is handed out, the step after it is under way.
    std::optional<Drawn> following;
    if (statistics.generated_tokens + 1 < count) following = draw(sampler, run.step(drawn->token));
    const std::int32_t token = read_token(*drawn);
    if (++statistics.generated_tokens == 1) {
      first_token = Clock::now();
      statistics.prompt_seconds = seconds_between(start, first_token);
      refused = !listener.on_progress(total, total);
    }
    statistics.generation_seconds = seconds_between(first_token, Clock::now());
    if (refused) return end_with(HELIUM_FINISH_CANCELLED);
    const bool cancelled = !listener.may_go_on();
    auto reason = statistics.generated_tokens == count ? HELIUM_FINISH_LENGTH : HELIUM_FINISH_NONE;
    if (cancelled) reason = HELIUM_FINISH_CANCELLED;
    const std::string text = completion.add(token, reason);
    refused = !listener.on_chunk({text.c_str(), text.size(), token, reason});
    if (reason != HELIUM_FINISH_NONE) return end_with(reason);
    drawn = std::move(following);
    if (statistics.generated_tokens % kTokensPerClearing == 0) mx::clear_cache();
  }
}

}  // namespace helium
