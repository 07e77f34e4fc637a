// A bundle and the ways to it from any thread: what a handle of the C interface stands for.
#pragma once

#include <atomic>
#include <filesystem>
#include <memory>
#include <string>

#include "bundle.h"
#include "generation.h"
#include "helium.h"
#include "worker.h"

namespace helium {

class Model {
 public:
  Model(const std::filesystem::path& directory, helium_verification verification);
  // Cancels what runs and what waits, and waits for its end.
  ~Model();

  const Manifest& manifest() const { return *manifest_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  // Whether a callback asks.
  bool is_busy_thread() const { return worker_.is_current(); }

  helium_statistics generate(const std::string& prompt, const GenerationOptions& options, Listener listener);
  helium_check_report check();

 private:
  std::atomic<bool> closing_ = false;
  std::unique_ptr<Bundle> bundle_;
  std::shared_ptr<const Manifest> manifest_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  Worker& worker_;
};

}  // namespace helium
