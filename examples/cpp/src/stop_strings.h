// Stop strings, found in the text and not in the tokens: one may begin and end inside of tokens.
#pragma once

#include <string>
#include <vector>

namespace helium {

// Passes text on, holding back an end that could be the start of a stop string. Both are whole UTF-8 characters.
class StopStrings {
 public:
  explicit StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  // The text that can be shown now. Once `stopped()`, nothing more comes: what follows a stop string is not shown.
  // Text that is not `visible`, such as the name of a special token, counts only as part of a stop string.
  std::string add(const std::string& text, bool visible = true);
  // What is still held back, once no more text comes.
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  // The first `count` bytes of what is held, of those that are visible; they are held no longer.
  std::string take(std::size_t count);

  std::vector<std::string> stops_;
  std::string held_;
  std::vector<bool> visible_;
  bool stopped_ = false;
};

}  // namespace helium
