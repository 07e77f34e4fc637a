// UTF-8, word characters, detokenizers and stop strings: what text passes through on its way out.
#include <algorithm>
#include <cstddef>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "detokenizer.h"
#include "expect.h"
#include "stop_strings.h"
#include "utf8.h"
#include "word_characters.h"

namespace helium {
namespace {

Piece text(std::string_view content) {
  return {Piece::Kind::kText, std::string(content), 0};
}

Piece byte(int value) {
  return {Piece::Kind::kByte, "", static_cast<std::uint8_t>(value)};
}

// What each piece makes certain, then what `finish` adds, parted by bars.
std::string streamed(Detokenizer& detokenizer, const std::vector<Piece>& pieces) {
  std::string result;
  for (const Piece& piece : pieces) result += detokenizer.add(piece) + "|";
  return result + detokenizer.finish();
}

std::string json_streamed(const std::vector<Piece>& pieces, int strip = 1) {
  ByteFallbackDetokenizer detokenizer(strip);
  return streamed(detokenizer, pieces);
}

std::string model_streamed(const std::vector<Piece>& pieces, DummyPrefix prefix = DummyPrefix::kFirst) {
  SentencePieceDetokenizer detokenizer(prefix);
  return streamed(detokenizer, pieces);
}

std::string stopped(std::vector<std::string> stops, const std::vector<std::string>& parts) {
  StopStrings filter(std::move(stops));
  std::string result;
  for (const std::string& part : parts) result += filter.add(part) + "|";
  return result + (filter.stopped() ? "!" : filter.finish());
}

TEST(text, utf8_is_what_rfc_3629_says) {
  for (const char* valid :
       {"", "a", "é", "€", "😀", "\x7F", "\xC2\x80", "\xED\x9F\xBF", "\xEE\x80\x80", "\xF4\x8F\xBF\xBF"}) {
    EXPECT(is_utf8(valid));
  }
  for (const char* invalid :
       {"\x80", "\xC3", "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xED\xA0", "\xED\xBF\xBF",
        "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "\xE2\x82", "\xE2\x82g", "a\xBF"}) {
    EXPECT(!is_utf8(invalid));
  }
}

TEST(text, a_message_is_one_line_of_utf8_and_keeps_both_ends) {
  EXPECT_EQUAL(one_line(""), "");
  EXPECT_EQUAL(one_line("é is\nhere\r\t\x1B[1m\x7F"), "é is here   [1m ");
  EXPECT_EQUAL(one_line("\xFF/\xC3"), "\uFFFD/\uFFFD");
  EXPECT_EQUAL(one_line("\xED\xA0\x80\xE2\x82g"), "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFDg");
  EXPECT_EQUAL(one_line("abcdefgh", 8), "abcdefgh");
  EXPECT_EQUAL(one_line("abcdefghi", 8), "abcd…fghi");
  EXPECT_EQUAL(one_line("€€€€€", 10), "€…€");
  EXPECT(is_utf8(one_line(std::string(100'000, '\x80'))));
}

TEST(text, every_character_is_written_and_read_back) {
  for (char32_t character = 1; character <= 0x10FFFF; character += 61) {
    if (character >= 0xD800 && character <= 0xDFFF) continue;
    std::string written = "x";
    append_utf8(written, character);
    EXPECT(is_utf8(written));
    EXPECT(last_character(written) == character);
    EXPECT(first_character(std::string_view(written).substr(1)) == character);
  }
  EXPECT(!first_character("") && !last_character(""));
}

TEST(text, a_message_shows_no_control_characters_and_cuts_no_character) {
  EXPECT_EQUAL(shown("a\nb\x7F"), "\"a\\x0ab\\x7f\"");
  EXPECT_EQUAL(shown("\xFF"), "\"\\xff\"");
  EXPECT_EQUAL(shown("éééé", 3), "\"éé…\"");
}

TEST(text, word_characters_are_letters_marks_digits_and_connectors) {
  for (const char32_t character : {U'a', U'Z', U'_', U'7', U'é', U'\u0301', U'中', U'\u200D', U'\u24B6', U'\u203F'}) {
    EXPECT(is_word_character(character));
  }
  for (const char32_t character : {U' ', U'\n', U'-', U'.', U'€', U'😀', U'\u2014', U'\u00A0'}) {
    EXPECT(!is_word_character(character));
  }
}

TEST(text, words_come_at_once_and_the_first_space_is_dropped) {
  EXPECT_EQUAL(json_streamed({text(" Bon"), text("jour"), text(" x")}), "Bon|jour| x|");
  EXPECT_EQUAL(json_streamed({text("  "), text(" x")}), " | x|");
  EXPECT_EQUAL(json_streamed({text(" x")}, 0), " x|");
  EXPECT_EQUAL(json_streamed({text(" "), text(" "), text(" x")}, 2), "|| x|");
  EXPECT_EQUAL(json_streamed({text("x"), text(" y")}), "x| y|");
}

TEST(text, a_character_comes_with_its_last_byte) {
  EXPECT_EQUAL(json_streamed({byte(0xF0), byte(0x9F), byte(0x98), byte(0x80), text(" x")}), "|||😀| x|");
  EXPECT_EQUAL(json_streamed({byte(0xC3), byte(0xA9)}), "|é|");
  EXPECT_EQUAL(json_streamed({byte(0xC3), Piece{}, byte(0xA9)}), "||é|");
}

TEST(text, what_breaks_off_is_replaced_alone) {
  EXPECT_EQUAL(json_streamed({byte('a'), byte('b'), byte(0xFF), byte('c'), text("d"), byte('e')}), "a|b|�|c|d|e|");
  EXPECT_EQUAL(json_streamed({byte(0xE0), byte(0x80)}), "|��|");
  EXPECT_EQUAL(json_streamed({byte(0xED), byte(0xA0), byte(0x80)}), "||���|");
  EXPECT_EQUAL(json_streamed({byte(0xED), byte(0xA0), text("x")}), "||��x|");
  EXPECT_EQUAL(json_streamed({byte(0xF4), byte(0x90), byte('a')}), "|��|a|");
  EXPECT_EQUAL(json_streamed({byte(0xF0), byte(0x9F), byte(0xC3), byte(0xA9)}), "||�|é|");
  EXPECT_EQUAL(json_streamed({byte('a'), byte(0xC3), text("x")}), "a||�x|");
  EXPECT_EQUAL(json_streamed({byte('a'), byte(0xE4), byte(0xBD)}), "a|||�");
}

TEST(text, sentencepiece_shows_a_character_with_its_last_byte) {
  EXPECT_EQUAL(model_streamed({byte(0xF0), byte(0x9F), byte(0x98), byte(0x80), text("▁x")}), "|||😀| x|");
  EXPECT_EQUAL(model_streamed({byte(0xFF), byte('a')}), "�|a|");
  EXPECT_EQUAL(model_streamed({byte(0xE2), byte('a'), byte('b')}), "|�a|b|");
  EXPECT_EQUAL(model_streamed({byte(0xE2), byte(0x82), text("x")}), "||�x|");
  EXPECT_EQUAL(model_streamed({byte(0xE2), byte(0x82)}), "||�");
  EXPECT_EQUAL(model_streamed({byte(0xC3), text(""), byte(0xA9)}), "|�|�|");
}

TEST(text, sentencepiece_drops_leading_separators_as_its_model_says) {
  EXPECT_EQUAL(model_streamed({text("▁▁a"), text("▁b")}), " a| b|");
  EXPECT_EQUAL(model_streamed({text("▁"), text("▁a")}), "| a|");
  EXPECT_EQUAL(model_streamed({text("▁"), text("▁a")}, DummyPrefix::kEvery), "|a|");
  EXPECT_EQUAL(model_streamed({text("▁"), text("▁a")}, DummyPrefix::kKept), " | a|");
}

TEST(text, a_stop_string_is_found_across_parts_and_not_shown) {
  EXPECT_EQUAL(stopped({"stop"}, {"a st", "op b"}), "a ||!");
  EXPECT_EQUAL(stopped({"stop"}, {"a st", "ay"}), "a |stay|");
  EXPECT_EQUAL(stopped({"stop"}, {"a st"}), "a |st");
  EXPECT_EQUAL(stopped({"b", "ab"}, {"xaby", "z"}), "x||!");
  EXPECT_EQUAL(stopped({"aab"}, {"aa", "ab"}), "|a|!");
  EXPECT_EQUAL(stopped({"né"}, {"n", "é"}), "||!");
  EXPECT_EQUAL(stopped({}, {"a", "b"}), "a|b|");
}

// What a slow, obvious search gives: a part at a time, the earliest stop string of those that have come whole.
std::string searched(const std::vector<std::string>& stops, const std::vector<std::string>& parts) {
  std::string held, result;
  for (const std::string& part : parts) {
    held += part;
    std::size_t first = std::string::npos, keep = 0;
    for (const std::string& stop : stops) {
      first = std::min(first, held.find(stop));
      for (std::size_t n = 1; n < stop.size() && n <= held.size(); ++n) {
        if (held.compare(held.size() - n, n, stop, 0, n) == 0) keep = std::max(keep, n);
      }
    }
    if (first != std::string::npos) return result + held.substr(0, first) + "|!";
    result += held.substr(0, held.size() - keep) + "|";
    held.erase(0, held.size() - keep);
  }
  return result + held;
}

TEST(text, stop_strings_are_found_as_a_slow_search_finds_them) {
  std::mt19937 random(1);
  const auto word = [&](std::size_t most) {
    std::string result;
    for (std::size_t n = 1 + random() % most; n > 0; --n) result += "abc"[random() % 3];
    return result;
  };
  for (int trial = 0; trial < 20'000; ++trial) {
    std::vector<std::string> stops, parts;
    for (std::size_t n = random() % 6; n > 0; --n) stops.push_back(word(6));
    for (std::size_t n = random() % 10; n > 0; --n) parts.push_back(word(3));
    std::string found = stopped(stops, parts);
    // After the end come empty parts.
    if (found.back() == '!') found = found.substr(0, found.find_last_not_of("|!") + 1) + "|!";
    std::string expected = searched(stops, parts);
    if (!expected.empty() && expected.back() == '!') {
      expected = expected.substr(0, expected.find_last_not_of("|!") + 1) + "|!";
    }
    EXPECT_EQUAL(found, expected);
  }
}

TEST(text, what_is_not_visible_counts_in_a_stop_string_and_is_not_shown) {
  StopStrings filter({"b<end>"});
  EXPECT_EQUAL(filter.add("ab"), "a");
  EXPECT_EQUAL(filter.add("<end", false), "");
  EXPECT_EQUAL(filter.add("c"), "bc");
  EXPECT_EQUAL(filter.add("ab"), "a");
  EXPECT_EQUAL(filter.add("<end>", false), "");
  EXPECT(filter.stopped());
}

}  // namespace
}  // namespace helium
