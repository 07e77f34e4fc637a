#include "arguments.h"

#include <charconv>
#include <limits>
#include <locale>
#include <map>
#include <sstream>
#include <string_view>

#include "utf8.h"

namespace helium {
namespace {

// An option and the word after it.
struct Option {
  std::string name;
  const char* value;

  [[noreturn]] void refuse(const std::string& allowed) const {
    throw UsageError(name + " is " + value + "; it must be " + allowed);
  }

  template <typename Number>
  Number whole(Number least) const {
    const std::string_view text = value;
    Number number{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    const bool is_number = error == std::errc() && end == text.data() + text.size();
    if (!is_number || number < least) {
      refuse("a whole number from " + std::to_string(least) + " to " +
             std::to_string(std::numeric_limits<Number>::max()));
    }
    return number;
  }

  // Of digits, not "nan", "inf" or hexadecimal. std::from_chars for float is not everywhere yet.
  float fraction(bool (*holds)(float), const char* allowed) const {
    const std::string text = value;
    std::istringstream stream(text);
    stream.imbue(std::locale::classic());
    float number = 0;
    const bool is_number = text.find_first_not_of("0123456789.eE+-") == std::string::npos && stream >> number &&
                           stream.peek() == std::char_traits<char>::eof();
    if (!is_number || !holds(number)) refuse(allowed);
    return number;
  }
};

using SetFlag = void (*)(Arguments&);
using SetOption = void (*)(Arguments&, const Option&);

const std::map<std::string_view, SetFlag> kFlags = {
    {"--help", [](Arguments& a) { a.task = Task::kHelp; }},
    {"--ignore-eos", [](Arguments& a) { a.ignore_eos = true; }},
    {"--tokens", [](Arguments& a) { a.task = Task::kTokens; }},
    {"--skip-hashes", [](Arguments& a) { a.verification = HELIUM_VERIFY_ALL_BUT_WEIGHTS; }},
};

const std::map<std::string_view, SetOption> kOptions = {
    {"--bundle", [](Arguments& a, const Option& o) { a.bundle = o.value; }},
    {"--check",
     [](Arguments& a, const Option& o) {
       a.bundle = o.value;
       a.task = Task::kCheck;
     }},
    {"--info",
     [](Arguments& a, const Option& o) {
       a.bundle = o.value;
       a.task = Task::kInfo;
     }},
    {"--prompt", [](Arguments& a, const Option& o) { a.prompt = o.value; }},
    {"--stop",
     [](Arguments& a, const Option& o) {
       if (*o.value == '\0') o.refuse("a text of at least one character");
       if (!is_utf8(o.value)) o.refuse("UTF-8");
       a.stops.push_back(o.value);
     }},
    {"--max-tokens", [](Arguments& a, const Option& o) { a.max_tokens = o.whole<std::int32_t>(1); }},
    {"--top-k", [](Arguments& a, const Option& o) { a.top_k = o.whole<std::int32_t>(0); }},
    {"--seed", [](Arguments& a, const Option& o) { a.seed = o.whole<std::uint64_t>(0); }},
    {"--temp",
     [](Arguments& a, const Option& o) {
       a.temperature = o.fraction([](float t) { return t >= 0; }, "a number that is at least 0");
     }},
    {"--top-p",
     [](Arguments& a, const Option& o) {
       a.top_p = o.fraction([](float p) { return p > 0 && p <= 1; }, "a number above 0 and at most 1");
     }},
    {"--min-p",
     [](Arguments& a, const Option& o) {
       a.min_p = o.fraction([](float p) { return p >= 0 && p <= 1; }, "a number from 0 to 1");
     }},
};

}  // namespace

Arguments::Arguments(const std::vector<const char*>& words) {
  for (auto word = words.begin(); word != words.end() && task != Task::kHelp; ++word) {
    const auto flag = kFlags.find(*word);
    const auto option = kOptions.find(*word);
    if (flag != kFlags.end()) {
      flag->second(*this);
      continue;
    }
    const std::string name = *word;
    if (option == kOptions.end()) throw UsageError(name + " is unknown");
    if (++word == words.end()) throw UsageError(name + " lacks its value");
    option->second(*this, {name, *word});
  }
  if (bundle.empty() && task != Task::kHelp) {
    throw UsageError("no bundle; name the directory that python -m helium_mlx.export wrote");
  }
}

void Arguments::apply_to(helium_options& options) const {
  options.max_tokens = max_tokens.value_or(options.max_tokens);
  options.temperature = temperature.value_or(options.temperature);
  options.top_p = top_p.value_or(options.top_p);
  options.top_k = top_k.value_or(options.top_k);
  options.min_p = min_p.value_or(options.min_p);
  options.seed = seed.value_or(options.seed);
  options.has_seed = seed.has_value();
  options.ignore_eos = ignore_eos;
  options.stop = stops.data();
  options.stop_count = stops.size();
}

}  // namespace helium
