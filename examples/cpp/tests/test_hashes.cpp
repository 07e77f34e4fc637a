#include <algorithm>
#include <string>

#include "draw_key.h"
#include "expect.h"
#include "files.h"
#include "sha256.h"

namespace helium {
namespace {

std::string digest(const std::string& bytes, std::size_t part) {
  Sha256 hash;
  for (std::size_t at = 0; at < bytes.size(); at += part) hash.add(std::string_view(bytes).substr(at, part));
  return hash.hex_digest();
}

TEST(hashes, sha256_gives_the_digests_of_fips_180_4) {
  EXPECT_EQUAL(digest("", 1), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQUAL(digest("abc", 3), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQUAL(digest("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56),
               "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQUAL(digest(std::string(1'000'000, 'a'), 1000),
               "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(hashes, sha256_does_not_depend_on_how_the_bytes_come) {
  for (const std::size_t size : {55, 56, 63, 64, 65, 119, 120, 128, 1000}) {
    const std::string bytes(size, 'x');
    for (const std::size_t part : {1, 7, 63, 64, 65}) EXPECT_EQUAL(digest(bytes, part), digest(bytes, size));
  }
}

// From Python: int.from_bytes(hashlib.blake2b(seed.to_bytes(8, "little") + n.to_bytes(8, "little"),
// digest_size=8).digest(), "little").
TEST(hashes, draw_keys_are_those_of_python) {
  EXPECT_EQUAL(draw_key(0ULL, 0ULL), 1041621211125469266ULL);
  EXPECT_EQUAL(draw_key(0ULL, 1ULL), 8118103383084794603ULL);
  EXPECT_EQUAL(draw_key(7ULL, 0ULL), 13435648307350579764ULL);
  EXPECT_EQUAL(draw_key(7ULL, 255ULL), 13304921753419243424ULL);
  EXPECT_EQUAL(draw_key(18446744073709551615ULL, 12345678901ULL), 14234328640587635784ULL);
}

TEST(hashes, names_that_leave_the_bundle_are_not_safe) {
  for (const char* safe : {"a", "manifest.json", "functions/decode_512.mlxfn", "a..b", ".hidden", "é"}) {
    EXPECT(is_safe_name(safe));
  }
  for (const char* unsafe : {"", ".", "..", "/", "/etc/passwd", "../x", "a/../b", "a/..", "a//b", "a/", "./a", "a\\b",
                             "C:x", "a\nb", "\xFF"}) {
    EXPECT(!is_safe_name(unsafe));
  }
  EXPECT(!is_safe_name(std::string(256, 'a')));
  EXPECT(!is_safe_name(std::string("a\0b", 3)));
}

}  // namespace
}  // namespace helium
