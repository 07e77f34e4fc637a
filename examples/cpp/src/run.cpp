#include "run.h"

#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <algorithm>
#include <limits>

namespace helium {

namespace mx = mlx::core;

std::optional<mx::array> Run::prefill(std::span<const std::int32_t> tokens,
                                      const std::function<bool(std::int32_t)>& go_on) {
  std::optional<mx::array> logits;
  while (!tokens.empty()) {
    if (!go_on(offset_)) return std::nullopt;
    const std::int32_t length = next_length(static_cast<std::int32_t>(tokens.size()));
    const std::size_t count = std::min(tokens.size(), static_cast<std::size_t>(length));
    logits = length == 1 ? step(mx::array({static_cast<std::uint32_t>(tokens.front())}))
                         : run_part(tokens.first(count), length);
    tokens = tokens.subspan(count);
    // Of a part before the last the caches alone are needed: without its logits, its head is not run.
    if (!tokens.empty()) mx::eval(caches_);
  }
  return logits;
}

mx::array Run::step(const mx::array& token) {
  const FunctionSpec& function = bundle_.function_for(1, offset_ + 1);
  std::vector<std::int32_t> positions(static_cast<std::size_t>(bundle_.manifest().model.positions()), offset_);
  positions.back() = 0;
  std::vector<std::uint8_t> seen(static_cast<std::size_t>(function.attended), 0);
  std::fill_n(seen.begin(), offset_ + 1, std::uint8_t{1});
  return call(function,
              {token, mx::array(positions.begin(), {bundle_.manifest().model.positions()}),
               mx::array(seen.begin(), {function.attended}, mx::bool_)},
              1);
}

// The largest length of which at least half is real tokens, else the smallest that fits, else a single token.
std::int32_t Run::next_length(std::int32_t remaining) const {
  std::int32_t largest = 0;
  for (const FunctionSpec& function : bundle_.manifest().functions) largest = std::max(largest, function.capacity);
  std::int32_t best = 0, smallest = std::numeric_limits<std::int32_t>::max();
  for (const FunctionSpec& function : bundle_.manifest().functions) {
    // Padding is written to the cache too.
    if (function.length == 1 || function.capacity != largest || offset_ + function.length > largest) continue;
    if (2 * std::int64_t{remaining} >= function.length) best = std::max(best, function.length);
    smallest = std::min(smallest, function.length);
  }
  if (best > 0) return best;
  return offset_ + std::int64_t{smallest} <= largest ? smallest : 1;
}

mx::array Run::run_part(std::span<const std::int32_t> tokens, std::int32_t length) {
  const auto count = static_cast<std::int32_t>(tokens.size());
  std::vector<std::int32_t> padded(tokens.begin(), tokens.end());
  padded.resize(static_cast<std::size_t>(length), 0);
  return call(bundle_.function_for(length, offset_ + length),
              {mx::array(padded.begin(), {length}, mx::uint32), mx::array({offset_}), mx::array({count})}, count);
}

mx::array Run::call(const FunctionSpec& function, mx::Args inputs, std::int32_t count) {
  make_room(function.capacity);
  std::vector<mx::array> outputs;
  {
    mx::Args arguments = std::move(inputs);
    // Moved: an update is in place if nothing but the graph holds the cache.
    arguments.insert(arguments.end(), std::make_move_iterator(caches_.begin()), std::make_move_iterator(caches_.end()));
    caches_.clear();
    arguments.insert(arguments.end(), bundle_.weights().begin(), bundle_.weights().end());
    outputs = bundle_.call(function, arguments);
  }
  caches_.assign(std::make_move_iterator(outputs.begin() + 1), std::make_move_iterator(outputs.end()));
  offset_ += count;
  return outputs.front();
}

// Grow the caches to `capacity`. What is new is zeros: masked, but still summed.
void Run::make_room(std::int32_t capacity) {
  if (capacity <= capacity_) return;
  if (caches_.empty()) {
    for (std::int32_t i = 0; i < bundle_.manifest().model.num_hidden_layers; ++i) {
      caches_.push_back(mx::zeros(bundle_.cache_shape(capacity), bundle_.dtype()));
    }
  } else {
    for (mx::array& cache : caches_) {
      cache = mx::pad(cache, std::vector<int>{2}, mx::Shape{0}, mx::Shape{capacity - capacity_});
    }
  }
  mx::eval(caches_);
  capacity_ = capacity;
}

}  // namespace helium
