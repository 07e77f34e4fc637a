#include "stop_strings.h"

#include <algorithm>
#include <string_view>
#include <utility>

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

std::string StopStrings::add(const std::string& text) {
  if (stopped_) return "";
  held_ += text;
  std::size_t first = std::string::npos, keep = 0;
  for (const std::string& stop : stops_) {
    first = std::min(first, held_.find(stop));
    keep = std::max(keep, overlap(held_, stop));
  }
  stopped_ = first != std::string::npos;
  std::string shown = held_.substr(0, stopped_ ? first : held_.size() - keep);
  held_.erase(0, stopped_ ? held_.size() : shown.size());
  return shown;
}

std::string StopStrings::finish() {
  return std::exchange(held_, "");
}

}  // namespace helium
