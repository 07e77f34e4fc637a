#include "json_field.h"

#include <sstream>

#include "error.h"
#include "utf8.h"

namespace helium {
namespace {

std::string described(const json::Value& value) {
  struct Describer {
    std::string operator()(std::nullptr_t) const { return "null"; }
    std::string operator()(bool truth) const { return truth ? "true" : "false"; }
    std::string operator()(std::int64_t number) const { return std::to_string(number); }
    std::string operator()(double number) const {
      std::ostringstream stream;
      stream << number;
      return stream.str();
    }
    std::string operator()(const std::string& text) const { return shown(text); }
    std::string operator()(const json::Array& array) const { return "a list of " + std::to_string(array.size()); }
    std::string operator()(const json::Object&) const { return "an object"; }
  };
  return std::visit(Describer{}, static_cast<const json::Value::variant&>(value));
}

std::string range(const std::string& kind, const std::string& least, const std::string& most) {
  return kind + " from " + least + " to " + most;
}

}  // namespace

void JsonField::refuse(const std::string& expected) const {
  throw Error(HELIUM_ERROR_BUNDLE, file_ + " has " + described(*value_) + (path_.empty() ? "" : " as " + path_) +
                                       "; expected " + expected + "; export the bundle anew");
}

template <typename T>
const T& JsonField::as(const std::string& expected) const {
  const T* found = std::get_if<T>(value_);
  if (found == nullptr) refuse(expected);
  return *found;
}

JsonField JsonField::child(const json::Value& value, const std::string& step) const {
  return {value, file_, path_.empty() ? step : path_ + "." + step};
}

JsonField JsonField::operator[](std::string_view name) const {
  const json::Value* value = json::find(as<json::Object>("an object"), name);
  if (value == nullptr) refuse("an object with the name " + std::string(name));
  return child(*value, std::string(name));
}

bool JsonField::has(std::string_view name) const {
  return json::find(as<json::Object>("an object"), name) != nullptr;
}

std::vector<JsonField> JsonField::elements() const {
  std::vector<JsonField> fields;
  for (const json::Value& value : as<json::Array>("a list")) {
    fields.push_back(child(value, std::to_string(fields.size())));
  }
  return fields;
}

std::vector<std::pair<std::string, JsonField>> JsonField::members() const {
  std::vector<std::pair<std::string, JsonField>> fields;
  for (const json::Member& member : as<json::Object>("an object")) {
    fields.emplace_back(member.name, child(member.value, shown(member.name)));
  }
  return fields;
}

std::int64_t JsonField::integer(std::int64_t least, std::int64_t most) const {
  const std::string expected = range("a whole number", std::to_string(least), std::to_string(most));
  const std::int64_t value = as<std::int64_t>(expected);
  if (value < least || value > most) refuse(expected);
  return value;
}

double JsonField::number(double least, double most) const {
  std::ostringstream low, high;
  low << least;
  high << most;
  const std::string expected = range("a number", low.str(), high.str());
  const auto* whole = std::get_if<std::int64_t>(value_);
  const double value = whole != nullptr ? static_cast<double>(*whole) : as<double>(expected);
  if (!(least <= value && value <= most)) refuse(expected);
  return value;
}

bool JsonField::boolean() const {
  return as<bool>("true or false");
}

const std::string& JsonField::string() const {
  return as<std::string>("a string");
}

std::vector<std::int32_t> JsonField::integers(std::int32_t least, std::int32_t most) const {
  std::vector<std::int32_t> values;
  for (const JsonField& element : elements()) values.push_back(static_cast<std::int32_t>(element.integer(least, most)));
  return values;
}

}  // namespace helium
