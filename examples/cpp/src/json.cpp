#include "json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <locale>
#include <sstream>
#include <stdexcept>

#include "utf8.h"

namespace helium::json {
namespace {

constexpr std::size_t kMaxDigits = 400;

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Value whole() {
    Value value = any(0);
    skip_space();
    if (at_ < text_.size()) fail("something after the end");
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw std::invalid_argument(what + " at byte " + std::to_string(at_));
  }

  char next() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void skip_space() {
    while (at_ < text_.size() && std::string_view(" \t\n\r").find(text_[at_]) != std::string_view::npos) ++at_;
  }

  bool take(char c) {
    skip_space();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  void expect(char c) {
    if (!take(c)) fail(std::string("no '") + c + "'");
  }

  bool take_word(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Value any(int depth) {
    skip_space();
    switch (next()) {
      case '{':
        return object(depth + 1);
      case '[':
        return array(depth + 1);
      case '"':
        return string();
      default:
        break;
    }
    if (take_word("null")) return nullptr;
    if (take_word("true")) return true;
    if (take_word("false")) return false;
    return number();
  }

  void enter(int depth) {
    if (depth > kMaxDepth) fail("more than " + std::to_string(kMaxDepth) + " levels");
    ++at_;
  }

  Value array(int depth) {
    enter(depth);
    Array values;
    if (take(']')) return values;
    do {
      values.push_back(any(depth));
    } while (take(','));
    expect(']');
    return values;
  }

  Value object(int depth) {
    enter(depth);
    Object members;
    if (take('}')) return members;
    do {
      skip_space();
      if (next() != '"') fail("no name");
      std::string name = string();
      expect(':');
      members.push_back({std::move(name), any(depth)});
    } while (take(','));
    expect('}');
    std::sort(members.begin(), members.end(), [](const Member& a, const Member& b) { return a.name < b.name; });
    const auto same = [](const Member& a, const Member& b) { return a.name == b.name; };
    const auto twice = std::adjacent_find(members.begin(), members.end(), same);
    if (twice != members.end()) fail("the name " + shown(twice->name) + " twice in the object that ends");
    return members;
  }

  std::string string() {
    ++at_;
    std::string result;
    while (true) {
      if (at_ >= text_.size()) fail("a string without an end");
      const char c = text_[at_++];
      if (c == '"') return result;
      if (static_cast<unsigned char>(c) < 0x20) fail("a control character in a string");
      if (c == '\\') {
        append_escaped(result);
      } else {
        result += c;
      }
    }
  }

  void append_escaped(std::string& result) {
    constexpr std::string_view kLetters = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
    const char letter = next();
    ++at_;
    if (letter == 'u') return append_utf8(result, escaped_character());
    const std::size_t which = letter == '\0' ? std::string_view::npos : kLetters.find(letter);
    if (which == std::string_view::npos) fail("an unknown escape");
    result += kMeanings[which];
  }

  char32_t escaped_character() {
    const char32_t first = four_digits();
    if (first < 0xD800 || first > 0xDFFF) return first;
    if (first > 0xDBFF || !take_word("\\u")) fail("half a surrogate pair");
    const char32_t second = four_digits();
    if (second < 0xDC00 || second > 0xDFFF) fail("half a surrogate pair");
    return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
  }

  char32_t four_digits() {
    const std::string_view digits = text_.substr(std::min(at_, text_.size()), 4);
    unsigned value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    if (error != std::errc() || digits.size() < 4 || end != digits.data() + 4) fail("no four hexadecimal digits");
    at_ += 4;
    return value;
  }

  void skip_digits() {
    if (!is_digit(next())) fail("no value");
    while (is_digit(next())) ++at_;
  }

  Value number() {
    const std::size_t start = at_;
    bool whole = true;
    if (next() == '-') ++at_;
    if (next() == '0') {
      ++at_;
    } else {
      skip_digits();
    }
    if (next() == '.') {
      whole = false;
      ++at_;
      skip_digits();
    }
    if (next() == 'e' || next() == 'E') {
      whole = false;
      ++at_;
      if (next() == '+' || next() == '-') ++at_;
      skip_digits();
    }
    const std::string_view digits = text_.substr(start, at_ - start);
    if (digits.size() > kMaxDigits) fail("a number of " + std::to_string(digits.size()) + " characters");
    std::int64_t integer = 0;
    if (whole && std::from_chars(digits.data(), digits.data() + digits.size(), integer).ec == std::errc()) {
      return integer;
    }
    return floating(digits);
  }

  // By a stream, because not every library has std::from_chars for double, and std::strtod follows the locale.
  double floating(std::string_view digits) {
    std::istringstream stream{std::string(digits)};
    stream.imbue(std::locale::classic());
    double value = 0;
    if (!(stream >> value) || !std::isfinite(value)) fail("a number that is too large");
    return value;
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace

const Value* find(const Object& object, std::string_view name) {
  const auto before = [](const Member& member, std::string_view wanted) { return member.name < wanted; };
  const auto found = std::lower_bound(object.begin(), object.end(), name, before);
  return found != object.end() && found->name == name ? &found->value : nullptr;
}

Value parse(std::string_view text) {
  if (!is_utf8(text)) throw std::invalid_argument("bytes that are not UTF-8");
  return Parser(text).whole();
}

}  // namespace helium::json
