// The thread that everything of MLX happens on, which runs what it is given, in order. A stream belongs to the thread
// that made it, and MLX 0.32 gives an imported function the first stream of the process, whoever imports it: so one
// thread makes that stream, serves all models, and stays until the process ends.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>

#include "error.h"

namespace helium {

class Worker {
 public:
  // The one of this process. Throws Error (HELIUM_ERROR_STATE) if another thread used MLX before it.
  static Worker& shared();

  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  bool is_current() const { return std::this_thread::get_id() == thread_.get_id(); }

  // Run `task` on the thread and wait; return what it returns or throw what it throws. From the thread itself, that is,
  // in a callback, the wait would not end: throws Error (HELIUM_ERROR_STATE).
  template <typename Task>
  auto run(Task task) {
    if (is_current()) {
      throw Error(HELIUM_ERROR_STATE, "a callback called what waits for its own thread; call it after the callback");
    }
    std::packaged_task<std::invoke_result_t<Task>()> packaged(std::move(task));
    auto result = packaged.get_future();
    post([&packaged] { packaged(); });
    result.wait();
    wait_for_left_over();
    return result.get();
  }

  // In a callback: have `task` run after all that waits already. The call that the callback belongs to waits for it.
  void leave_over(std::function<void()> task);

 private:
  Worker() : thread_([this] { serve(); }) {}

  void post(std::function<void()> task);
  void wait_for_left_over();
  [[noreturn]] void serve();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  std::atomic<int> left_over_ = 0;
  // Last, so that all else is there when it starts.
  std::thread thread_;
};

}  // namespace helium
