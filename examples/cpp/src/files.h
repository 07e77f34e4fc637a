// The files of a bundle, which may come from anywhere: opened only if regular, and read under a cap.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace helium {

// The contents of a file. Throws Error (HELIUM_ERROR_FILE) if it cannot be read, is not a regular file, or has more
// than `most_bytes`.
std::string read_file(const std::filesystem::path& path, std::uint64_t most_bytes);

// Throws Error unless the file is there (HELIUM_ERROR_FILE) and has exactly that many bytes (HELIUM_ERROR_BUNDLE).
void check_size(const std::filesystem::path& path, std::uint64_t bytes);

// Throws Error (HELIUM_ERROR_BUNDLE) unless the file has this SHA-256, in lower-case hexadecimal digits.
void check_sha256(const std::filesystem::path& path, const std::string& digest);

// Whether a name from a manifest stays below the bundle: "weights/model.safetensors", but not "../x", "/x" or "a//b".
bool is_safe_name(const std::string& name);

}  // namespace helium
