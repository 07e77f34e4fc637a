#include <random>
#include <string>

#include "expect.h"
#include "json.h"
#include "json_field.h"

namespace helium {
namespace {

using json::parse;

bool is_refused(const std::string& text) {
  try {
    parse(text);
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

std::string nested(int levels) {
  return std::string(levels, '[') + std::string(levels, ']');
}

TEST(json, values_of_every_kind_are_read) {
  const json::Value value = parse(R"( {"a": [1, -2.5e3, true, false, null, "x"], "": {}} )");
  const auto& object = std::get<json::Object>(value);
  const auto& array = std::get<json::Array>(*json::find(object, "a"));
  EXPECT_EQUAL(std::get<std::int64_t>(array[0]), 1);
  EXPECT_EQUAL(std::get<double>(array[1]), -2500.0);
  EXPECT(std::get<bool>(array[2]) && !std::get<bool>(array[3]));
  EXPECT(std::holds_alternative<std::nullptr_t>(array[4]));
  EXPECT_EQUAL(std::get<std::string>(array[5]), "x");
  EXPECT(std::get<json::Object>(*json::find(object, "")).empty());
  EXPECT(json::find(object, "b") == nullptr);
}

TEST(json, escapes_are_resolved_and_surrogate_pairs_joined) {
  EXPECT_EQUAL(std::get<std::string>(parse(R"("\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00")")), "\"\\/\b\f\n\r\té😀");
}

TEST(json, numbers_too_large_for_an_integer_become_floating) {
  EXPECT_EQUAL(std::get<std::int64_t>(parse("9223372036854775807")), INT64_MAX);
  EXPECT_EQUAL(std::get<double>(parse("9223372036854775808")), 9223372036854775808.0);
}

TEST(json, what_is_not_json_is_refused) {
  for (const char* text : {"",    " ",     "{",         "[1,]",      "{\"a\":1,}",  "[1 2]",       "01",
                           "1.",  ".5",    "+1",        "1e",        "-",           "NaN",         "Infinity",
                           "tru", "\"",    "\"\\x\"",   "\"\\u12\"", "\"\\u123g\"", "\"\\u+123\"", "\"\n\"",
                           "'a'", "{1:2}", "{\"a\" 1}", "[]]",       "nulll",       "[1]//",       "\xEF\xBB\xBF[]"}) {
    if (!is_refused(text)) throw testing::Failure(std::string("taken: ") + text);
  }
}

TEST(json, what_json_leaves_open_is_refused) {
  EXPECT(is_refused(R"({"a": 1, "a": 2})"));
  EXPECT(is_refused(R"("\ud800")"));
  EXPECT(is_refused(R"("\udc00\ud800")"));
  EXPECT(is_refused("1e999"));
  EXPECT(is_refused(std::string(401, '1')));
  EXPECT(is_refused("\"\xC3\""));
  EXPECT(is_refused("\"\xED\xA0\x80\""));
}

TEST(json, depth_is_bounded) {
  EXPECT(!is_refused(nested(json::kMaxDepth)));
  EXPECT(is_refused(nested(json::kMaxDepth + 1)));
  EXPECT(is_refused(std::string(1'000'000, '[')));
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  EXPECT(is_refused(objects));
}

TEST(json, a_text_cut_anywhere_is_refused) {
  const std::string text = R"({"a": [1.5e3, "\ud83d\ude00é", null], "b": {"c": true}})";
  for (std::size_t n = 0; n < text.size(); ++n) EXPECT(is_refused(text.substr(0, n)));
}

TEST(json, random_bytes_are_read_or_refused) {
  std::mt19937 random(1);
  const std::string alphabet = "{}[]\":,\\u0123456789eE+-.truefalsn \n\xC3\xA9";
  for (int i = 0; i < 20'000; ++i) {
    std::string text;
    for (auto n = random() % 24; n > 0; --n) text += alphabet[random() % alphabet.size()];
    is_refused(text);
  }
}

TEST(json, a_field_that_is_not_as_expected_is_named) {
  const json::Value value = parse(R"({"a": {"b": [7, "x"]}, "n": 1.5})");
  const JsonField root(value, "m.json");
  EXPECT_EQUAL(root["a"]["b"].elements()[0].integer(0, 9), 7);
  EXPECT_EQUAL(EXPECT_ERROR(HELIUM_ERROR_BUNDLE, root["a"]["b"].elements()[1].integer(0, 9)),
               "m.json has \"x\" as a.b.1; expected a whole number from 0 to 9; export the bundle anew");
  EXPECT_EQUAL(EXPECT_ERROR(HELIUM_ERROR_BUNDLE, root["n"].integer(0, 9)),
               "m.json has 1.5 as n; expected a whole number from 0 to 9; export the bundle anew");
  EXPECT_ERROR(HELIUM_ERROR_BUNDLE, root["a"]["b"].elements()[0].integer(8, 9));
  EXPECT_ERROR(HELIUM_ERROR_BUNDLE, root["a"]["c"]);
  EXPECT_ERROR(HELIUM_ERROR_BUNDLE, root["n"]["c"]);
  EXPECT_ERROR(HELIUM_ERROR_BUNDLE, root["a"].string());
  EXPECT_ERROR(HELIUM_ERROR_BUNDLE, root["n"].number(2, 3));
}

}  // namespace
}  // namespace helium
