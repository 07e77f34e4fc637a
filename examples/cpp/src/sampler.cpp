#include "sampler.h"

#include <mlx/ops.h>
#include <mlx/random.h>
#include <mlx/transforms.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

#include "draw_key.h"
#include "error.h"

namespace helium {
namespace {

namespace mx = mlx::core;

// Beyond this nothing changes any more, and float32 stays finite.
constexpr float kLeastTemperature = 1e-20F;
// 2^32, which the largest random bits round to, becomes the largest float32 below 1.
constexpr float kBitsToUnit = 0x1p-32F * (1 - 0x1p-24F);

template <typename T>
void require(bool holds, const char* name, T value, const char* allowed) {
  if (holds) return;
  std::ostringstream message;
  message << name << " is " << value << "; it must be " << allowed;
  throw Error(HELIUM_ERROR_ARGUMENT, message.str());
}

// Random uint32 (1, size).
mx::array random_bits(const mx::array& key, int size) {
  // Splitting a key is the one way to MLX's random bits as they are: each half of a new key has 32 of them.
  const int pairs = (size + 1) / 2;
  const mx::array bits = mx::reshape(mx::random::split(key, pairs), {1, 2 * pairs});
  return mx::slice(bits, {0, 0}, {1, size});
}

// The draw is a race: each token arrives after an exponential time whose rate is its weight, and the first is taken.
mx::array race(const mx::array& left, const std::optional<mx::array>& tokens, mx::array bits) {
  if (tokens) bits = mx::take_along_axis(bits, *tokens, -1);
  // Minus a number between 0 and 1, neither included: float32 is finest near 0, where the winners are.
  const mx::array uniform = bits * mx::array(-kBitsToUnit) - mx::array(0x1p-33F);
  // Minus the times. Where the weight is 0 it takes forever.
  const mx::array times = mx::log1p(uniform) / left;
  if (!tokens) return mx::argmax(times, -1);
  return mx::reshape(mx::take_along_axis(*tokens, mx::argmax(times, -1, true), -1), {1});
}

}  // namespace

void check(const SamplingOptions& options) {
  const auto& [temperature, top_p, top_k, min_p, seed] = options;
  require(temperature >= 0 && std::isfinite(temperature), "temperature", temperature, "a finite number, 0 or more");
  require(top_p > 0 && top_p <= 1, "top_p", top_p, "above 0 and at most 1");
  require(top_k >= 0, "top_k", top_k, "a whole number, 0 or more");
  require(min_p >= 0 && min_p <= 1, "min_p", min_p, "from 0 to 1");
}

std::pair<mx::array, std::optional<mx::array>> weights(const mx::array& logits, const SamplingOptions& options) {
  const int vocab_size = logits.shape(-1);
  const mx::array zero(0.0F);
  std::optional<mx::array> tokens;
  mx::array scaled = mx::astype(logits, mx::float32);
  if (options.temperature != 1) scaled = scaled / mx::array(std::max(options.temperature, kLeastTemperature));
  if (options.top_k > 0 && options.top_k < vocab_size) {
    const int first = vocab_size - options.top_k;
    tokens = mx::slice(mx::argpartition(scaled, first, -1), {0, first}, {1, vocab_size});
    scaled = mx::take_along_axis(scaled, *tokens, -1);
  }
  mx::array left = mx::softmax(scaled, -1);
  if (options.top_p < 1) {
    if (!tokens) {
      // Tokens below this cannot even together reach 1 - top_p. Equal zeros make sorting twice as fast or more.
      const mx::array negligible((1 - options.top_p) / static_cast<float>(vocab_size));
      left = mx::where(left < negligible, zero, left);
    }
    const mx::array order = mx::argsort(left, -1);
    left = mx::take_along_axis(left, order, -1);
    const mx::array more_probable = mx::cumsum(left, -1, true, false);
    left = mx::where(more_probable < mx::array(options.top_p), left, zero);
    tokens = tokens ? mx::take_along_axis(*tokens, order, -1) : order;
  }
  if (options.min_p > 0) left = mx::where(left < mx::array(options.min_p) * mx::max(left, -1, true), zero, left);
  return {left, tokens};
}

Sampler::Sampler(const SamplingOptions& options, int vocab_size, const std::vector<std::int32_t>& banned)
    : options_(options) {
  if (options.temperature == 0 || banned.empty()) return;
  std::vector<float> values(static_cast<std::size_t>(vocab_size), 0.0F);
  for (const std::int32_t id : banned) {
    if (id >= 0 && id < vocab_size) values[static_cast<std::size_t>(id)] = -std::numeric_limits<float>::infinity();
  }
  adjustment_ = mx::array(values.begin(), {1, vocab_size});
}

mx::array Sampler::operator()(const mx::array& logits) {
  if (options_.temperature == 0) return mx::argmax(logits, -1);
  const auto [left, tokens] = weights(adjustment_ ? logits + *adjustment_ : logits, options_);
  return race(left, tokens, random_bits(mx::random::key(draw_key(options_.seed, drawn_++)), logits.shape(-1)));
}

}  // namespace helium
