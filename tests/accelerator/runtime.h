// Memory and copies of the test device, as Paddle's interface wants them.
#pragma once
#include "streams.h"

namespace accelerator {

inline std::array<std::atomic<size_t>, kMaxDevices> used_memory{};
inline thread_local int current_device = 0;

inline bool is_device(const C_Device device) { return device->id >= 0 && device->id < device_count(); }

inline void* aligned_memory(size_t size) {
  return aligned_alloc(256, (std::max<size_t>(size, 1) + 255) / 256 * 256);
}

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
  return progress->has_done(progress->queued()) && late_tasks().is_empty() ? C_SUCCESS : C_FAILED;
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
  return event_of(event)->is_over() && late_tasks().is_empty() ? C_SUCCESS : C_FAILED;
}
inline C_Status stream_wait_event(const C_Device, C_Stream stream, C_Event event) {
  Event place = *event_of(event);
  stream_of(stream)->push([place] { place.wait(); });
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
  late_tasks().finish();
  return C_SUCCESS;
}
inline C_Status synchronize_event(const C_Device, C_Event event) {
  ++counts.waits;
  event_of(event)->wait();
  late_tasks().finish();
  return C_SUCCESS;
}

inline C_Status allocate(const C_Device device, void** pointer, size_t size) {
  if (!is_device(device)) return C_ERROR;
  auto& used = used_memory[device->id];
  // Without an address Paddle frees what it keeps, tries again, and says that the memory is full. A failed
  // call would be an error without a name.
  *pointer = used + size > memory_size() ? nullptr : aligned_memory(size);
  if (!*pointer) return C_SUCCESS;
  memset(*pointer, kPoison, size);
  used += size;
  return C_SUCCESS;
}
// The memory goes when the copies that are queued are done. The host does not wait for them.
inline C_Status deallocate(const C_Device device, void* pointer, size_t size) {
  used_memory[device->id] -= size;
  auto ends = streams().ends();
  auto release = [=] {
    for (auto& end : ends) end.wait();
    memset(pointer, kPoison, size);
    free(pointer);
  };
  // A stream's own thread may be the caller, and can't wait for itself.
  bool is_busy = !ends.empty() || !late_tasks().is_empty();
  if (!pointer) return C_SUCCESS;
  if (is_busy) late_tasks().add(std::max(due_time(), Clock::now() + std::chrono::milliseconds(1)), release);
  else release();
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
  stream_of(stream)->push_copy_to_device(target, source, size);
  return C_SUCCESS;
}
inline C_Status queue_copy_from_device(const C_Device, C_Stream stream, void* target, const void* source,
                                       size_t size) {
  ++counts.queued_copies_from_device;
  stream_of(stream)->push_copy_from_device(target, source, size);
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
