// Prompt ids to text, a chunk a token: prefill, then draw and decode until eos, a stop string, the length or a cancel.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "bundle.h"
#include "helium.h"
#include "sampler.h"

namespace helium {

struct GenerationOptions {
  std::int32_t max_tokens = 256;
  SamplingOptions sampling;
  std::vector<std::string> stops;
  bool ignore_eos = false;
};

// What a generation tells, and whom it asks. Each may refuse, which cancels.
struct Listener {
  std::function<bool()> may_go_on;
  std::function<bool(std::int32_t done, std::int32_t total)> on_progress;
  std::function<bool(const helium_chunk&)> on_chunk;
};

// Throws Error (HELIUM_ERROR_ARGUMENT) for an option out of range or text that is not UTF-8.
void check(const GenerationOptions& options);

// Complete a prompt of `tokens`. A completion ends, with reason "length", where the context does. Throws Error
// (HELIUM_ERROR_CONTEXT) for a prompt longer than that, Error (HELIUM_ERROR_LOGITS) for logits that are not numbers at
// any step, and what MLX throws.
helium_statistics generate(Bundle& bundle, const std::vector<std::int32_t>& tokens, const GenerationOptions& options,
                           const Listener& listener);

}  // namespace helium
