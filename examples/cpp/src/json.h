// Strict JSON (RFC 8259) of a stranger's file. Also refused: bytes that are not UTF-8, names that stand twice in an
// object, lone surrogates, numbers that are not finite, and more than kMaxDepth levels, so that nothing recurses deep.
// The size is the caller's to bound: a parsed text takes at most some forty times its bytes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace helium::json {

inline constexpr int kMaxDepth = 32;

struct Member;
class Value;
using Array = std::vector<Value>;
// Sorted by name.
using Object = std::vector<Member>;

// A number is an int64_t if it is written as a whole number that fits, else a double.
class Value : public std::variant<std::nullptr_t, bool, std::int64_t, double, std::string, Array, Object> {
 public:
  using variant::variant;
};

struct Member {
  std::string name;
  Value value;
};

// The value of a name, nullptr if there is none.
const Value* find(const Object& object, std::string_view name);

// Parse a whole text. Throws std::invalid_argument, whose message says what is wrong and at which byte.
Value parse(std::string_view text);

}  // namespace helium::json
