// Standard input and output of the program, read and written so that what goes wrong is known.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace helium {

// A standard stream that cannot be used as it is, in a line.
struct StreamError : std::runtime_error {
  using runtime_error::runtime_error;
};

// Keep standard streams that were closed at the start from becoming files that are opened later.
void occupy_closed_streams();

// All of standard input. Throws StreamError if it cannot be read, or is far longer than any prompt.
std::string read_input();

class StandardOutput {
 public:
  // Whether all was written. After a failure nothing more is.
  bool write(std::string_view text);

  bool failed() const { return error_ != 0; }
  bool has_written() const { return has_written_; }
  // Throws StreamError if writing failed, unless a signal ended it or the reader closed its pipe, having read enough.
  void check() const;

 private:
  // Of the write that failed, 0 while none has.
  int error_ = 0;
  bool has_written_ = false;
};

}  // namespace helium
