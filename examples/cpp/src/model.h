// A bundle and the ways to it from any thread: what a handle of the C interface stands for.
#pragma once

#include <atomic>
#include <filesystem>
#include <functional>
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
  // In the models' thread, where the arrays are: close gets there.
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  // Cancel what runs and what waits; once it has ended, call `destroy`, which deletes the model, and wait for that. In
  // a callback, whose own generation has to end first, return before: that generation waits in its place.
  void close(const std::function<void()>& destroy);

  const Manifest& manifest() const { return *manifest_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }

  helium_statistics generate(const std::string& prompt, const GenerationOptions& options, Listener listener);
  helium_check_report check(const std::function<bool()>& may_go_on);

 private:
  std::atomic<bool> closing_ = false;
  std::unique_ptr<Bundle> bundle_;
  std::shared_ptr<const Manifest> manifest_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  Worker& worker_;
};

}  // namespace helium
