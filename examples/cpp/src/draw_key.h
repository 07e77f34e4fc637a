// The random key of a token: BLAKE2b (RFC 7693) of the request's seed and the token's number, so that a text depends on
// its seed alone and is the one that helium_mlx/sampling.py draws.
#pragma once

#include <cstdint>

namespace helium {

// The key of the n-th token, counted from 0, for `mlx::core::random::key`.
std::uint64_t draw_key(std::uint64_t seed, std::uint64_t n);

}  // namespace helium
