// A value of a JSON file together with its place there, so that whoever reads it need not write the errors.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"

namespace helium {

// Every function throws Error (HELIUM_ERROR_BUNDLE), which names the place, if the value is not what was asked for.
// The parsed file must outlive its fields.
class JsonField {
 public:
  JsonField(const json::Value& root, std::string file) : value_(&root), file_(std::move(file)) {}

  // A member of an object.
  JsonField operator[](std::string_view name) const;
  bool has(std::string_view name) const;
  bool is_null() const { return std::holds_alternative<std::nullptr_t>(*value_); }

  std::vector<JsonField> elements() const;
  // The members of an object, by name.
  std::vector<std::pair<std::string, JsonField>> members() const;

  std::int64_t integer(std::int64_t least, std::int64_t most) const;
  double number(double least, double most) const;
  bool boolean() const;
  const std::string& string() const;
  std::vector<std::int32_t> integers(std::int32_t least, std::int32_t most) const;

  // Throw the error that this is not `expected`.
  [[noreturn]] void refuse(const std::string& expected) const;

 private:
  JsonField(const json::Value& value, std::string file, std::string path)
      : value_(&value), file_(std::move(file)), path_(std::move(path)) {}

  template <typename T>
  const T& as(const std::string& expected) const;
  JsonField child(const json::Value& value, const std::string& step) const;

  const json::Value* value_;
  std::string file_;
  std::string path_;
};

}  // namespace helium
