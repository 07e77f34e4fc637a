// Tests without a framework: a test is a function that throws where a claim does not hold, in a group that ctest runs.
#pragma once

#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "error.h"

namespace helium::testing {

struct Test {
  std::string group;
  std::string name;
  std::function<void()> body;
};

std::vector<Test>& tests();

struct Registration {
  Registration(const char* group, const char* name, std::function<void()> body) {
    tests().push_back({group, name, std::move(body)});
  }
};

struct Failure : std::runtime_error {
  using runtime_error::runtime_error;
};

template <typename Got, typename Wanted>
void expect_equal(const Got& got, const Wanted& wanted, const char* expression, int line) {
  if (got == wanted) return;
  std::ostringstream message;
  message << "line " << line << ": " << expression << " is " << got << "; expected " << wanted;
  throw Failure(message.str());
}

inline void expect(bool holds, const char* expression, int line) {
  if (!holds) throw Failure("line " + std::to_string(line) + ": not " + expression);
}

// The message of the Error with that status that a function throws.
template <typename Function>
std::string expect_error(helium_status status, const Function& function, int line) {
  try {
    function();
  } catch (const Error& error) {
    expect_equal(error.status, status, error.what(), line);
    return error.what();
  }
  throw Failure("line " + std::to_string(line) + ": no error");
}

// The directory of a bundle of the demo checkpoint in float32.
std::string bundle_directory();
// What write_python_cases.py wrote, or what else a group compares with.
std::string cases_file();

}  // namespace helium::testing

#define TEST(group, name)                                                                \
  static void name();                                                                    \
  static const ::helium::testing::Registration registration_##name(#group, #name, name); \
  static void name()

#define EXPECT(condition) ::helium::testing::expect(static_cast<bool>(condition), #condition, __LINE__)
#define EXPECT_EQUAL(got, wanted) ::helium::testing::expect_equal(got, wanted, #got, __LINE__)
#define EXPECT_ERROR(status, expression) ::helium::testing::expect_error(status, [&] { expression; }, __LINE__)
