// Memory, streams, events and counts of the test device. Kernels and collectives are in files of their own.
#pragma once
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include "paddle/phi/backends/device_ext.h"

namespace accelerator {

constexpr int kMaxDevices = 64;
constexpr unsigned char kPoison = 0xFB;
constexpr size_t kMegabyte = size_t(1) << 20;

inline long environment_number(const char* name, long otherwise) {
  const char* text = getenv(name);
  return text && *text ? atol(text) : otherwise;
}

inline const std::string& device_name() {
  static const char* text = getenv("ACCELERATOR_NAME");
  static const std::string name = text && *text ? text : "iluvatar_gpu";
  return name;
}

inline int device_count() {
  static const long count = environment_number("ACCELERATOR_DEVICES", 2);
  return static_cast<int>(std::clamp(count, 1L, static_cast<long>(kMaxDevices)));
}

inline size_t memory_size() {
  static const size_t size = environment_number("ACCELERATOR_MEMORY_MB", 8192) * kMegabyte;
  return size;
}

// What the host did, in the order in which device_counts() reports it.
struct Counts {
  std::atomic<int64_t> copies_to_device{0};         // the host waited until they were done
  std::atomic<int64_t> copies_from_device{0};       // the host waited until they were done
  std::atomic<int64_t> queued_copies_to_device{0};
  std::atomic<int64_t> queued_copies_from_device{0};
  std::atomic<int64_t> waits{0};                    // for a device, a stream or an event
  std::atomic<int64_t> kernels{0};
  std::atomic<int64_t> collectives{0};

  std::array<std::atomic<int64_t>*, 7> all() {
    return {&copies_to_device,          &copies_from_device, &queued_copies_to_device,
            &queued_copies_from_device, &waits,              &kernels,
            &collectives};
  }
};

inline Counts counts;
inline std::atomic<long> copy_delay_us{environment_number("ACCELERATOR_DELAY_US", 0)};

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
  void wait_for(uint64_t task) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return done_ >= task; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t queued_ = 0, done_ = 0;
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

  void push(std::function<void()> task) {
    std::lock_guard<std::mutex> lock(mutex_);
    tasks_.push_back(std::move(task));
    progress_->add_task();
    changed_.notify_all();
  }
  // A copy runs late, so that a host buffer that is used again too early gives wrong numbers.
  void push_copy(void* target, const void* source, size_t size) {
    push([=] {
      if (long delay = copy_delay_us) std::this_thread::sleep_for(std::chrono::microseconds(delay));
      memmove(target, source, size);
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
  std::deque<std::function<void()>> tasks_;
  bool is_closing_ = false;
  std::shared_ptr<Progress> progress_;
  std::thread thread_;  // last, because it uses the others
};

// A place in a stream. An event that was never recorded is over.
struct Event {
  std::shared_ptr<Progress> progress;
  uint64_t task = 0;
};

inline Stream* stream_of(C_Stream stream) { return reinterpret_cast<Stream*>(stream); }
inline Event* event_of(C_Event event) { return reinterpret_cast<Event*>(event); }

// The streams that exist, so that a copy for which the host waits comes after all that is queued.
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
  void wait_for_all() {
    std::vector<std::pair<std::shared_ptr<Progress>, uint64_t>> ends;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (Stream* stream : streams_) ends.emplace_back(stream->progress(), stream->progress()->queued());
    }
    for (auto& [progress, task] : ends) progress->wait_for(task);
  }

 private:
  std::mutex mutex_;
  std::set<Stream*> streams_;
};

inline StreamList& streams() {
  static auto* list = new StreamList;  // never deleted, because Paddle frees memory while the process ends
  return *list;
}

inline std::array<std::atomic<size_t>, kMaxDevices> used_memory{};
inline thread_local int current_device = 0;

inline bool is_device(const C_Device device) { return device->id >= 0 && device->id < device_count(); }

inline void* aligned_memory(size_t size) { return aligned_alloc(256, (std::max<size_t>(size, 1) + 255) / 256 * 256); }

namespace device_calls {

inline C_Status nothing() { return C_SUCCESS; }
inline C_Status check(const C_Device device) { return is_device(device) ? C_SUCCESS : C_ERROR; }
inline C_Status set_device(const C_Device device) {
  if (!is_device(device)) return C_ERROR;
  current_device = device->id;
  return C_SUCCESS;
}
inline C_Status get_device(const C_Device device) {
  device->id = current_device;
  return C_SUCCESS;
}
inline C_Status get_count(size_t* count) {
  *count = device_count();
  return C_SUCCESS;
}
inline C_Status get_list(size_t* numbers) {
  for (int i = 0; i < device_count(); ++i) numbers[i] = i;
  return C_SUCCESS;
}

inline C_Status create_stream(const C_Device device, C_Stream* stream) {
  if (!is_device(device)) return C_ERROR;
  auto* created = new Stream;
  streams().add(created);
  *stream = reinterpret_cast<C_Stream>(created);
  return C_SUCCESS;
}
inline C_Status destroy_stream(const C_Device, C_Stream stream) {
  streams().remove(stream_of(stream));
  delete stream_of(stream);
  return C_SUCCESS;
}
inline C_Status query_stream(const C_Device, C_Stream stream) {
  auto& progress = stream_of(stream)->progress();
  return progress->has_done(progress->queued()) ? C_SUCCESS : C_FAILED;
}
inline C_Status add_callback(const C_Device device, C_Stream stream, C_Callback callback, void* data) {
  C_Device_st copy = *device;
  stream_of(stream)->push([=]() mutable {
    C_Status status = C_SUCCESS;
    callback(&copy, stream, data, &status);
  });
  return C_SUCCESS;
}
inline C_Status create_event(const C_Device, C_Event* event) {
  *event = reinterpret_cast<C_Event>(new Event);
  return C_SUCCESS;
}
inline C_Status destroy_event(const C_Device, C_Event event) {
  delete event_of(event);
  return C_SUCCESS;
}
inline C_Status record_event(const C_Device, C_Stream stream, C_Event event) {
  auto& progress = stream_of(stream)->progress();
  *event_of(event) = Event{progress, progress->queued()};
  return C_SUCCESS;
}
inline C_Status query_event(const C_Device, C_Event event) {
  Event* place = event_of(event);
  return !place->progress || place->progress->has_done(place->task) ? C_SUCCESS : C_FAILED;
}
inline C_Status stream_wait_event(const C_Device, C_Stream stream, C_Event event) {
  Event place = *event_of(event);
  if (place.progress) stream_of(stream)->push([place] { place.progress->wait_for(place.task); });
  return C_SUCCESS;
}
inline C_Status synchronize_device(const C_Device) {
  ++counts.waits;
  streams().wait_for_all();
  return C_SUCCESS;
}
inline C_Status synchronize_stream(const C_Device, C_Stream stream) {
  ++counts.waits;
  stream_of(stream)->wait();
  return C_SUCCESS;
}
inline C_Status synchronize_event(const C_Device, C_Event event) {
  ++counts.waits;
  Event* place = event_of(event);
  if (place->progress) place->progress->wait_for(place->task);
  return C_SUCCESS;
}

inline C_Status allocate(const C_Device device, void** pointer, size_t size) {
  if (!is_device(device)) return C_ERROR;
  auto& used = used_memory[device->id];
  // Without an address Paddle frees what it keeps, tries again, and says that the memory is full. A failed call would
  // be an error without a name.
  *pointer = used + size > memory_size() ? nullptr : aligned_memory(size);
  if (!*pointer) return C_SUCCESS;
  memset(*pointer, kPoison, size);
  used += size;
  return C_SUCCESS;
}
inline C_Status deallocate(const C_Device device, void* pointer, size_t size) {
  streams().wait_for_all();
  if (pointer) memset(pointer, kPoison, size);
  free(pointer);
  used_memory[device->id] -= size;
  return C_SUCCESS;
}
inline C_Status host_allocate(const C_Device, void** pointer, size_t size) {
  *pointer = malloc(size);
  return *pointer ? C_SUCCESS : C_FAILED;
}
inline C_Status host_deallocate(const C_Device, void* pointer, size_t) {
  free(pointer);
  return C_SUCCESS;
}
inline C_Status set_memory(const C_Device, void* pointer, unsigned char value, size_t size) {
  streams().wait_for_all();
  memset(pointer, value, size);
  return C_SUCCESS;
}
inline C_Status copy_at_once(void* target, const void* source, size_t size) {
  streams().wait_for_all();
  memmove(target, source, size);
  return C_SUCCESS;
}
inline C_Status copy_to_device(const C_Device, void* target, const void* source, size_t size) {
  ++counts.copies_to_device;
  return copy_at_once(target, source, size);
}
inline C_Status copy_from_device(const C_Device, void* target, const void* source, size_t size) {
  ++counts.copies_from_device;
  return copy_at_once(target, source, size);
}
inline C_Status copy_within(const C_Device, void* target, const void* source, size_t size) {
  return copy_at_once(target, source, size);
}
inline C_Status copy_between(const C_Device, const C_Device, void* target, const void* source, size_t size) {
  return copy_at_once(target, source, size);
}
inline C_Status queue_copy_to_device(const C_Device, C_Stream stream, void* target, const void* source,
                                     size_t size) {
  ++counts.queued_copies_to_device;
  stream_of(stream)->push_copy(target, source, size);
  return C_SUCCESS;
}
inline C_Status queue_copy_from_device(const C_Device, C_Stream stream, void* target, const void* source,
                                       size_t size) {
  ++counts.queued_copies_from_device;
  stream_of(stream)->push_copy(target, source, size);
  return C_SUCCESS;
}
inline C_Status queue_copy_within(const C_Device, C_Stream stream, void* target, const void* source,
                                  size_t size) {
  stream_of(stream)->push_copy(target, source, size);
  return C_SUCCESS;
}
inline C_Status queue_copy_between(const C_Device, const C_Device, C_Stream stream, void* target,
                                   const void* source, size_t size) {
  stream_of(stream)->push_copy(target, source, size);
  return C_SUCCESS;
}

inline C_Status memory_statistics(const C_Device device, size_t* total, size_t* free_memory) {
  if (!is_device(device)) return C_ERROR;
  *total = memory_size();
  *free_memory = memory_size() - std::min<size_t>(memory_size(), used_memory[device->id]);
  return C_SUCCESS;
}
template <size_t value>
C_Status constant(const C_Device, size_t* size) {
  *size = value;
  return C_SUCCESS;
}
inline C_Status largest_allocation(const C_Device, size_t* size) {
  *size = memory_size();
  return C_SUCCESS;
}
inline C_Status is_supported(const C_Device, bool* answer) {
  *answer = true;
  return C_SUCCESS;
}

}  // namespace device_calls

inline void fill_device_calls(C_DeviceInterface* table) {
  using namespace device_calls;
  table->initialize = nothing;
  table->finalize = nothing;
  table->init_device = check;
  table->set_device = set_device;
  table->get_device = get_device;
  table->deinit_device = check;
  table->get_device_count = get_count;
  table->get_device_list = get_list;

  table->create_stream = create_stream;
  table->destroy_stream = destroy_stream;
  table->query_stream = query_stream;
  table->stream_add_callback = add_callback;
  table->create_event = create_event;
  table->destroy_event = destroy_event;
  table->record_event = record_event;
  table->query_event = query_event;
  table->stream_wait_event = stream_wait_event;
  table->synchronize_device = synchronize_device;
  table->synchronize_stream = synchronize_stream;
  table->synchronize_event = synchronize_event;

  table->device_memory_allocate = allocate;
  table->device_memory_deallocate = deallocate;
  table->device_memory_set = set_memory;
  table->host_memory_allocate = host_allocate;
  table->host_memory_deallocate = host_deallocate;
  table->memory_copy_h2d = copy_to_device;
  table->memory_copy_d2h = copy_from_device;
  table->memory_copy_d2d = copy_within;
  table->memory_copy_p2p = copy_between;
  table->async_memory_copy_h2d = queue_copy_to_device;
  table->async_memory_copy_d2h = queue_copy_from_device;
  table->async_memory_copy_d2d = queue_copy_within;
  table->async_memory_copy_p2p = queue_copy_between;

  table->device_memory_stats = memory_statistics;
  table->device_min_chunk_size = constant<256>;
  table->device_max_chunk_size = constant<64 * kMegabyte>;
  table->device_max_alloc_size = largest_allocation;
  table->device_extra_padding_size = constant<0>;
  table->device_init_alloc_size = constant<64 * kMegabyte>;
  table->device_realloc_size = constant<64 * kMegabyte>;
  table->get_compute_capability = constant<1>;
  table->get_runtime_version = constant<1>;
  table->get_driver_version = constant<1>;
  table->is_float16_supported = is_supported;
  table->is_bfloat16_supported = is_supported;
}

}  // namespace accelerator
