// From logits to the next token, on the device and lazily: temperature, top-k, top-p, min-p, and the draw, in the order
// and with the random numbers of helium_mlx/sampling.py, so the same seed gives the same text. All of it is float32.
// It does not know biases, bans of a caller's, and the repetition penalty.
#pragma once

#include <mlx/array.h>

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace helium {

// Temperature 0 is greedy: then nothing else has an effect. top_k 0, top_p 1 and min_p 0 keep every token.
struct SamplingOptions {
  float temperature = 0;
  float top_p = 1;
  int top_k = 0;
  float min_p = 0;
  std::uint64_t seed = 0;
};

// Throws Error (HELIUM_ERROR_ARGUMENT) for a value out of range.
void check(const SamplingOptions& options);

// What the filters leave of the probabilities, float32 (1, C), not normalised again, and the tokens they belong to,
// (1, C), or none where that is the vocabulary in its order. `logits`: (1, vocab_size).
std::pair<mlx::core::array, std::optional<mlx::core::array>> weights(const mlx::core::array& logits,
                                                                     const SamplingOptions& options);

// Draws one token after another for one request. The ids in `banned` are never drawn, but by argmax.
class Sampler {
 public:
  Sampler(const SamplingOptions& options, int vocab_size, const std::vector<std::int32_t>& banned);

  // The next token, uint32 (1,), for logits (1, vocab_size) of any precision.
  mlx::core::array operator()(const mlx::core::array& logits);

 private:
  SamplingOptions options_;
  // 0, and minus infinity for what is banned: float32 (1, vocab_size).
  std::optional<mlx::core::array> adjustment_;
  std::uint64_t drawn_ = 0;
};

}  // namespace helium
