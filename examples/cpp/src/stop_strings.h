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
  std::string add(const std::string& text);
  // What is still held back, once no more text comes.
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace helium
