#include "stop_strings.h"

#include <algorithm>
#include <cstddef>
#include <string_view>

namespace helium {
namespace {

// The length of the longest end of `text` that `stop` begins with; shorter than `stop`.
std::size_t overlap(std::string_view text, std::string_view stop) {
  for (std::size_t n = std::min(text.size(), stop.size() - 1); n > 0; --n) {
    if (text.substr(text.size() - n) == stop.substr(0, n)) return n;
  }
  return 0;
}

}  // namespace

std::string StopStrings::add(const std::string& text, bool visible) {
  if (stopped_) return "";
  held_ += text;
  visible_.resize(held_.size(), visible);
  std::size_t first = std::string::npos, keep = 0;
  for (const std::string& stop : stops_) {
    first = std::min(first, held_.find(stop));
    keep = std::max(keep, overlap(held_, stop));
  }
  stopped_ = first != std::string::npos;
  const std::string shown = take(stopped_ ? first : held_.size() - keep);
  if (stopped_) take(held_.size());
  return shown;
}

std::string StopStrings::finish() {
  return take(held_.size());
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
