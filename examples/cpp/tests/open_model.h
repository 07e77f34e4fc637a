// The C interface for tests: a model that closes itself, and a generation that keeps its chunks.
#pragma once

#include <string>
#include <vector>

#include "expect.h"
#include "helium.h"
#include "utf8.h"

namespace helium::testing {

struct OpenModel {
  explicit OpenModel(const std::string& bundle = bundle_directory()) {
    status = helium_open(bundle.c_str(), HELIUM_VERIFY_ALL, &handle);
    message = helium_error_message();
  }
  ~OpenModel() { helium_close(handle); }
  OpenModel(const OpenModel&) = delete;
  OpenModel& operator=(const OpenModel&) = delete;

  helium_options options(std::int32_t max_tokens) const {
    helium_options chosen = helium_default_options(handle);
    chosen.max_tokens = max_tokens;
    return chosen;
  }

  helium_status status;
  std::string message;
  helium_model* handle = nullptr;
};

struct Completion {
  helium_status status = HELIUM_OK;
  std::string message;
  std::string text;
  std::vector<std::int32_t> tokens;
  std::vector<std::string> chunks;
  helium_finish_reason reason = HELIUM_FINISH_NONE;
  helium_statistics statistics{};
  // The chunk after which the callback refuses, counted from 1; 0 is never.
  std::size_t refuse_after = 0;

  static bool add(void* context, const helium_chunk* chunk) {
    auto& self = *static_cast<Completion*>(context);
    self.chunks.emplace_back(chunk->text, chunk->length);
    self.text += self.chunks.back();
    self.tokens.push_back(chunk->token);
    self.reason = chunk->finish_reason;
    return self.chunks.size() != self.refuse_after;
  }
};

inline Completion complete(helium_model* model, const std::string& prompt, const helium_options& options,
                           std::size_t refuse_after = 0) {
  Completion result;
  result.refuse_after = refuse_after;
  result.status =
      helium_generate(model, prompt.c_str(), &options, Completion::add, nullptr, &result, &result.statistics);
  result.message = helium_error_message();
  return result;
}

}  // namespace helium::testing
