// The command line of the program `helium`, read and checked before anything is opened.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "helium.h"

namespace helium {

// What is wrong with a command line, in a line.
struct UsageError : std::runtime_error {
  using runtime_error::runtime_error;
};

enum class Task { kComplete, kTokens, kCheck, kInfo, kHelp };

struct Arguments {
  Task task = Task::kComplete;
  std::string bundle;
  std::string prompt = "-";
  // What is not given is the bundle's own.
  std::optional<std::int32_t> max_tokens;
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<std::int32_t> top_k;
  std::optional<float> min_p;
  std::optional<std::uint64_t> seed;
  std::vector<const char*> stops;
  bool ignore_eos = false;
  helium_verification verification = HELIUM_VERIFY_ALL;

  // Keeps pointers to `words`, the command line without the program's name. Throws UsageError.
  explicit Arguments(const std::vector<const char*>& words);

  // Change a bundle's own options to what was given. They point into these arguments.
  void apply_to(helium_options& options) const;
};

}  // namespace helium
