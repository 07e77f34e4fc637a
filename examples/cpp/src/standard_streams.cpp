#include "standard_streams.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>

namespace helium {
namespace {

// A token of a text is hardly ever longer than 16 bytes, and a context has at most a million.
constexpr std::size_t kMostInputBytes = 64'000'000;
constexpr std::size_t kChunkBytes = std::size_t{1} << 16;

// Whether it makes sense to try again: a stream that others opened may be one that does not wait by itself.
bool waited_for(int stream, short events) {
  if (errno != EAGAIN && errno != EWOULDBLOCK) return false;
  pollfd polled = {stream, events, 0};
  return poll(&polled, 1, -1) > 0;
}

}  // namespace

void occupy_closed_streams() {
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(stream, F_GETFD) >= 0) continue;
    // Opened the wrong way round: using it stays an error. The lowest free descriptor is the stream's.
    const int opened = open("/dev/null", stream == STDIN_FILENO ? O_WRONLY : O_RDONLY);
    if (opened >= 0 && opened != stream) close(opened);
  }
}

std::string read_input() {
  std::string input;
  std::size_t size = 0;
  while (true) {
    input.resize(size + kChunkBytes);
    const ssize_t got = ::read(STDIN_FILENO, input.data() + size, kChunkBytes);
    if (got < 0 && (errno == EINTR || waited_for(STDIN_FILENO, POLLIN))) continue;
    if (got < 0) {
      throw StreamError(std::string("standard input cannot be read (") + std::strerror(errno) +
                        "); give a text, or --prompt");
    }
    size += static_cast<std::size_t>(got);
    input.resize(size);
    if (got == 0) return input;
    if (size > kMostInputBytes) {
      throw StreamError("standard input has over " + std::to_string(kMostInputBytes / 1'000'000) +
                        " MB; give a part of it");
    }
  }
}

bool StandardOutput::write(std::string_view text) {
  while (error_ == 0 && !text.empty()) {
    const ssize_t written = ::write(STDOUT_FILENO, text.data(), text.size());
    if (written >= 0) {
      has_written_ = true;
      text.remove_prefix(static_cast<std::size_t>(written));
    } else if (!waited_for(STDOUT_FILENO, POLLOUT)) {
      // A signal too: a write that waits for a reader is given up at Ctrl-C.
      error_ = errno;
    }
  }
  return error_ == 0;
}

void StandardOutput::check() const {
  if (error_ == 0 || error_ == EPIPE || error_ == EINTR) return;
  throw StreamError(std::string("standard output cannot be written (") + std::strerror(error_) +
                    "); what came before is incomplete");
}

}  // namespace helium
