// The one kind of exception that the library's own code throws; c_api.cpp turns it into a code and a message.
#pragma once

#include <stdexcept>
#include <string>

#include "helium.h"

namespace helium {

class Error : public std::runtime_error {
 public:
  Error(helium_status status, const std::string& message) : std::runtime_error(message), status(status) {}

  helium_status status;
};

}  // namespace helium
