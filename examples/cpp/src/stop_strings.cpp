#include "stop_strings.h"

#include <algorithm>

namespace helium {

StopStrings::StopStrings(const std::vector<std::string>& stops) {
  // By depth, so that a state's shorter ones are known before it.
  std::vector<std::size_t> order;
  for (const std::string& stop : stops) {
    std::size_t state = 0;
    for (const char byte : stop) {
      const auto [place, is_new] = states_[state].following.try_emplace(byte, states_.size());
      const std::size_t next = place->second;
      if (is_new) states_.push_back({.depth = states_[state].depth + 1});
      state = next;
    }
    states_[state].longest = stop.size();
  }
  for (const auto& [byte, first] : states_[0].following) order.push_back(first);
  for (std::size_t i = 0; i < order.size(); ++i) {
    for (const auto& [byte, next] : states_[order[i]].following) {
      State& state = states_[next];
      state.shorter = step(states_[order[i]].shorter, byte);
      if (state.longest == 0) state.longest = states_[state.shorter].longest;
      order.push_back(next);
    }
  }
}

std::string StopStrings::add(const std::string& text, bool visible) {
  if (stopped_) return "";
  std::size_t first = std::string::npos, end = held_.size();
  held_ += text;
  visible_.resize(held_.size(), visible);
  for (const char byte : text) {
    state_ = step(state_, byte);
    ++end;
    if (const std::size_t length = states_[state_].longest; length > 0) first = std::min(first, end - length);
  }
  stopped_ = first != std::string::npos;
  const std::string shown = take(stopped_ ? first : held_.size() - states_[state_].depth);
  if (stopped_) take(held_.size());
  return shown;
}

std::string StopStrings::finish() {
  return take(held_.size());
}

std::size_t StopStrings::step(std::size_t state, char byte) const {
  for (;; state = states_[state].shorter) {
    const auto next = states_[state].following.find(byte);
    if (next != states_[state].following.end()) return next->second;
    if (state == 0) return 0;
  }
}

std::string StopStrings::take(std::size_t count) {
  std::string shown;
  for (std::size_t i = 0; i < count; ++i) {
    if (visible_[i]) shown += held_[i];
  }
  held_.erase(0, count);
  visible_.erase(visible_.begin(), visible_.begin() + static_cast<std::ptrdiff_t>(count));
  return shown;
}

}  // namespace helium
