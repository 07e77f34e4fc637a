#include "files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "error.h"
#include "sha256.h"
#include "utf8.h"

namespace helium {
namespace {

constexpr std::size_t kChunkBytes = std::size_t{1} << 20;

class File {
 public:
  explicit File(const std::filesystem::path& path) : path_(path) {
    // Opening a pipe would wait for its other end.
    descriptor_ = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (descriptor_ < 0) fail(std::strerror(errno));
    struct stat status{};
    const bool is_regular = fstat(descriptor_, &status) == 0 && S_ISREG(status.st_mode);
    if (!is_regular) {
      close(descriptor_);
      fail("it is not a regular file");
    }
    size_ = static_cast<std::uint64_t>(status.st_size);
  }

  ~File() { close(descriptor_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  std::uint64_t size() const { return size_; }

  // Up to `n` bytes, fewer at the end alone.
  std::size_t read(char* data, std::size_t n) const {
    std::size_t done = 0;
    while (done < n) {
      const ssize_t got = ::read(descriptor_, data + done, n - done);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail(std::strerror(errno));
      if (got == 0) break;
      done += static_cast<std::size_t>(got);
    }
    return done;
  }

 private:
  [[noreturn]] void fail(const std::string& why) const {
    throw Error(HELIUM_ERROR_FILE, path_.string() + " cannot be read (" + why +
                                       "); expected a bundle that helium_mlx.export wrote, whole");
  }

  std::filesystem::path path_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
};

}  // namespace

std::string read_file(const std::filesystem::path& path, std::uint64_t most_bytes) {
  const File file(path);
  if (file.size() > most_bytes) {
    throw Error(HELIUM_ERROR_FILE, path.string() + " has " + std::to_string(file.size()) + " bytes; at most " +
                                       std::to_string(most_bytes) + " are read; copy the bundle again");
  }
  std::string contents(file.size(), '\0');
  contents.resize(file.read(contents.data(), contents.size()));
  return contents;
}

void check_size(const std::filesystem::path& path, std::uint64_t bytes) {
  const std::uint64_t size = File(path).size();
  if (size == bytes) return;
  throw Error(HELIUM_ERROR_BUNDLE, path.string() + " has " + std::to_string(size) + " bytes; the manifest says " +
                                       std::to_string(bytes) + "; copy the bundle again");
}

void check_sha256(const std::filesystem::path& path, const std::string& digest) {
  const File file(path);
  Sha256 hash;
  std::vector<char> chunk(std::min<std::uint64_t>(kChunkBytes, file.size() + 1));
  while (const std::size_t n = file.read(chunk.data(), chunk.size())) hash.add({chunk.data(), n});
  const std::string found = hash.hex_digest();
  if (found == digest) return;
  throw Error(HELIUM_ERROR_BUNDLE, path.string() + " has the SHA-256 " + found.substr(0, 12) + "…, the manifest says " +
                                       digest.substr(0, 12) + "…: it is damaged or of another bundle; copy it again");
}

bool is_safe_name(const std::string& name) {
  if (name.empty() || name.size() > 255 || !is_utf8(name)) return false;
  const auto is_control = [](char c) { return (c >= 0 && c < 0x20) || c == 0x7F || c == '\\' || c == ':'; };
  if (std::any_of(name.begin(), name.end(), is_control)) return false;
  for (std::size_t start = 0; start <= name.size();) {
    const std::size_t end = std::min(name.find('/', start), name.size());
    const std::string part = name.substr(start, end - start);
    if (part.empty() || part == "." || part == "..") return false;
    start = end + 1;
  }
  return true;
}

}  // namespace helium
