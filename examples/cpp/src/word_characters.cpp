#include "word_characters.h"

#include <algorithm>
#include <iterator>

namespace helium {
namespace {

struct Range {
  char32_t first;
  char32_t last;
};

// Written by tests/write_word_characters.py.
constexpr Range kRanges[] = {
#include "word_characters.inc"
};

}  // namespace

bool is_word_character(char32_t character) {
  const auto ends_before = [](const Range& range, char32_t wanted) { return range.last < wanted; };
  const auto* found = std::lower_bound(std::begin(kRanges), std::end(kRanges), character, ends_before);
  return found != std::end(kRanges) && found->first <= character;
}

}  // namespace helium
