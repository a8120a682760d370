// Streams and events of the test device, and what it does late.
//
// Kernels run at once in the caller's thread, but a real device reads a queued copy's source long after the
// host has gone on. So a queued copy is due ACCELERATOR_DELAY_US after it was queued. If a kernel needs it
// earlier, it is made earlier, and its source is looked at again when it is due: a source that the host has
// changed by then is counted.
#pragma once
#include <sys/uio.h>
#include <unistd.h>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <vector>
#include "counts.h"

namespace accelerator {

using Clock = std::chrono::steady_clock;
using Task = std::function<void()>;

inline std::atomic<long> copy_delay_us{environment_number("ACCELERATOR_DELAY_US", 0)};
inline Clock::time_point due_time() { return Clock::now() + std::chrono::microseconds(copy_delay_us); }

// Tasks that run when they are due, or when the host waits for the device.
class LateTasks {
 public:
  void add(Clock::time_point due, Task task) {
    if (due <= Clock::now()) return task();
    std::lock_guard<std::mutex> lock(mutex_);
    if (!has_thread_) std::thread([this] { work(); }).detach();
    has_thread_ = true;
    tasks_.emplace_back(due, std::move(task));
    changed_.notify_all();
  }
  void finish() {
    std::lock_guard<std::mutex> running(running_);
    while (Task task = next(Clock::time_point::max())) task();
  }
  bool is_empty() {
    std::lock_guard<std::mutex> running(running_);
    std::lock_guard<std::mutex> lock(mutex_);
    return tasks_.empty();
  }

 private:
  Task next(Clock::time_point now) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (tasks_.empty() || tasks_.front().first > now) return nullptr;
    Task task = std::move(tasks_.front().second);
    tasks_.pop_front();
    return task;
  }
  void work() {
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return !tasks_.empty(); });
        auto due = tasks_.front().first;
        changed_.wait_until(lock, due, [&] { return tasks_.empty(); });
      }
      std::lock_guard<std::mutex> running(running_);
      while (Task task = next(Clock::now())) task();
    }
  }

  std::mutex mutex_, running_;
  std::condition_variable changed_;
  std::deque<std::pair<Clock::time_point, Task>> tasks_;
  bool has_thread_ = false;
};

inline LateTasks& late_tasks() {
  static auto* tasks = new LateTasks;  // never deleted, because its thread does not end
  return *tasks;
}

// Counts a source that has changed, or is gone. The system reads it, because it may be no memory any more.
inline void check_source(const void* source, const std::vector<char>& expected) {
  std::vector<char> bytes(expected.size());
  iovec target{bytes.data(), bytes.size()}, place{const_cast<void*>(source), bytes.size()};
  ssize_t size = process_vm_readv(getpid(), &target, 1, &place, 1, 0);
  if (size != static_cast<ssize_t>(bytes.size()) || bytes != expected) ++counts.changed_sources;
}

// How many of a stream's tasks were queued and done. Events outlive streams, so both share it.
class Progress {
 public:
  uint64_t add_task() {
    std::lock_guard<std::mutex> lock(mutex_);
    return ++queued_;
  }
  void finish_task() {
    std::lock_guard<std::mutex> lock(mutex_);
    ++done_;
    changed_.notify_all();
  }
  uint64_t queued() {
    std::lock_guard<std::mutex> lock(mutex_);
    return queued_;
  }
  bool has_done(uint64_t task) {
    std::lock_guard<std::mutex> lock(mutex_);
    return done_ >= task;
  }
  // Waits for the tasks up to one, which don't wait until they are due.
  void wait_for(uint64_t task) {
    std::unique_lock<std::mutex> lock(mutex_);
    hurried_ = std::max(hurried_, task);
    changed_.notify_all();
    changed_.wait(lock, [&] { return done_ >= task; });
  }
  // Waits until the task that runs is due, or until somebody waits for it.
  void wait_until(Clock::time_point due) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait_until(lock, due, [&] { return hurried_ > done_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t queued_ = 0, done_ = 0, hurried_ = 0;
};

// Runs its tasks in their order in a thread of its own.
class Stream {
 public:
  Stream() : progress_(std::make_shared<Progress>()), thread_([this] { work(); }) {}
  ~Stream() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      is_closing_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  void push(Task task) {
    std::lock_guard<std::mutex> lock(mutex_);
    tasks_.push_back(std::move(task));
    progress_->add_task();
    changed_.notify_all();
  }
  void push_copy(void* target, const void* source, size_t size) {
    push([=] { memmove(target, source, size); });
  }
  void push_copy_to_device(void* target, const void* source, size_t size) {
    push([this, target, source, size, due = due_time()] {
      progress_->wait_until(due);
      memcpy(target, source, size);
      if (due <= Clock::now()) return;
      std::vector<char> expected(static_cast<char*>(target), static_cast<char*>(target) + size);
      late_tasks().add(due, [=, expected = std::move(expected)] { check_source(source, expected); });
    });
  }
  void push_copy_from_device(void* target, const void* source, size_t size) {
    push([=, due = due_time()] {
      std::vector<char> bytes(static_cast<const char*>(source), static_cast<const char*>(source) + size);
      late_tasks().add(due, [=, bytes = std::move(bytes)] { memcpy(target, bytes.data(), size); });
    });
  }
  void wait() { progress_->wait_for(progress_->queued()); }
  const std::shared_ptr<Progress>& progress() const { return progress_; }

 private:
  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return is_closing_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      auto task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
      progress_->finish_task();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> tasks_;
  bool is_closing_ = false;
  std::shared_ptr<Progress> progress_;
  std::thread thread_;  // last, because it uses the others
};

// A place in a stream. An event that was never recorded is over.
struct Event {
  std::shared_ptr<Progress> progress;
  uint64_t task = 0;

  bool is_over() const { return !progress || progress->has_done(task); }
  void wait() const {
    if (progress) progress->wait_for(task);
  }
};

inline Stream* stream_of(C_Stream stream) { return reinterpret_cast<Stream*>(stream); }
inline Event* event_of(C_Event event) { return reinterpret_cast<Event*>(event); }

// The streams that exist.
class StreamList {
 public:
  void add(Stream* stream) {
    std::lock_guard<std::mutex> lock(mutex_);
    streams_.insert(stream);
  }
  void remove(Stream* stream) {
    std::lock_guard<std::mutex> lock(mutex_);
    streams_.erase(stream);
  }
  // Returns the ends of those that still have something to do.
  std::vector<Event> ends() {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<Event> events;
    for (Stream* stream : streams_) {
      Event event{stream->progress(), stream->progress()->queued()};
      if (!event.is_over()) events.push_back(event);
    }
    return events;
  }
  // The host waits for all that is queued.
  void wait_for_all() {
    for (auto& event : ends()) event.wait();
    late_tasks().finish();
  }

 private:
  std::mutex mutex_;
  std::set<Stream*> streams_;
};

inline StreamList& streams() {
  static auto* list = new StreamList;  // never deleted, because Paddle frees memory while the process ends
  return *list;
}

}  // namespace accelerator
