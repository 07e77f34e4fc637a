// Runs the tests of one group: `helium_tests GROUP [BUNDLE [CASES]]`.
#include <cstdlib>
#include <iostream>
#include <string>

#include "expect.h"

namespace helium::testing {

static std::string bundle, cases;

std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

std::string bundle_directory() {
  if (bundle.empty()) throw Failure("no bundle was named");
  return bundle;
}

std::string cases_file() {
  if (cases.empty()) throw Failure("no cases were named");
  return cases;
}

static int run(const std::string& group) {
  int failed = 0, passed = 0;
  for (const Test& test : tests()) {
    if (test.group != group) continue;
    try {
      test.body();
      ++passed;
    } catch (const std::exception& error) {
      std::cerr << "FAILED " << test.name << ": " << error.what() << "\n";
      ++failed;
    }
  }
  std::cout << group << ": " << passed << " passed, " << failed << " failed\n";
  return failed == 0 && passed > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace helium::testing

int main(int argc, char** argv) {
  if (argc < 2) return EXIT_FAILURE;
  if (argc > 2) helium::testing::bundle = argv[2];
  if (argc > 3) helium::testing::cases = argv[3];
  return helium::testing::run(argv[1]);
}
