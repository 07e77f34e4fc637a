// A bundle in memory: its weights, once, and its functions, each read from its file when it is first needed. Belongs to
// the thread that opened it, but for the manifest and the tokenizer, which do not change.
#pragma once

#include <mlx/array.h>
#include <mlx/export.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "helium.h"
#include "manifest.h"
#include "tokenizer.h"

namespace helium {

// "cpu", "metal" or "cuda": what MLX computes on here by default.
std::string backend_here();

class Bundle {
 public:
  // Throws Error for a bundle that is not whole, not for this program, or damaged.
  Bundle(const std::filesystem::path& directory, helium_verification verification);

  const Manifest& manifest() const { return *manifest_; }
  const std::shared_ptr<const Manifest>& shared_manifest() const { return manifest_; }
  const std::shared_ptr<const Tokenizer>& tokenizer() const { return tokenizer_; }
  const std::vector<mlx::core::array>& weights() const { return weights_; }
  const mlx::core::Dtype& cache_dtype() const { return cache_dtype_; }
  std::filesystem::path path_of(const std::string& name) const { return directory_ / name; }

  // What runs `length` tokens over caches of `capacity`; the manifest must have it.
  const mlx::core::ImportedFunction& function(std::int32_t length, std::int32_t capacity);

 private:
  void load_weights();

  std::filesystem::path directory_;
  std::shared_ptr<const Manifest> manifest_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<mlx::core::array> weights_;
  mlx::core::Dtype cache_dtype_;
  std::map<std::string, mlx::core::ImportedFunction> functions_;
};

}  // namespace helium
