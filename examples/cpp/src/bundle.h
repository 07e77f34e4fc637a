// A bundle in memory: its weights, once, and its functions, each read from its file when it is first needed. Belongs to
// the thread that opened it, but for the manifest and the tokenizer, which do not change.
#pragma once

#include <mlx/array.h>
#include <mlx/export.h>

#include <filesystem>
#include <functional>
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
  // Of caches and logits.
  const mlx::core::Dtype& dtype() const { return dtype_; }
  std::filesystem::path path_of(const std::string& name) const { return directory_ / name; }

  // Of the keys and then the values of a layer: (2, n_kv_heads, capacity, head_dim).
  mlx::core::Shape cache_shape(std::int32_t capacity) const;

  // The function for `length` tokens that sees least beyond `filled` places. The manifest must have one.
  const FunctionSpec& function_for(std::int32_t length, std::int32_t filled) const;

  // Run a function of the manifest's; return the logits and then the caches, lazily. Throws Error (HELIUM_ERROR_BUNDLE)
  // if they are not what the manifest says, or if MLX refuses the file.
  std::vector<mlx::core::array> call(const FunctionSpec& function, const mlx::core::Args& arguments);

 private:
  using Function = std::function<std::vector<mlx::core::array>(const mlx::core::Args&)>;

  const Function& function(const std::string& file);
  // What is wrong with the outputs of a function, nothing if they are as in the manifest.
  std::string fault_of(const std::vector<mlx::core::array>& outputs, std::int32_t capacity) const;
  void load_weights();

  std::filesystem::path directory_;
  std::shared_ptr<const Manifest> manifest_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<mlx::core::array> weights_;
  mlx::core::Dtype dtype_;
  std::map<std::string, Function> functions_;
};

}  // namespace helium
