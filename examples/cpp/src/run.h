// One text on its way through a bundle's functions: its caches, and how many tokens they hold.
#pragma once

#include <mlx/array.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "bundle.h"

namespace helium {

class Run {
 public:
  // Keeps a reference to the bundle.
  explicit Run(Bundle& bundle) : bundle_(bundle) {}

  // Run the prompt, a part at a time; return the logits after it, (1, vocab_size), lazily. Before each part
  // `go_on(tokens done)` is asked; nothing is returned where it refuses.
  std::optional<mlx::core::array> prefill(std::span<const std::int32_t> tokens,
                                          const std::function<bool(std::int32_t)>& go_on);

  // Run one more token, uint32 (1,), which may be still to be computed; return the logits after it, lazily. Before the
  // next call they, or what was made of them, must be under way: a cache is changed in place only where nothing but the
  // next step waits for it.
  mlx::core::array step(const mlx::core::array& token);

  std::int32_t offset() const { return offset_; }

 private:
  std::int32_t next_length(std::int32_t remaining) const;
  mlx::core::array run_part(std::span<const std::int32_t> tokens, std::int32_t length);
  // `inputs` are what a function takes before the caches; `count` is how many tokens are real.
  mlx::core::array call(const FunctionSpec& function, mlx::core::Args inputs, std::int32_t count);
  void make_room(std::int32_t capacity);

  Bundle& bundle_;
  // Keys and then values of each layer, (2, n_kv_heads, capacity, head_dim).
  std::vector<mlx::core::array> caches_;
  std::int32_t capacity_ = 0;
  std::int32_t offset_ = 0;
};

}  // namespace helium
