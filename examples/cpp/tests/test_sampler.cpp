// The draw against exact probabilities, computed here in double by the definition of each filter.
#include <mlx/memory.h>
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "expect.h"
#include "sampler.h"

namespace helium {
namespace {

namespace mx = mlx::core;

constexpr int kDraws = 4000;
// Between 8 outcomes the statistic exceeds this once in some ten thousand tests; the seeds are fixed.
constexpr double kMostChiSquare = 32;

const std::vector<float> kLogits = {2.0F, 1.5F, 1.4F, 0.3F, 0.0F, -0.5F, -1.0F, -3.0F};

mx::array as_array(const std::vector<float>& logits) {
  return mx::array(logits.begin(), {1, static_cast<int>(logits.size())});
}

std::vector<double> softmax(const std::vector<float>& logits, double temperature) {
  std::vector<double> p;
  for (const float logit : logits) p.push_back(std::exp(logit / temperature));
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& value : p) value /= sum;
  return p;
}

void normalize(std::vector<double>& p) {
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& value : p) value /= sum;
}

// The probabilities of each token by the definitions; kLogits falls, so that the first tokens are the most probable.
std::vector<double> exact(const SamplingOptions& options) {
  std::vector<double> p = softmax(kLogits, options.temperature);
  if (options.top_k > 0) std::fill(p.begin() + options.top_k, p.end(), 0.0);
  normalize(p);
  double before = 0;
  for (double& value : p) {
    const double own = value;
    if (before >= options.top_p) value = 0;
    before += own;
  }
  normalize(p);
  for (double& value : p) {
    if (value < options.min_p * p[0]) value = 0;
  }
  normalize(p);
  return p;
}

std::vector<int> draws(const std::vector<float>& logits, const SamplingOptions& options,
                       const std::vector<std::int32_t>& banned, int n) {
  const mx::array array = as_array(logits);
  Sampler sampler(options, static_cast<int>(logits.size()), banned);
  std::vector<mx::array> drawn;
  for (int i = 0; i < n; ++i) drawn.push_back(sampler(array));
  mx::eval(drawn);
  std::vector<int> tokens;
  for (mx::array& token : drawn) tokens.push_back(static_cast<int>(token.item<std::uint32_t>()));
  return tokens;
}

void expect_distribution(const SamplingOptions& options) {
  const std::vector<double> p = exact(options);
  std::vector<double> counts(p.size(), 0.0);
  for (const int token : draws(kLogits, options, {}, kDraws)) ++counts[static_cast<std::size_t>(token)];
  double chi_square = 0;
  for (std::size_t i = 0; i < p.size(); ++i) {
    if (p[i] == 0) EXPECT_EQUAL(counts[i], 0);
    if (p[i] > 0) chi_square += std::pow(counts[i] - kDraws * p[i], 2) / (kDraws * p[i]);
  }
  if (chi_square > kMostChiSquare) EXPECT_EQUAL(chi_square, 0);
}

TEST(sampler, greedy_takes_the_largest_logit_even_if_it_is_reserved) {
  EXPECT_EQUAL(draws({0.0F, 3.0F, 1.0F}, {}, {1}, 1)[0], 1);
}

TEST(sampler, temperature_draws_with_the_exact_probabilities) {
  for (const float temperature : {1.0F, 0.5F, 2.0F}) {
    expect_distribution({.temperature = temperature, .seed = 11});
  }
}

TEST(sampler, top_p_keeps_the_smallest_set_that_reaches_it) {
  for (const float top_p : {0.9F, 0.6F, 0.05F}) expect_distribution({.temperature = 1, .top_p = top_p, .seed = 12});
}

TEST(sampler, top_k_keeps_the_most_probable) {
  for (const int top_k : {1, 3, 8}) expect_distribution({.temperature = 1, .top_k = top_k, .seed = 13});
}

TEST(sampler, min_p_drops_what_is_far_below_the_most_probable) {
  expect_distribution({.temperature = 1, .min_p = 0.2F, .seed = 14});
}

TEST(sampler, filters_apply_one_after_the_other_each_to_what_is_left) {
  expect_distribution({.temperature = 0.7F, .top_p = 0.8F, .top_k = 5, .min_p = 0.1F, .seed = 15});
}

TEST(sampler, top_k_keeps_exactly_k_of_equal_logits) {
  const auto [left, tokens] = weights(as_array({1, 1, 1, 1}), {.temperature = 1, .top_k = 2});
  EXPECT_EQUAL(tokens->size(), 2U);
}

TEST(sampler, the_same_seed_gives_the_same_tokens_and_another_one_others) {
  const auto tokens = [](std::uint64_t seed) { return draws(kLogits, {.temperature = 1, .seed = seed}, {}, 50); };
  EXPECT(tokens(1) == tokens(1));
  EXPECT(tokens(1) != tokens(2));
  EXPECT(tokens(0) == tokens(0));
}

TEST(sampler, banned_tokens_are_never_drawn) {
  for (const int token : draws({9.0F, 1.0F, 9.0F, 1.0F}, {.temperature = 1, .seed = 3}, {0, 2, 77, -1}, 300)) {
    EXPECT(token == 1 || token == 3);
  }
}

TEST(sampler, extreme_temperatures_and_logits_draw_a_token_all_the_same) {
  for (const float temperature : {1e-30F, 1e-6F, 1e30F}) {
    for (const int token : draws(kLogits, {.temperature = temperature, .seed = 5}, {}, 20)) {
      EXPECT(token >= 0 && token < 8);
      if (temperature < 1) EXPECT_EQUAL(token, 0);
    }
  }
}

TEST(sampler, options_out_of_range_are_refused) {
  EXPECT_EQUAL(EXPECT_ERROR(HELIUM_ERROR_ARGUMENT, check(SamplingOptions{.temperature = -1})),
               "temperature is -1; it must be a finite number, 0 or more");
  EXPECT_ERROR(HELIUM_ERROR_ARGUMENT, check(SamplingOptions{.temperature = NAN}));
  EXPECT_ERROR(HELIUM_ERROR_ARGUMENT, check(SamplingOptions{.temperature = INFINITY}));
  EXPECT_ERROR(HELIUM_ERROR_ARGUMENT, check(SamplingOptions{.top_p = 0}));
  EXPECT_ERROR(HELIUM_ERROR_ARGUMENT, check(SamplingOptions{.top_p = 1.1F}));
  EXPECT_ERROR(HELIUM_ERROR_ARGUMENT, check(SamplingOptions{.top_p = NAN}));
  EXPECT_ERROR(HELIUM_ERROR_ARGUMENT, check(SamplingOptions{.top_k = -1}));
  EXPECT_ERROR(HELIUM_ERROR_ARGUMENT, check(SamplingOptions{.min_p = 2}));
}

}  // namespace
}  // namespace helium
