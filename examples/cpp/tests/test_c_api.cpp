#include <mlx/memory.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bundle.h"
#include "check.h"
#include "expect.h"
#include "open_model.h"
#include "worker.h"

namespace helium {
namespace {

using testing::complete;
using testing::Completion;
using testing::OpenModel;

constexpr const char* kPrompt = "Once upon a time";
// Far more than a test waits for: what runs that long was not cancelled.
constexpr int kWithoutEnd = 3000;

helium_options endless(const OpenModel& model) {
  helium_options options = model.options(kWithoutEnd);
  options.ignore_eos = true;
  return options;
}

struct Cancellation {
  helium_cancellation* handle = helium_cancellation_new();
  Cancellation() = default;
  ~Cancellation() { helium_cancellation_free(handle); }
  Cancellation(const Cancellation&) = delete;
  Cancellation& operator=(const Cancellation&) = delete;
};

std::string long_prompt(int words) {
  std::string prompt = "Once";
  for (int i = 1; i < words; ++i) prompt += " the";
  return prompt;
}

TEST(c_api, a_completion_ends_at_its_length_and_its_chunks_make_up_the_text) {
  const OpenModel model;
  EXPECT_EQUAL(model.message, "");
  const Completion completion = complete(model.handle, kPrompt, model.options(20));
  EXPECT_EQUAL(completion.status, HELIUM_OK);
  EXPECT_EQUAL(completion.reason, HELIUM_FINISH_LENGTH);
  EXPECT_EQUAL(completion.tokens.size(), 20U);
  EXPECT_EQUAL(completion.statistics.generated_tokens, 20);
  EXPECT_EQUAL(completion.statistics.finish_reason, HELIUM_FINISH_LENGTH);
  EXPECT(completion.statistics.prompt_tokens > 1 && completion.statistics.peak_bytes > 0);
  EXPECT(completion.text.size() > 20);
}

TEST(c_api, everything_optional_may_be_left_out) {
  const OpenModel model;
  EXPECT_EQUAL(helium_generate(model.handle, "", nullptr, nullptr, nullptr, nullptr, nullptr), HELIUM_OK);
  EXPECT_EQUAL(helium_check(model.handle, nullptr, nullptr), HELIUM_OK);
}

TEST(c_api, a_stop_string_ends_the_text_before_it) {
  const OpenModel model;
  const std::string whole = complete(model.handle, kPrompt, model.options(20)).text;
  const std::string stop = whole.substr(whole.size() / 2, 5);
  const char* stops[] = {"not in there", stop.c_str()};
  helium_options options = model.options(20);
  options.stop = stops;
  options.stop_count = 2;
  const Completion completion = complete(model.handle, kPrompt, options);
  EXPECT_EQUAL(completion.text, whole.substr(0, whole.find(stop)));
  EXPECT_EQUAL(completion.reason, HELIUM_FINISH_STOP);
}

TEST(c_api, no_chunk_is_cut_inside_of_a_character) {
  const OpenModel model;
  helium_options options = endless(model);
  options.max_tokens = 60;
  options.temperature = 50;
  options.has_seed = true;
  bool had_many_bytes = false;
  for (options.seed = 0; options.seed < 3; ++options.seed) {
    const Completion completion = complete(model.handle, kPrompt, options);
    for (const std::string& chunk : completion.chunks) EXPECT(is_utf8(chunk));
    had_many_bytes |= completion.text.find(kReplacementCharacter) != std::string::npos;
  }
  EXPECT(had_many_bytes);
}

TEST(c_api, a_seed_repeats_its_text_and_reserved_ids_never_come) {
  const OpenModel model;
  helium_options options = model.options(40);
  options.temperature = 1.5F;
  options.has_seed = true;
  options.seed = 5;
  const Completion first = complete(model.handle, kPrompt, options), again = complete(model.handle, kPrompt, options);
  EXPECT_EQUAL(first.text, again.text);
  options.seed = 6;
  EXPECT(complete(model.handle, kPrompt, options).text != first.text);
  options.temperature = 1000;
  for (const std::int32_t token : complete(model.handle, kPrompt, options).tokens) EXPECT(token < 6 || token > 105);
}

TEST(c_api, a_prompt_of_the_whole_context_is_followed_by_one_token) {
  const OpenModel model;
  const std::int32_t context = helium_get_info(model.handle).context;
  std::size_t count = 0;
  EXPECT_EQUAL(helium_tokenize(model.handle, long_prompt(1).c_str(), nullptr, 0, &count), HELIUM_OK);
  const int fits = context - static_cast<int>(count);
  const Completion last = complete(model.handle, long_prompt(fits), model.options(9));
  EXPECT_EQUAL(last.statistics.prompt_tokens, context - 1);
  EXPECT_EQUAL(last.statistics.generated_tokens, 1);
  EXPECT(last.reason == HELIUM_FINISH_LENGTH || last.reason == HELIUM_FINISH_EOS);
  const Completion whole = complete(model.handle, long_prompt(fits + 1), model.options(9));
  EXPECT_EQUAL(whole.message, "");
  EXPECT_EQUAL(whole.statistics.prompt_tokens, context);
  EXPECT_EQUAL(whole.statistics.generated_tokens, 1);
  const Completion beyond = complete(model.handle, long_prompt(fits + 2), model.options(9));
  EXPECT_EQUAL(beyond.status, HELIUM_ERROR_CONTEXT);
  EXPECT(beyond.message.find("the prompt has " + std::to_string(context + 1) + " tokens; at most ") == 0);
}

TEST(c_api, wrong_arguments_are_refused_with_a_message) {
  const OpenModel model;
  const auto refused = [&](const std::string& prompt, const helium_options& options) {
    const Completion completion = complete(model.handle, prompt, options);
    EXPECT_EQUAL(completion.status, HELIUM_ERROR_ARGUMENT);
    return completion.message;
  };
  EXPECT_EQUAL(refused(kPrompt, model.options(0)), "max_tokens is 0; it must be at least 1");
  EXPECT_EQUAL(refused("\xFF", model.options(1)), "the text is not UTF-8; convert it first");
  helium_options options = model.options(1);
  options.top_p = 0;
  EXPECT_EQUAL(refused(kPrompt, options), "top_p is 0; it must be above 0 and at most 1");
  options = model.options(1);
  const char* stops[] = {"a", "", nullptr};
  options.stop_count = 1;
  refused(kPrompt, options);
  options.stop = stops + 1;
  refused(kPrompt, options);
  options.stop = stops + 2;
  refused(kPrompt, options);
  const std::vector<const char*> many(1001, "a");
  options.stop = many.data();
  options.stop_count = many.size();
  const std::string bound = " characters in all; at most 1000 of 20000 are looked for: give fewer";
  EXPECT_EQUAL(refused(kPrompt, options), "there are 1001 stop strings of 1001" + bound);
  std::string characters;
  for (int i = 0; i < 20'001; ++i) characters += "é";
  const char* large = characters.c_str();
  options.stop = &large;
  options.stop_count = 1;
  EXPECT_EQUAL(refused(kPrompt, options), "there are 1 stop strings of 20001" + bound);
  EXPECT_EQUAL(helium_generate(nullptr, kPrompt, nullptr, nullptr, nullptr, nullptr, nullptr), HELIUM_ERROR_ARGUMENT);
  EXPECT_EQUAL(std::string(helium_error_message()), "model is NULL; it is needed");
  EXPECT_EQUAL(helium_generate(model.handle, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr),
               HELIUM_ERROR_ARGUMENT);
  EXPECT_EQUAL(helium_check(nullptr, nullptr, nullptr), HELIUM_ERROR_ARGUMENT);
  EXPECT_EQUAL(helium_open(nullptr, HELIUM_VERIFY_ALL, nullptr), HELIUM_ERROR_ARGUMENT);
  std::size_t count = 0;
  EXPECT_EQUAL(helium_tokenize(model.handle, nullptr, nullptr, 0, &count), HELIUM_ERROR_ARGUMENT);
  EXPECT_EQUAL(helium_tokenize(model.handle, "a", nullptr, 1, &count), HELIUM_ERROR_ARGUMENT);
  EXPECT_EQUAL(helium_tokenize(model.handle, "a", nullptr, 0, nullptr), HELIUM_ERROR_ARGUMENT);
}

TEST(c_api, whatever_a_path_is_made_of_the_message_is_one_short_line_of_utf8) {
  for (const std::string& path : {std::string("not \xFF\xFE there\n\x1B[1m\xC3"), std::string(100'000, '\x80')}) {
    const OpenModel model(path);
    EXPECT_EQUAL(model.status, HELIUM_ERROR_FILE);
    EXPECT(is_utf8(model.message) && model.message.size() < 3000);
    EXPECT(model.message.find(kReplacementCharacter) != std::string::npos);
    EXPECT(std::none_of(model.message.begin(), model.message.end(), [](char c) { return c >= 0 && c < 0x20; }));
    EXPECT(model.message.ends_with("expected a bundle that helium_mlx.export wrote, whole"));
  }
}

TEST(c_api, an_empty_path_is_not_the_working_directory) {
  const OpenModel model("");
  EXPECT_EQUAL(model.status, HELIUM_ERROR_ARGUMENT);
  EXPECT_EQUAL(model.message, "bundle is empty; name the directory that helium_mlx.export wrote");
}

TEST(c_api, tokenize_writes_what_fits_and_says_how_many_there_are) {
  const OpenModel model;
  std::vector<std::int32_t> ids(3, -1);
  std::size_t count = 0;
  EXPECT_EQUAL(helium_tokenize(model.handle, "Once upon a time", ids.data(), 2, &count), HELIUM_OK);
  EXPECT(count > 3);
  EXPECT_EQUAL(ids[0], 1);
  EXPECT(ids[1] != -1);
  EXPECT_EQUAL(ids[2], -1);
}

TEST(c_api, a_callback_that_refuses_is_not_called_again) {
  const OpenModel model;
  const Completion completion = complete(model.handle, kPrompt, endless(model), 3);
  EXPECT_EQUAL(completion.status, HELIUM_OK);
  EXPECT_EQUAL(completion.chunks.size(), 3U);
  EXPECT_EQUAL(completion.statistics.finish_reason, HELIUM_FINISH_CANCELLED);
}

TEST(c_api, progress_counts_up_to_the_prompt_and_may_refuse) {
  const OpenModel model;
  std::vector<std::int32_t> done;
  const auto note = [](void* context, std::int32_t part, std::int32_t total) {
    auto& parts = *static_cast<std::vector<std::int32_t>*>(context);
    parts.push_back(part);
    return total > 0 && parts.size() < 2;
  };
  helium_statistics statistics{};
  const helium_options options = model.options(5);
  EXPECT_EQUAL(helium_generate(model.handle, long_prompt(1500).c_str(), &options, nullptr, note, &done, &statistics),
               HELIUM_OK);
  EXPECT_EQUAL(done.size(), 2U);
  EXPECT(done[0] > 0 && done[0] < done[1] && done[1] < 1500);
  EXPECT_EQUAL(statistics.finish_reason, HELIUM_FINISH_CANCELLED);
  EXPECT_EQUAL(statistics.generated_tokens, 0);
}

TEST(c_api, a_generation_is_cancelled_from_another_thread) {
  const OpenModel model;
  const Cancellation cancellation;
  helium_options options = endless(model);
  options.cancellation = cancellation.handle;
  struct Context {
    std::atomic<int> chunks = 0;
    std::atomic<int> after = 0;
    std::atomic<bool> cancelled = false;
    helium_finish_reason reason = HELIUM_FINISH_NONE;
  } context;
  const auto count = [](void* shared, const helium_chunk* chunk) {
    auto& counts = *static_cast<Context*>(shared);
    if (counts.cancelled) ++counts.after;
    ++counts.chunks;
    counts.reason = chunk->finish_reason;
    return true;
  };
  std::thread other([&] {
    while (context.chunks < 5) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    helium_cancel(cancellation.handle);
    context.cancelled = true;
  });
  EXPECT_EQUAL(helium_generate(model.handle, kPrompt, &options, count, nullptr, &context, nullptr), HELIUM_OK);
  other.join();
  EXPECT_EQUAL(context.reason, HELIUM_FINISH_CANCELLED);
  // The one whose text was being handed out, and the last.
  EXPECT(context.after <= 2);
  EXPECT(context.chunks < kWithoutEnd);
}

TEST(c_api, a_generation_that_was_cancelled_before_it_began_says_so) {
  const OpenModel model;
  const Cancellation cancellation;
  helium_cancel(cancellation.handle);
  helium_options options = endless(model);
  options.cancellation = cancellation.handle;
  const Completion completion = complete(model.handle, kPrompt, options);
  EXPECT_EQUAL(completion.status, HELIUM_OK);
  EXPECT_EQUAL(completion.chunks.size(), 1U);
  EXPECT_EQUAL(completion.tokens[0], -1);
  EXPECT_EQUAL(completion.reason, HELIUM_FINISH_CANCELLED);
}

TEST(c_api, a_check_that_is_cancelled_says_so) {
  const OpenModel model;
  const Cancellation cancellation;
  EXPECT_EQUAL(helium_check(model.handle, cancellation.handle, nullptr), HELIUM_OK);
  helium_cancel(cancellation.handle);
  EXPECT_EQUAL(helium_check(model.handle, cancellation.handle, nullptr), HELIUM_ERROR_CANCELLED);
  EXPECT_EQUAL(std::string(helium_error_message()), "the check was cancelled before its end");
}

TEST(c_api, a_check_asks_whether_to_go_on_at_every_token) {
  Worker::shared().run([] {
    Bundle bundle(testing::bundle_directory(), HELIUM_VERIFY_ALL);
    int asked = 0;
    EXPECT_ERROR(HELIUM_ERROR_CANCELLED, check_vectors(bundle, [&] { return ++asked < 7; }));
    EXPECT_EQUAL(asked, 7);
    const helium_check_report report = check_vectors(bundle, [&] { return ++asked > 0; });
    EXPECT(asked >= report.tokens);
  });
}

TEST(c_api, a_callback_is_refused_what_would_wait_for_its_own_end) {
  const OpenModel model;
  struct Context {
    helium_model* model;
    helium_model* other;
    helium_status opened = HELIUM_OK;
    helium_status generated = HELIUM_OK;
    helium_status checked = HELIUM_OK;
    helium_status tokenized = HELIUM_ERROR_STATE;
  } context{model.handle, model.handle};
  const auto call_back = [](void* shared, const helium_chunk*) {
    auto& calls = *static_cast<Context*>(shared);
    std::size_t count = 0;
    calls.opened = helium_open(testing::bundle_directory().c_str(), HELIUM_VERIFY_ALL, &calls.other);
    calls.tokenized = helium_tokenize(calls.model, "a", nullptr, 0, &count);
    calls.checked = helium_check(calls.model, nullptr, nullptr);
    calls.generated = helium_generate(calls.model, "a", nullptr, nullptr, nullptr, nullptr, nullptr);
    return false;
  };
  const helium_options options = model.options(3);
  EXPECT_EQUAL(helium_generate(model.handle, kPrompt, &options, call_back, nullptr, &context, nullptr), HELIUM_OK);
  EXPECT_EQUAL(context.opened, HELIUM_ERROR_STATE);
  EXPECT(context.other == nullptr);
  EXPECT_EQUAL(context.generated, HELIUM_ERROR_STATE);
  EXPECT_EQUAL(context.checked, HELIUM_ERROR_STATE);
  EXPECT_EQUAL(context.tokenized, HELIUM_OK);
}

TEST(c_api, generations_from_many_threads_give_what_each_gives_alone) {
  const OpenModel model;
  const std::vector<std::string> prompts = {"Once upon a time", "Il était une fois", "Es war einmal",
                                            "C'era una volta"};
  std::vector<std::string> alone, together(prompts.size());
  for (const std::string& prompt : prompts) alone.push_back(complete(model.handle, prompt, model.options(12)).text);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    threads.emplace_back([&, i] { together[i] = complete(model.handle, prompts[i], model.options(12)).text; });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT(together == alone);
}

TEST(c_api, two_models_run_side_by_side) {
  const OpenModel one, two;
  std::string texts[2];
  std::thread other([&] { texts[0] = complete(one.handle, kPrompt, one.options(15)).text; });
  texts[1] = complete(two.handle, kPrompt, two.options(15)).text;
  other.join();
  EXPECT_EQUAL(texts[0], texts[1]);
}

TEST(c_api, closing_cancels_what_runs_and_what_waits) {
  helium_model* model = nullptr;
  EXPECT_EQUAL(helium_open(testing::bundle_directory().c_str(), HELIUM_VERIFY_ALL, &model), HELIUM_OK);
  helium_options options = helium_default_options(model);
  options.max_tokens = kWithoutEnd;
  options.ignore_eos = true;
  std::atomic<int> begun = 0;
  const auto note = [](void* context, const helium_chunk*) {
    ++*static_cast<std::atomic<int>*>(context);
    return true;
  };
  helium_statistics statistics[2] = {};
  std::vector<std::thread> threads;
  for (helium_statistics& own : statistics) {
    threads.emplace_back([&] { helium_generate(model, kPrompt, &options, note, nullptr, &begun, &own); });
  }
  // The second call waits for the first by now, or begins after it: either way before the model closes.
  while (begun < 5) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  helium_close(model);
  for (std::thread& thread : threads) thread.join();
  for (const helium_statistics& own : statistics) EXPECT_EQUAL(own.finish_reason, HELIUM_FINISH_CANCELLED);
}

TEST(c_api, a_model_that_a_callback_closes_is_freed_when_its_generation_has_ended) {
  helium_model* model = nullptr;
  EXPECT_EQUAL(helium_open(testing::bundle_directory().c_str(), HELIUM_VERIFY_ALL, &model), HELIUM_OK);
  struct Context {
    helium_model* model;
    std::vector<helium_finish_reason> reasons;
  } context{model, {}};
  const auto close = [](void* shared, const helium_chunk* chunk) {
    auto& calls = *static_cast<Context*>(shared);
    calls.reasons.push_back(chunk->finish_reason);
    helium_close(std::exchange(calls.model, nullptr));
    return true;
  };
  helium_statistics statistics{};
  EXPECT_EQUAL(helium_generate(model, kPrompt, nullptr, close, nullptr, &context, &statistics), HELIUM_OK);
  EXPECT_EQUAL(statistics.finish_reason, HELIUM_FINISH_CANCELLED);
  EXPECT_EQUAL(context.reasons.size(), 2U);
  EXPECT_EQUAL(context.reasons.back(), HELIUM_FINISH_CANCELLED);
  EXPECT_EQUAL(mlx::core::get_active_memory(), 0U);
}

TEST(c_api, closing_frees_all_memory) {
  for (int i = 0; i < 3; ++i) {
    const OpenModel model;
    complete(model.handle, kPrompt, endless(model), 3);
    EXPECT(mlx::core::get_active_memory() > 1'000'000);
  }
  EXPECT_EQUAL(mlx::core::get_active_memory(), 0U);
}

}  // namespace
}  // namespace helium
