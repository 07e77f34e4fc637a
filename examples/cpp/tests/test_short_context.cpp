// A context that no prefill length divides: at its end padding would not fit. `cases` names a bundle of 600 tokens
// here.
#include <algorithm>
#include <string>

#include "expect.h"
#include "open_model.h"

namespace helium {
namespace {

using testing::complete;
using testing::OpenModel;

// As many ids as words, but for the BOS.
std::string prompt_of(int words) {
  std::string prompt = "Once";
  for (int i = 1; i < words; ++i) prompt += " the";
  return prompt;
}

TEST(short_context, prompts_that_fill_it_or_nearly_continue_as_in_a_long_one) {
  const OpenModel long_model, short_model(testing::cases_file());
  EXPECT_EQUAL(short_model.message, "");
  const std::int32_t context = helium_get_info(short_model.handle).context;
  EXPECT_EQUAL(context, 600);
  std::size_t overhead = 0;
  helium_tokenize(short_model.handle, prompt_of(1).c_str(), nullptr, 0, &overhead);
  for (const int room : {0, 1, 2, 5, 9, 17, 40, 90}) {
    const std::string prompt = prompt_of(context - room - static_cast<int>(overhead) + 1);
    helium_options options = short_model.options(1000);
    options.ignore_eos = true;
    const auto in_short = complete(short_model.handle, prompt, options);
    EXPECT_EQUAL(in_short.statistics.prompt_tokens, context - room);
    EXPECT_EQUAL(in_short.statistics.generated_tokens, std::max(room, 1));
    EXPECT_EQUAL(in_short.reason, HELIUM_FINISH_LENGTH);
    options.max_tokens = std::max(room, 1);
    EXPECT(in_short.tokens == complete(long_model.handle, prompt, options).tokens);
  }
}

}  // namespace
}  // namespace helium
