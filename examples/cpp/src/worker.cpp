#include "worker.h"

#include <mlx/device.h>
#include <mlx/stream.h>

#include <algorithm>

#include "error.h"

namespace helium {
namespace {

namespace mx = mlx::core;

// Make this thread's stream of a device; return whether it is the first one of the process.
bool has_first_stream(mx::Device::DeviceType type) {
  if (!mx::is_available(type)) return true;
  const mx::Stream own = mx::default_stream(type);
  const std::vector<mx::Stream> all = mx::get_streams();
  const auto first = std::find_if(all.begin(), all.end(), [&](const mx::Stream& s) { return s.device == own.device; });
  return *first == own;
}

}  // namespace

Worker& Worker::shared() {
  // Never destroyed: at the end of a process threads may still wait for it.
  static Worker* const worker = new Worker;
  static const bool is_first =
      worker->run([] { return has_first_stream(mx::Device::cpu) && has_first_stream(mx::Device::gpu); });
  if (!is_first) {
    throw Error(HELIUM_ERROR_STATE,
                "MLX was used in this process before the first helium_open, and gives functions the first stream of a "
                "process: open a model first");
  }
  return *worker;
}

void Worker::leave_over(std::function<void()> task) {
  ++left_over_;
  post([this, task = std::move(task)] {
    task();
    --left_over_;
  });
}

// Else the process could end, and MLX with it, in the midst of it.
void Worker::wait_for_left_over() {
  if (left_over_ == 0) return;
  std::promise<void> reached;
  post([&reached] { reached.set_value(); });
  reached.get_future().wait();
}

void Worker::post(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  changed_.notify_one();
}

void Worker::serve() {
  while (true) {
    std::function<void()> task;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return !tasks_.empty(); });
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task();
  }
}

}  // namespace helium
