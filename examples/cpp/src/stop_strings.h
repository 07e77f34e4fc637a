// Stop strings, found in the text and not in the tokens: one may begin and end inside of tokens.
#pragma once

#include <cstddef>
#include <string>
#include <unordered_map>
#include <vector>

namespace helium {

// Passes text on, holding back an end that could be the start of a stop string. Both are whole UTF-8 characters.
//
// Aho and Corasick's automaton: the time for a text does not depend on the number of stop strings. A state is the
// longest end of the text that a stop string begins with.
class StopStrings {
 public:
  explicit StopStrings(const std::vector<std::string>& stops);

  // The text that can be shown now. Once `stopped()`, nothing more comes: what follows a stop string is not shown.
  // Text that is not `visible`, such as the name of a special token, counts only as part of a stop string.
  std::string add(const std::string& text, bool visible = true);
  // What is still held back, once no more text comes.
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  struct State {
    // How long the end of the text is that it stands for.
    std::size_t depth = 0;
    // The longest stop string that ends here; 0 where none does.
    std::size_t longest = 0;
    // The state of the longest end that is shorter.
    std::size_t shorter = 0;
    std::unordered_map<char, std::size_t> following{};
  };

  // The state after one more byte.
  std::size_t step(std::size_t state, char byte) const;
  // The first `count` bytes of what is held, of those that are visible; they are held no longer.
  std::string take(std::size_t count);

  std::vector<State> states_{1};
  std::size_t state_ = 0;
  std::string held_;
  std::vector<bool> visible_;
  bool stopped_ = false;
};

}  // namespace helium
