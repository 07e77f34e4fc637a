// A thread that runs what it is given, in order. MLX's streams belong to the thread that made them, and an array to its
// stream, so everything of a model happens on one.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>

namespace helium {

class Worker {
 public:
  Worker() : thread_([this] { serve(); }) {}
  // Waits for what was given.
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  bool is_current() const { return std::this_thread::get_id() == thread_.get_id(); }

  // Run `task` on the thread and wait; return what it returns or throw what it throws. Not from the thread itself.
  template <typename Task>
  auto run(Task task) {
    std::packaged_task<std::invoke_result_t<Task>()> packaged(std::move(task));
    auto result = packaged.get_future();
    post([&packaged] { packaged(); });
    return result.get();
  }

 private:
  void post(std::function<void()> task);
  void serve();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  bool ending_ = false;
  // Last, so that all else is there when it starts.
  std::thread thread_;
};

}  // namespace helium
